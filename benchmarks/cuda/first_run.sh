#!/usr/bin/env bash
# The first minutes on an NVIDIA GPU, in the order in which they tell most: is it right, is it fast, does it train.
#
#   benchmarks/cuda/first_run.sh BINARY FOLDER [DATA]
#
# BINARY of benchmarks/cuda/build.sh, packed with xz or not; DATA as for gpu.sh. PARTS (default: right fast trains) chooses parts, each
# of which ends within its seconds (RIGHT, FAST, TRAINS; default 300 each): what does not fit any more is passed over, and said.
# It ends with one table, expected beside measured, of all parts whose results are in FOLDER, and for every row that is not as expected
# what to do. Times are expected of an H200; on another GPU they only say what was measured.
#
#   right     libraries; every operation in f32 and bf16; three steps of ViT-S/14; sums by NCCL in a job of one process, where NCCL is;
#             compute-sanitizer over the operations, where it is
#   fast      steps of ViT-S/14 and B/14 (2 x 224 + 8 x 98 pixels, batch 64) and PyTorch's, where a python3 has torch; products;
#             kernels by name, where ncu is
#   trains    losses of 100 steps: CPU, GPU, and GPU with crops of its own; a distillation; the wait for images
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/common.sh"
[ $# -ge 2 ] || { sed -n '2,18p' "$0"; exit 2; }
python="$(command -v "${PYTHON:-python3}" || true)"
source_of "${3:-}" || exit 2
binary="$(realpath "$1")"
mkdir -p "$2"
cd "$2" || exit 2
[ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null && has_torch=1 || has_torch=""

# --- what is expected of a row, and what to do where it is not so

advice() { # row
    case "$1" in
    libraries) echo "find / -name 'libcublas.so.13*' -o -name 'libcuda.so.1' 2>/dev/null; put both folders into LD_LIBRARY_PATH" ;;
    GPU) echo "nvidia-smi; a driver older than CUDA 13.0 (580) gives 'undefined symbol cu...' or INVALID_PTX: build with that version's nvcc" ;;
    "exact product") echo "2e-4 to 1e-3 is f16 or TF32 in f32 products: CUBLAS_PEDANTIC_MATH of src/device/gpu.rs is not obeyed; call cublasGemmEx with CUBLAS_GEMM_DEFAULT" ;;
    "long sum") echo "parts of a sum are rounded to bf16: CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION of src/device/gpu.rs is not obeyed" ;;
    "operations"*) echo "read ops-*.txt row by row: rows of 257 tokens alone wrong: fused_attention.cu (racecheck; suits() false to go on); 'no kernel image': a kernel of candle that must not be called; illegal address: CUDA_LAUNCH_BLOCKING=1, then memcheck names the kernel" ;;
    "first process") echo "it translates PTX once (~/.nv/ComputeCache); far longer: the cache folder cannot be written (CUDA_CACHE_PATH)" ;;
    "three steps"*) echo "tail right-steps.txt; INVALID_CONTEXT: a release on a thread without context; OUT_OF_MEMORY: cuda_peak_bytes of a smaller batch" ;;
    "sums by NCCL") echo "tail exchange.txt; NCCL_DEBUG=INFO says more; 'no NCCL': MACULA_NCCL_LIB, or macula runtime install --flavor nccl; wrong sums aside alone: events between the two streams of src/cluster/nccl/on_gpu.rs" ;;
    memcheck) echo "memcheck.txt names kernel and thread; the same operation in models/tests/cuda_kernels should then fail in the emulation: extend it" ;;
    "ViT"*) echo "kernels.txt beside benchmarks/history/NOTES.md, 'Kernels of a step'; if their sum is much below the step the host is the limit: batch 256, uploads, launches" ;;
    "memory"*) echo "kept tensors: compare with the formula in benchmarks/history/NOTES.md; checkpointing halves it" ;;
    "weight gradients"*) echo "split-K is not chosen for a batched call of one: call cublasGemmEx in place of cublasGemmStridedBatchedEx" ;;
    "PyTorch"*) echo "below 1: the largest row of kernels.txt first; prototypes' logits are bf16 there, TF32 here" ;;
    "losses, CPU"*) echo "NaN in bf16 only: ops in bf16, then --set sequence_packing=false; off from step 1: ops in f32" ;;
    "losses, crops"*) echo "kernels of augment.cu round otherwise than the processor: bench train's crops by the tests of src/train/feed" ;;
    "losses, again"*) echo "CUBLAS_WORKSPACE_CONFIG=:4096:8; if equal then, it is cuBLAS; else racecheck over bench ops" ;;
    distillation) echo "'opened a second time': src/device/gpu.rs opens one device a number; NaN: the teacher's stream" ;;
    "waiting"*) echo "data_wait of feed-*.txt: decoding is the limit; more cores, or smaller images on disk" ;;
    esac
}

