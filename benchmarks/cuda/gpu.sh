#!/usr/bin/env bash
# Everything that only a GPU can show, with a binary of benchmarks/cuda/build.sh, a driver and CUDA 13's libraries:
#
#   benchmarks/cuda/gpu.sh BINARY FOLDER [DATA]
#
# operations against the CPU in f32 and bf16, loss curves of 200 steps on CPU and GPU, images/s and memory of ViT-S/14 and
# ViT-B/14, what crops made by the step cost it, and a run of ten minutes on DATA (default: idx:/usr/share/datasets/fashion-mnist, train and test) with its k-NN.
# Each part may be run alone: PARTS="ops curves speed run" (each takes less than ten minutes). Results lie in FOLDER.
set -uo pipefail
binary="$(realpath "$1")"
folder="$2"
data="${3:-idx:/usr/share/datasets/fashion-mnist}"
parts="${PARTS:-ops curves speed run}"
mkdir -p "$folder"
cd "$folder"
failed=0
say() { echo "== $*"; }
run() { # name, command: its output in name.txt, a word when it fails
    local name="$1"
    shift
    "$@" >"$name.txt" 2>&1 || { failed=1; say "$name failed"; tail -n 3 "$name.txt"; }
}

say machine
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
for part in $parts; do
    case "$part" in
    ops)
        for compute in f32 bf16; do
            run "ops-$compute" "$binary" bench ops --device cuda --compute "$compute"
            say "operations in $compute"
            cat "ops-$compute.txt"
        done
        ;;
    curves)
        common=(train --data sample:train --force --set steps=200 --set monitor.log_every=1)
        run curve-cpu-f32 "$binary" "${common[@]}" --device cpu --out curve-cpu-f32
        run curve-cuda-f32 "$binary" "${common[@]}" --device cuda --out curve-cuda-f32
        run curve-cuda-bf16 "$binary" "${common[@]}" --device cuda --out curve-cuda-bf16 --set compute=bf16
        run curve-cuda-crops "$binary" "${common[@]}" --device cuda --out curve-cuda-crops --set data.loader.crops_on=gpu
        say "losses of 200 steps: step, cpu f32, cuda f32, cuda bf16, cuda f32 with crops of its own (those of cuda f32 to the bit)"
        for step in 1 10 50 100 150 200; do
            line="$step"
            for curve in cpu-f32 cuda-f32 cuda-bf16 cuda-crops; do
                loss="$(sed -n "${step}p" "curve-$curve/metrics.jsonl" | grep -o '"loss":[^,}]*' | head -n 1)"
                line="$line  ${loss#*:}"
            done
            echo "$line"
        done
        ;;
    speed)
        paper=(--geometry b --set image_size=224 --set local_size=98 --set crops.local.count=8 --set compute=bf16)
        for arch in vit-small/14 vit-base/14; do
            for batch in 64 128 256 512 1024; do
                name="speed-${arch%/*}-$batch"
                run "$name" "$binary" bench train --device cuda "${paper[@]}" --set "arch=$arch" \
                    --set "batch_size=$batch" --steps 10
                say "$arch, batch $batch"
                head -n 1 "$name.txt"
                nvidia-smi --query-gpu=memory.used --format=csv,noheader
                grep -q "memory does not hold\|OUT_OF_MEMORY\|out of memory" "$name.txt" && break
            done
        done
        # The copy is in the time of both: nothing is ahead in a bench.
        for crops_on in cpu gpu; do
            run "speed-crops-$crops_on" "$binary" bench train --device cuda "${paper[@]}" --set arch=vit-small/14 \
                --set batch_size=64 --set "data.loader.crops_on=$crops_on" --steps 10
            say "vit-small/14, batch 64, crops on $crops_on"
            head -n 1 "speed-crops-$crops_on.txt"
        done
        ;;
    run)
        run train timeout --signal=INT 600 "$binary" train --device cuda --data "$data#train" --knn-data "$data#train" \
            --out fashion --force --set steps=20000 --set compute=bf16
        say "ten minutes on $data"
        tail -n 2 train.txt
        say "share of the time without a batch: the first and the last lines of the log"
        grep -o '"data_wait":[^,}]*' fashion/metrics.jsonl | sed -n '2p;$p'
        ;;
    *) say "expected ops, curves, speed or run, found $part" ;;
    esac
done
exit $failed
