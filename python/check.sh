#!/usr/bin/env bash
# The Python package from the build that stands in target/release: puts the module in place and runs its tests.
# With --wheel builds the wheel with maturin and tests that, in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-$PWD/../target}
python=${PYTHON:-python3}
venv=$target/python-tests
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt
if [ "${1:-}" = --wheel ]; then
    shift
    "$venv/bin/pip" install -q --disable-pip-version-check maturin==1.16.0
    "$venv/bin/maturin" build --release --locked --target-dir "$target" --out "$target/wheels"
    "$venv/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$target"/wheels/macula-*.whl
    exec "$venv/bin/python" -P -m pytest --import-mode=importlib "$@"
fi
cp "$target/release/lib_macula.so" macula/_macula.abi3.so
PYTHONPATH=$PWD exec "$venv/bin/python" -m pytest "$@"