row() { # name, expected, measured (none where there is nothing), 1 where it is as expected: into rows.tsv, in place of an older one of this name
    local verdict=NO
    if [[ "$3" == none* ]]; then
        [ -z "$late" ] || verdict=late
    elif [ "$4" = 1 ]; then
        verdict=yes
    elif [ -n "$late_run" ]; then
        verdict=late
    fi
    touch rows.tsv
    awk -F'\t' -v name="$1" '$1 != name' rows.tsv >rows.new
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$verdict" >>rows.new
    mv rows.new rows.tsv
    printf '%-34s expected %-26s measured %-26s %s\n' "$1" "$2" "$3" "$verdict"
}
is() { calculate "($1) ? 1 : 0"; } # condition: 1 or 0

deadline=0
late="" late_run="" # whether something of the part, and its latest command, had no time
begin() { # part, seconds
    say "$1, at most $2 s"
    late="" late_run=""
    deadline=$((SECONDS + $2))
}
run() { # name, command: its output in name.txt and its seconds in $took; not 0 where it failed or there was no time left
    local name="$1" left=$((deadline - SECONDS)) start code
    shift
    late_run=""
    [ "$left" -ge 5 ] || { echo "no time left for $name"; echo "no time left" >"$name.txt"; late=1 late_run=1; return 1; }
    start="$(date +%s.%N)"
    timeout "$left" "$@" >"$name.txt" 2>&1
    code=$?
    took="$(calculate "$(date +%s.%N) - $start")"
    [ "$code" != 124 ] || late=1 late_run=1
    [ "$code" = 0 ] || { echo "$name ended with $code: $(tail -n 1 "$name.txt")"; return "$code"; }
}
took=0
bench() { "$binary" bench "$@"; }
step() { # name, arguments: steps of `bench train` on the GPU, JSON in name.txt
    local name="$1"
    shift
    run "$name" "$binary" bench train --device cuda --json --set compute=bf16 "$@"
}

part_right() {
    local ok found
    find_libraries "$binary" && ok=1 || ok=0
    row libraries "all found" "$([ $ok = 1 ] && echo "all found" || echo "not: $(missing_libraries "$binary" | tr '\n' ' ')")" $ok
    [ $ok = 1 ] || return 1
    run doctor "$binary" doctor
    grep -E '^(CUDA|  loads|  trains)' doctor.txt
    found="$(sed -n 's/^  trains on *//p' doctor.txt)"
    row GPU "named by doctor" "${found:-none}" "$([ -n "$found" ] && echo 1 || echo 0)"
    for compute in f32 bf16; do
        run "ops-$compute" "$binary" bench ops --device cuda --compute "$compute" && ok=1 || ok=0
        [ "$compute" = bf16 ] || row "first process, s" "15 to 60" "$took" "$(is "$took < 90")"
        row "operations in $compute" "at most what is allowed" "$(worst "ops-$compute.txt") of it" $ok
        cat "ops-$compute.txt"
    done
    found="$(column '^exact product' ops-f32.txt)"
    row "exact product in f32" "at most 4e-6" "${found:-none}" "$(is "${found:-1} <= 4e-6")"
    found="$(column '^long sum' ops-bf16.txt)"
    row "long sum in bf16" "at most 2.5e-3" "${found:-none}" "$(is "${found:-1} <= 2.5e-3")"
    step right-steps --geometry c --steps 3 && ok=1 || ok=0
    row "three steps of ViT-S/14" "end well" "$([ $ok = 1 ] && echo "$(number step_seconds right-steps.txt) s" || tail -n 1 right-steps.txt)" $ok
    nccl
    if has compute-sanitizer; then
        run memcheck timeout 150 compute-sanitizer --tool memcheck --error-exitcode 9 "$binary" bench ops --device cuda --compute bf16 && ok=1 || ok=0
        row memcheck "0 errors" "$(grep -o 'ERROR SUMMARY.*' memcheck.txt | tail -n 1)" $ok
    fi
}

