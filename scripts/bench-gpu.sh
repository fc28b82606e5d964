#!/usr/bin/env bash
# On a machine with a GPU: is every kernel right, and how fast is a training step?
#
#     scripts/bench-gpu.sh [FOLDER] [PYTHON]     # FOLDER gets the results as JSON; target/bench-gpu if not given
#
# First every operation and whole tiny models on CUDA against the CPU; the speed of a wrong kernel is worth nothing, so
# the script stops there if one differs. Then training steps of named shapes in bf16, with and without recomputation, and the
# memory of 4-bit bases. PYTHON is an interpreter with torch for CUDA and the packages of scripts/requirements.txt; with it,
# the same work is done by transformers + PEFT (with its adapter in f32, as it comes, in bf16, and with logits at every token)
# and the ratio to its quickest is printed. The program is target/cuda/bayesteach with target/cuda/check beside it
# (scripts/build-cuda.sh makes both, also elsewhere), or is built here where they are not there.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/bench-gpu}
python=${2:-}
mkdir -p "$out"
program=target/cuda/bayesteach
check=target/cuda/check
if [ ! -x "$program" ] || [ ! -x "$check" ]; then
    command -v cargo >/dev/null || { echo "$program and $check are not there, and there is no cargo to build them" >&2; exit 1; }
    if command -v nvcc >/dev/null; then
        cargo build --release --features cuda
        program=target/release/bayesteach
        check="cargo test --release --features cuda --test cuda --"
    else
        scripts/build-cuda.sh
    fi
elif newer=$(find src -newer "$program" -name '*.[rc]*' | head -1) && [ -n "$newer" ]; then
    echo "warning: $newer is newer than $program: scripts/build-cuda.sh builds it again" >&2
fi
# CUDA's libraries, where the machine itself has none. Not the stub of the driver's beside them.
[ ! -d target/cuda-toolkit/root/lib ] ||
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(realpath target/cuda-toolkit/root/lib)
"$program" doctor >"$out/doctor.txt" 2>&1 || { cat "$out/doctor.txt"; echo "$program does not start here" >&2; exit 1; }
cat "$out/doctor.txt"

echo "== correctness"
$check --test-threads 1 --nocapture >"$out/correctness.txt" 2>&1 || {
    tail -30 "$out/correctness.txt"
    echo "the check on the GPU failed: $out/correctness.txt has all of it" >&2
    exit 1
}
tail -3 "$out/correctness.txt"

value() { grep -oE "\"$2\": ?[0-9.e+-]+" "$1" | sed 's/.*: *//'; } # file, key
# Prints a row; leaves the tokens per second in $speed.
row() { # who, checkpointing, file, command…
    local who=$1 checkpointing=$2 file=$3 share=""
    shift 3
    speed=0
    if ! "$@" >"$file" 2>"$out/error.txt"; then
        echo "| $who | $checkpointing | $(tail -1 "$out/error.txt") | | | | |"
        return
    fi
    speed=$(value "$file" tokens_per_second)
    if grep -q '"matmul_flops_per_second"' "$file"; then
        rate=$(value "$file" matmul_flops_per_second)
        work=$(value "$file" flops_per_step)
    fi
    # Of others the same work counts, against the same product.
    share=$(awk -v work="$work" -v rate="$rate" -v s="$(value "$file" step_seconds)" 'BEGIN { printf "%.0f %%", 100 * work / s / rate }')
    awk -v who="$who" -v c="$checkpointing" -v share="$share" -v s="$(value "$file" step_seconds)" -v t="$speed" \
        -v m="$(value "$file" peak_memory_bytes)" -v planned="$(value "$file" planned_memory_bytes || true)" \
        'BEGIN { printf "| %s | %s | %.3f | %.0f | %s | %.1f GB | %s |\n", who, c, s, t, share, m / 1e9, planned ? sprintf("%.1f GB", planned / 1e9) : "" }'
}

echo "== speed"
echo "| program and shape | recomputation | s a step | tokens/s | of the matrix product's rate | peak memory | planned |"
echo "|---|---|---|---|---|---|---|"
for shape in llama-3.2-1b llama-3.2-3b llama-3.1-8b; do
    for checkpointing in none block; do
        work=(--shape "$shape" --seq 1024 --batch 8 --answers 50 --steps 5 --checkpointing "$checkpointing" --json)
        name=$out/$shape-$checkpointing
        row "bayesteach, $shape" $checkpointing "$name.json" "$program" bench "${work[@]}" --device cuda:0
        [ -n "$python" ] && [ "$speed" != 0 ] || continue
        ours=$speed best=0
        for way in "" --adapter-in-dtype --plain; do
            row "PEFT, $shape $way" $checkpointing "$name-peft$way.json" \
                "$python" -W ignore scripts/bench_peft.py "${work[@]}" --device cuda --dtype bf16 $way
            best=$(awk -v a="$best" -v b="$speed" 'BEGIN { print (a > b) ? a : b }')
        done
        awk -v ours="$ours" -v best="$best" -v shape="$shape" -v c="$checkpointing" \
            'BEGIN { if (best > 0) printf "%s, recomputation %s: %.2f times the tokens/s of the quickest PEFT\n", shape, c, ours / best }' |
            tee -a "$out/ratios.txt" >&2
    done
done
for shape in llama-3.1-8b qwen2.5-14b; do
    row "bayesteach, $shape in q4_k, 2 × 1024" block "$out/$shape-q4_k.json" "$program" bench --shape "$shape" --seq 1024 \
        --batch 2 --answers 30 --steps 2 --checkpointing block --quantization q4_k --device cuda:0 --json
done
