#!/usr/bin/env bash
# Builds macula for CUDA 13 on a machine that need not have a GPU, a driver or a CUDA toolkit: those parts come from pip.
#
#   benchmarks/cuda/build.sh [FOLDER] [cargo arguments, by default: build --release]
#
# FOLDER (default: target/cuda-toolkit) keeps the toolkit. The binary needs libcuda.so.1 (the driver), libcublas.so.13,
# libcurand.so.10 and libcudart.so.13 where it runs. CUDA_COMPUTE_CAP chooses the oldest GPU it is for (default 80: Ampere).
set -euo pipefail
cd "$(dirname "$0")/../.."
folder="${1:-target/cuda-toolkit}"
shift || true
arguments=("$@")
[ $# -gt 0 ] || arguments=(build --release)

if [ ! -x "$folder/venv/bin/pip" ]; then
    python3 -m venv "$folder/venv"
    # Parts of one release: newer ones of nvvm and crt do not fit this nvcc, PTX of a newer nvcc not a driver of CUDA 13.0.
    "$folder/venv/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 \
        nvidia-curand==10.4.0.35
fi
toolkit="$(cd "$folder"/venv/lib/python3*/site-packages/nvidia/cu13 && pwd)"
# pip's libraries carry their version only; the linker looks for the plain name.
for library in cublas cublasLt nvrtc cudart curand; do
    versioned="$(cd "$toolkit/lib" && ls lib$library.so.* | grep -v alt | head -n 1)"
    ln -sf "$versioned" "$toolkit/lib/lib$library.so"
done
ln -sfn lib "$toolkit/lib64"
mkdir -p "$toolkit/lib/stubs"

export CUDA_HOME="$toolkit" CUDA_PATH="$toolkit" CUDA_ROOT="$toolkit" CUDA_TOOLKIT_ROOT_DIR="$toolkit"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" PATH="$toolkit/bin:$PATH"
export LIBRARY_PATH="$toolkit/lib:$toolkit/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"

# The driver's library comes with the driver. To link, one with the names that are called is enough, and only the built
# bindings say which those are.
if [ ! -e "$toolkit/lib/stubs/libcuda.so" ]; then
    cargo build --release --features cuda --lib -p macula-models
    target="${CARGO_TARGET_DIR:-target}/release/deps"
    nm -u "$target"/libcudarc-*.rlib 2>/dev/null | awk '$1 == "U" && $2 ~ /^cu[A-Z]/ { print "void " $2 "(void) {}" }' |
        grep -v -E ' (cublas|curand|cudnn|cusparse|cusolver)' | sort -u >"$toolkit/lib/stubs/cuda.c"
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$toolkit/lib/stubs/libcuda.so" "$toolkit/lib/stubs/cuda.c"
    ln -sf libcuda.so "$toolkit/lib/stubs/libcuda.so.1"
fi
cargo "${arguments[@]}" --features cuda
