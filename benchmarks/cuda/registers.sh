#!/usr/bin/env bash
# Registers and static shared memory of every kernel, and its stack and spills, which must be none, for several GPUs. Needs no GPU: nvcc
# and ptxas of the toolkit that build.sh has fetched.
#
#   benchmarks/cuda/registers.sh [FOLDER] [ARCHITECTURES, by default: 90 80 86 89 100 120] >benchmarks/cuda/registers.txt
#
# FOLDER as for build.sh. A kernel a line: registers for the first architecture and the most for the others, bytes of the rest for all;
# exit code 1 where one has a stack or spills.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin="$(cd "${1:-target/cuda-toolkit}"/venv/lib/python3*/site-packages/nvidia/cu13/bin && pwd)"
shift || true
architectures=("$@")
[ $# -gt 0 ] || architectures=(90 80 86 89 100 120)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PATH="$bin:$PATH"
for source in models/src/ops/cuda/*.cu; do
    name="$(basename "$source" .cu)"
    nvcc -ptx -O3 -std=c++17 -arch=compute_80 -o "$work/$name.ptx" "$source"
    for architecture in "${architectures[@]}"; do
        ptxas -v -O3 "-arch=sm_$architecture" -o /dev/null "$work/$name.ptx" 2>&1 | sed "s/^/$architecture /"
    done
done | awk -v first="${architectures[0]}" '
    /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2] }
    /bytes stack frame/ { for (i = 1; i <= NF; i++) if ($i == "bytes") spills[kernel] += $(i - 1) }
    /Used [0-9]+ registers/ {
        for (i = 1; i <= NF; i++) {
            if ($i == "Used" && $1 == first) registers[kernel] = $(i + 1)
            if ($i == "Used" && $1 != first && $(i + 1) > most[kernel]) most[kernel] = $(i + 1)
            if ($i == "bytes" && $(i + 1) ~ /^smem/ && $(i - 1) > shared[kernel]) shared[kernel] = $(i - 1)
        }
    }
    END {
        printf "%-38s %6s %7s %7s %s\n", "kernel", "sm_" first, "others", "shared", "stack and spills"
        for (kernel in registers) {
            printf "%-38s %6d %7d %7d %d\n", kernel, registers[kernel], most[kernel], shared[kernel], spills[kernel] | "sort"
            bad += spills[kernel] > 0
        }
        close("sort")
        exit bad > 0
    }'
