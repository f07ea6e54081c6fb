#!/usr/bin/env bash
# The Python package, checked: types, and the tests of python/tests. Arguments go to pytest.
#
#   bash python/check.sh --wheel    builds the wheel with maturin and tests that, in a new environment
#   bash python/check.sh            tests what `cargo build --release --workspace --locked` has built
#
# Both use the workspace's target folder: only this package and pyo3 are built beyond what its tests need.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
python=${PYTHON:-python3}
venv=$target/python-tests

wheel=
if [ "${1:-}" = --wheel ]; then
    wheel=yes
    shift
    rm -rf "$venv" "$target/wheels"
fi

# Debian's python3 alone makes environments without pip; its own pip installs into them.
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" >/dev/null 2>&1 || "$python" -m venv --clear --without-pip "$venv"
fi
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    pip=("$venv/bin/python" -m pip)
else
    pip=("$python" -m pip --python "$venv/bin/python")
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
"${pip[@]}" install -q -r "$here/tests/requirements.txt"

if [ -n "$wheel" ]; then
    "$venv/bin/maturin" build --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$target" --out "$target/wheels"
    "${pip[@]}" install -q --no-deps "$target"/wheels/macula-*.whl
else
    "${pip[@]}" uninstall -q -y macula
    cp "$target/release/lib_macula.so" "$here/macula/_macula.abi3.so"
    export PYTHONPATH=$here
fi

(cd "$here" && "$venv/bin/mypy")
# Not from the folder of the package, which would be found there and not where it was installed.
cd "$here/tests"
"$venv/bin/stubtest" --ignore-disjoint-bases --mypy-config-file ../pyproject.toml macula._macula
exec "$venv/bin/pytest" "$@"