nccl() { # sums by each way of a job of one process, beside the exact ones
    local library ok ways
    library="${MACULA_NCCL_LIB:-$("${python:-false}" -c 'import glob, importlib.util, os
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else []:
    print(*glob.glob(os.path.join(place, "*", "lib", "libnccl.so.2")), sep="\n")' 2>/dev/null | head -n 1)}"
    MACULA_NCCL_LIB="$library" run exchange "$binary" bench exchange --device cuda --json && ok=1 || ok=0
    # By host, device and aside in f32, and aside in bf16.
    ways="$(grep -o '"way": *"[a-z]*"' exchange.txt | wc -l)"
    row "sums by NCCL" "4 ways, all right" "$([ "$ways" = 0 ] && tail -n 1 exchange.txt || echo "$ways ways, $([ $ok = 1 ] && echo all right || echo some wrong)")" \
        "$([ $ok = 1 ] && [ "$ways" = 4 ] && echo 1 || echo 0)"
    grep -E '"(way|sent_in|gigabytes_per_second|difference)"' exchange.txt
}

file_of() { echo "step-${1//[\/ ]/-}"; } # name: of a file

# name, geometry, expected milliseconds (least most), expected GB, arguments
steps_of() {
    local name="$1" geometry="$2" least="$3" most="$4" gb="$5" file ms bytes
    shift 5
    file="$(file_of "$name")"
    step "$file" --geometry "$geometry" --steps 8 "$@" || { row "$name, ms a step" "$least to $most" "none" 0; return; }
    ms="$(calculate "1000 * $(number step_seconds "$file.txt")")"
    row "$name, ms a step" "$least to $most" "$ms" "$(is "$ms <= 1.15 * $most")"
    bytes="$(number cuda_peak_bytes "$file.txt")"
    row "memory of $name, GB" "$gb" "$([ -n "$bytes" ] && calculate "$bytes / 1e9" || echo none)" "$(is "${bytes:-0} > 0 && ${bytes:-0} / 1e9 <= 1.25 * $gb")"
}
beside() { # name of macula's row, geometry, eager or compiled, expected ratio (least)
    local name="$1" geometry="$2" mode="$3" least="$4" file flags ratio
    file="$(file_of "$name")"
    flags=(--geometry "$geometry" --device cuda --dtype bf16 --shared-head --steps 8 --json)
    [ "$mode" = compiled ] && flags+=(--compile)
    if run "torch-$mode-$file" "$python" "$here/../peers/torch_step.py" "${flags[@]}"; then
        ratio="$(calculate "$(number images_per_second "$file.txt") / $(number images_per_second "torch-$mode-$file.txt")")"
        row "PyTorch $mode, macula's rate to its, $name" "$least or more" "${ratio:-none}" "$(is "${ratio:-0} >= $least")"
    fi
}

