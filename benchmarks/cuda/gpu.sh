#!/usr/bin/env bash
# Everything that only a GPU can show, with a binary of benchmarks/cuda/build.sh, a driver and CUDA 13's libraries:
#
#   benchmarks/cuda/gpu.sh BINARY FOLDER [DATA]
#
# BINARY may be packed with xz. DATA (idx:FOLDER of Fashion-MNIST, say; default: idx:/usr/share/datasets/fashion-mnist, or where that is
# missing macula's own sample) has train and test. CUDA's libraries are looked for in Python's nvidia packages and in CUDA_HOME. Results
# lie in FOLDER, those worth keeping in results.tar.gz there; every part ends with its table; the last lines are one table of all parts
# whose results are in FOLDER, from earlier calls as well. first_run.sh is the shorter first visit to a machine. PARTS chooses parts,
# each of which takes about ten minutes:
#
#   ops       every operation against the CPU, f32 and bf16
#   curves    losses of 200 steps: CPU in f32, GPU in f32, in bf16, and in f32 with crops made on the GPU
#   feed      steps of ViT-S/14 on DATA's training images, which the CPU or the GPU crops: images/s and the wait for images
#   small     ViT-S/14 at 224 px, 2 + 8 crops, K 65,536, bf16: macula and PyTorch (eager, compiled) in turn, batch 64 and the
#             largest power of two that both fit (LARGEST=0: 64 alone). Without a python3 that has torch, or PYTHON, macula alone
#   base      the same with ViT-B/14
#   memory    the largest batch of ViT-S, B and L, with and without gradient checkpointing
#   train     pretraining on DATA for as many steps as fit into 8 minutes (TRAIN_SECONDS) at the rate of 300 steps before
#   distil    its distillation to a quarter of the weights
#   evaluate  k-NN and linear probe of both, of the untrained network and of raw pixels
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/common.sh"
folder="$2"
python="$(command -v "${PYTHON:-python3}" || true)"
source_of "${3:-}" || exit 2
binary="$(realpath "$1")"
parts="${PARTS:-ops curves feed small base memory train distil evaluate}"
mkdir -p "$folder"
cd "$folder" || exit 2
unpack "$binary" && find_libraries "$binary" || exit 1
failed=0
run() { # name, command: its output in name.txt, a word when it fails
    local name="$1"
    shift
    "$@" >"$name.txt" 2>&1 || { failed=1; say "$name failed"; tail -n 3 "$name.txt"; return 1; }
}
step() { # name: what `bench train --json` found, in a line
    local file="$1.txt" word
    [ -n "$(number images_per_second "$file")" ] || return 0
    local bytes wait
    bytes="$(number cuda_peak_bytes "$file")" wait="$(number data_wait "$file")"
    printf '%-36s %8.1f images/s, %3.0f %% of the large product, %6d MB' "$1" "$(number images_per_second "$file")" \
        "$(awk "BEGIN { print 100 * $(number share_of_floor "$file") }")" "$((${bytes:-0} / 1000000))"
    for word in teacher student backward update; do
        printf ', %s %2.0f %%' "$word" "$(awk "BEGIN { print 100 * $(number "$word" "$file") }")"
    done
    [ -z "$wait" ] || printf ', waiting %4.1f %%' "$(awk "BEGIN { print 100 * $wait }")"
    echo
}
fits() { # name, batch, arguments: whether two steps of this batch fit into the GPU
    local name="$1" batch="$2"
    shift 2
    timeout 120 "$binary" bench train --device cuda --steps 1 --json "$@" --set compute=bf16 --set "batch_size=$batch" >"$name.txt" 2>&1
}
largest() { # name, arguments: the largest power of two that fits, in $batch; 0 where 16 does not
    local name="$1"
    shift
    batch=0
    [ "${LARGEST:-1}" = 0 ] && batch=64 && return
    for size in 16 32 64 128 256 512 1024 2048; do
        fits "$name-$size" "$size" "$@" || break
        batch="$size"
    done
}
beside() { # part, geometry, batch, eager or compiled: PyTorch beside macula; half the batch where PyTorch lacks the memory
    local part="$1" geometry="$2" size="$3" mode="$4" flags name ours
    while [ "$size" -ge 16 ]; do
        name="$part-$size-$mode" ours="$part-$size-packing-true.txt"
        flags=(--geometry "$geometry" --device cuda --dtype bf16 --batch "$size" --repetitions 1 --steps 8 --python "$python")
        [ "$mode" = compiled ] && flags+=(--compile)
        [ -s "$ours" ] && flags+=(--macula-result "$ours")
        say "$part, batch $size, PyTorch $mode"
        if "$python" "$here/../peers/compare_train.py" "$binary" "${flags[@]}" >"$name.txt" 2>&1; then
            cat "$name.txt"
            return 0
        fi
        tail -n 1 "$name.txt"
        grep -qi 'out of memory' "$name.txt" || { failed=1; return 1; }
        size=$((size / 2))
    done
}

