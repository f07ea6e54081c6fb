#!/usr/bin/env bash
# Registers of every kernel, and its stack and spills, which must be none, for several GPUs. Needs no GPU: nvcc and ptxas of the toolkit
# that build.sh has fetched.
#
#   benchmarks/cuda/registers.sh [FOLDER] [ARCHITECTURES, by default: 80 86 89 90 100 120]
#
# FOLDER as for build.sh. A kernel a line; exit code 1 where one has a stack or spills.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin="$(cd "${1:-target/cuda-toolkit}"/venv/lib/python3*/site-packages/nvidia/cu13/bin && pwd)"
shift || true
architectures=("$@")
[ $# -gt 0 ] || architectures=(80 86 89 90 100 120)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PATH="$bin:$PATH"
for source in models/src/ops/cuda/*.cu; do
    name="$(basename "$source" .cu)"
    nvcc -ptx -O3 -std=c++17 -arch=compute_80 -o "$work/$name.ptx" "$source"
    for architecture in "${architectures[@]}"; do
        ptxas -v -O3 "-arch=sm_$architecture" -o /dev/null "$work/$name.ptx" 2>&1 | sed "s/^/$architecture /"
    done
done | awk '
    /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2] }
    /bytes stack frame/ { for (i = 1; i <= NF; i++) if ($i == "bytes") spills[kernel] += $(i - 1) }
    /Used [0-9]+ registers/ { for (i = 1; i <= NF; i++) if ($i == "Used") registers[kernel] = registers[kernel] " sm_" $1 " " $(i + 1) }
    END {
        for (kernel in registers) {
            printf "%-34s%s, %d bytes of stack and spills\n", kernel, registers[kernel], spills[kernel] | "sort"
            bad += spills[kernel] > 0
        }
        close("sort")
        exit bad > 0
    }'