part_fast() {
    steps_of ViT-S/14 c 45 58 16
    [ -z "$has_torch" ] || beside ViT-S/14 c eager 1.1
    steps_of ViT-B/14 d 105 125 30
    [ -z "$has_torch" ] || beside ViT-B/14 d eager 1.1
    steps_of "ViT-S/14 unpacked" c 46 60 16 --set sequence_packing=false
    run products "$binary" bench products --device cuda --compute bf16 --json && products
    [ -z "$has_torch" ] || beside ViT-S/14 c compiled 0.9
    steps_of "ViT-S/14 batch 256" c 180 230 60 --set batch_size=256
    ! has ncu || kernels
}
products() { # rates of a layer of 58,496 rows, forward and of its weights' gradient, in 1e12 operations a second
    local forward weights
    read -r forward weights < <("${python:-false}" -c 'import json, sys
rows = json.load(open("products.txt"))
rows = rows.get("rows", rows) if isinstance(rows, dict) else rows
row = next(r for r in rows if r["rows"] == 58496 and r["outputs"] == 1536)
print(row["forward_gflops"] / 1e3, row["weight_gradient_gflops"] / 1e3)' 2>/dev/null)
    [ -n "${weights:-}" ] || { echo "products.txt: no rates read"; return; }
    row "weight gradients, share of forward" "0.5 or more" "$(calculate "$weights / $forward")" "$(is "$weights / $forward >= 0.5")"
}
kernels() { # time by kernel of about one step, the largest first, into kernels.txt
    run ncu ncu --clock-control none --metrics gpu__time_duration.sum --csv --launch-skip 3000 --launch-count 1600 \
        "$binary" bench train --device cuda --geometry c --steps 2 --set compute=bf16 || return
    awk -F'","' '/gpu__time_duration/ { t = $NF; gsub(/[",]/, "", t); name = $5; sub(/\(.*/, "", name); us[name] += t / 1000; n[name]++ }
        END { for (k in us) printf "%9.1f us %5d  %s\n", us[k], n[k], k }' ncu.txt | sort -rn >kernels.txt
    say "kernels of 1,600 launches: us, launches, name; beside benchmarks/history/NOTES.md, 'Kernels of a step'"
    head -n 25 kernels.txt
}

loss_at() { sed -n "${2}p" "$1/metrics.jsonl" 2>/dev/null | grep -o '"loss":[^,}]*' | head -n 1 | sed 's/.*://'; } # run, step
apart() { # two runs, step: how far their losses are apart, as a share
    local a b
    a="$(loss_at "$1" "$3")" b="$(loss_at "$2" "$3")"
    [ -n "$a" ] && [ -n "$b" ] || { echo none; return; }
    calculate "($a > $b ? $a - $b : $b - $a) / $a"
}
part_trains() {
    local common far wait
    common=(train --data sample:train --force --set steps=100 --set monitor.log_every=1)
    run run-cuda "$binary" "${common[@]}" --device cuda --out gpu
    run run-again "$binary" "${common[@]}" --device cuda --out gpu-again
    far="$(apart gpu gpu-again 100)"
    row "losses, again, step 100" "the same" "$far apart" "$(is "$far == 0")"
    run run-crops "$binary" "${common[@]}" --device cuda --out gpu-crops --set data.loader.crops_on=gpu
    far="$(apart gpu gpu-crops 100)"
    row "losses, crops on the GPU, step 100" "the same" "$far apart" "$(is "$far == 0")"
    run run-bf16 "$binary" "${common[@]}" --device cuda --out gpu-bf16 --set compute=bf16
    run run-cpu "$binary" "${common[@]}" --device cpu --out cpu
    far="$(apart cpu gpu 1)"
    row "losses, CPU and GPU, step 1" "1e-4 or less" "$far" "$(is "$far <= 1e-4")"
    far="$(apart cpu gpu 100)"
    row "losses, CPU and GPU, step 100" "2e-2 or less" "$far" "$(is "$far <= 2e-2")"
    far="$(apart cpu gpu-bf16 100)"
    row "losses, CPU and bf16, step 100" "3e-2 or less" "$far" "$(is "$far <= 3e-2")"
    run run-distil "$binary" distill --teacher gpu --recipe distill-features --device cuda --data sample:train --out student --force \
        --set steps=30 --set monitor.log_every=1
    far="$(calculate "$(loss_at student 30) / $(loss_at student 1)")"
    row distillation "loss below the first" "${far:-none} of it" "$(is "${far:-9} < 1")"
    for crops_on in gpu cpu; do
        step "feed-$crops_on" --geometry c --data "$(rows train)" --steps 10 --set "data.loader.crops_on=$crops_on" || continue
        wait="$(number data_wait "feed-$crops_on.txt")"
        row "waiting for images, crops on $crops_on" "$([ $crops_on = gpu ] && echo "0.05 or less" || echo "any")" "$wait" \
            "$([ $crops_on = cpu ] && echo 1 || is "$wait <= 0.05")"
    done
}

unpack "$binary" || exit 1
find_libraries "$binary" >/dev/null
has nvidia-smi && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
for part in ${PARTS:-right fast trains}; do
    case "$part" in
    right) begin right "${RIGHT:-300}" && part_right ;;
    fast) begin fast "${FAST:-300}" && part_fast ;;
    trains) begin trains "${TRAINS:-300}" && part_trains ;;
    *) say "expected right, fast or trains, found $part"; exit 2 ;;
    esac
done

tar czf results.tar.gz $(ls -- *.txt *.tsv */metrics.jsonl 2>/dev/null)
say "expected beside measured (all in $PWD, packed in results.tar.gz)"
awk -F'\t' '{ printf "%-48s %-26s %-36s %s\n", $1, $2, $3, $4 }' rows.tsv
# Each advice once, behind the rows that it is for.
awk -F'\t' '$4 == "NO" { print $1 }' rows.tsv | while read -r name; do
    for key in "$name" "${name%% in *}" "${name%%,*}"; do
        found="$(advice "$key")"
        [ -z "$found" ] || { printf '%s\t%s\n' "$name" "$found"; break; }
    done
done | awk -F'\t' '!($2 in names) { order[++n] = $2 } { names[$2] = names[$2] (names[$2] == "" ? "" : "; ") $1 }
    END { for (i = 1; i <= n; i++) print names[order[i]] ": " order[i] }'
! grep -q $'\tlate$' rows.tsv || echo "late: had no time; more seconds in RIGHT, FAST or TRAINS, or that part alone by PARTS"
! grep -qE $'\t(NO|late)$' rows.tsv