say machine
has nvidia-smi && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$binary" doctor | grep -E '^(macula|machine|CUDA|  loads|  trains)'
[ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null || { say "no PyTorch: macula alone"; python=""; }
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
                loss="$(sed -n "${step}p" "curve-$curve/metrics.jsonl" 2>/dev/null | grep -o '"loss":[^,}]*' | head -n 1)"
                loss="${loss#*:}"
                line="$line  ${loss:-none}"
            done
            echo "$line"
        done >curves.txt
        cat curves.txt
        ;;
    feed)
        for crops_on in cpu gpu; do
            run "feed-$crops_on" "$binary" bench train --device cuda --geometry c --data "$(rows train)" --steps 20 --json \
                --set compute=bf16 --set batch_size=64 --set "data.loader.crops_on=$crops_on"
            say "ViT-S/14 at 224 px, crops on $crops_on"
            step "feed-$crops_on"
        done
        ;;
    small | base)
        geometry=c
        [ "$part" = base ] && geometry=d
        largest "fits-$part" --geometry "$geometry"
        for size in 64 "$batch"; do
            for packing in true false; do
                name="$part-$size-packing-$packing"
                run "$name" "$binary" bench train --device cuda --geometry "$geometry" --set compute=bf16 --set "batch_size=$size" --steps 8 --json \
                    --set "sequence_packing=$packing"
                say "$part, batch $size, sequence packing $packing"
                step "$name"
            done
            [ -z "$python" ] || for mode in eager compiled; do
                beside "$part" "$geometry" "$size" "$mode"
            done
            [ "$batch" -le 64 ] && break
        done
        ;;
    memory)
        say "largest batch (powers of two) at 224 px, 2 + 8 crops, bf16: network, checkpointing, batch, MB, images/s"
        for arch in vit-small/14 vit-base/14 vit-large/14; do
            for checkpointing in false true; do
                name="memory-${arch%/*}-$checkpointing"
                largest "$name" --geometry c --set "arch=$arch" --set "gradient_checkpointing=$checkpointing"
                found="$name-$batch.txt"
                bytes="$(number cuda_peak_bytes "$found" 2>/dev/null)"
                echo "$arch  $checkpointing  $batch  $((${bytes:-0} / 1000000))  $(number images_per_second "$found" 2>/dev/null)"
            done
        done >memory.txt
        cat memory.txt
        ;;
    train)
        recipe=(train --device cuda --data "$(rows train)" --knn-data "$(rows train)" --force --set compute=bf16)
        recipe+=(--set backbone.embed_dim=384 --set backbone.num_heads=6 --set backbone.depth=3)
        recipe+=(--set "crops.global.scale=[0.5,1.0]" --set crops.flip=0)
        run untrained "$binary" "${recipe[@]}" --out untrained --set steps=1
        run rate "$binary" "${recipe[@]}" --out rate --set steps=300 --set monitor.knn.every=100000 &&
            rate="$(tail -n 1 rate/metrics.jsonl | grep -o '"images_per_second":[0-9.]*' | sed 's/.*://')" &&
            steps="$(awk "BEGIN { print int(${TRAIN_SECONDS:-480} * $rate / 64) }")" &&
            run train "$binary" "${recipe[@]}" --out fashion --set "steps=$steps" --set monitor.knn.every=2000
        say "pretraining on $data"
        tail -n 2 train.txt
        say "share of the time without a batch: the first lines of the log and the last"
        grep -o '"data_wait":[^,}]*' fashion/metrics.jsonl | sed -n '2p;$p'
        ;;
    distil)
        run distil "$binary" distill --teacher fashion --recipe distill-features --device cuda --data "$(rows train)" --out student --force \
            --set compute=bf16 --set steps=6000 --set backbone.embed_dim=192 --set backbone.depth=3 --set backbone.num_heads=3
        say "a student of a quarter of the weights"
        tail -n 1 distil.txt
        ;;
    evaluate)
        say "10,000 test images: k-NN (k = 20), linear probe"
        for model in fashion student untrained pixels; do
            source=(--model "$model" --device cuda)
            [ "$model" = pixels ] && source=(--model pixels)
            for half in train test; do
                run "extract-$model-$half" "$binary" extract "${source[@]}" --data "$(rows "$half")" --out "features/$model/$half" --force
            done
            pair=(--train "features/$model/train" --test "features/$model/test" --json)
            run "knn-$model" "$binary" eval knn "${pair[@]}" --k 20
            run "probe-$model" "$binary" eval linear-probe "${pair[@]}"
            echo "$model  $(number top1 "knn-$model.txt")  $(number top1 "probe-$model.txt")"
        done >evaluate.txt
        cat evaluate.txt
        ;;
    *) say "expected ops, curves, feed, small, base, memory, train, distil or evaluate, found $part" ;;
    esac
done

tar czf results.tar.gz $(ls -- *.txt */metrics.jsonl 2>/dev/null)
say "all results in $PWD, those worth keeping in results.tar.gz ($(($(stat -c %s results.tar.gz) / 1000)) kB)"
for compute in f32 bf16; do
    [ -s "ops-$compute.txt" ] || continue
    echo "operations in $compute, largest difference from the CPU as a share of what rounding explains: $(worst "ops-$compute.txt")"
done
[ ! -s curves.txt ] || { echo "losses: step, cpu f32, cuda f32, cuda bf16, cuda f32 with crops of its own"; cat curves.txt; }
for file in feed-cpu feed-gpu small-*-packing-* base-*-packing-*; do
    step "${file%.txt}"
done
for file in small-*-eager.txt small-*-compiled.txt base-*-eager.txt base-*-compiled.txt; do
    [ ! -s "$file" ] || { echo "${file%.txt}, beside PyTorch:"; grep '|' "$file"; }
done
[ ! -s memory.txt ] || { echo "largest batch: network, checkpointing, batch, MB, images/s"; cat memory.txt; }
[ ! -s evaluate.txt ] || { echo "10,000 test images: k-NN (k = 20), linear probe"; cat evaluate.txt; }
exit $failed
