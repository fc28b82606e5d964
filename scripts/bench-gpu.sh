#!/usr/bin/env bash
# On a machine with a GPU: is every kernel right, and how fast is a training step?
#
#     scripts/bench-gpu.sh [FOLDER] [PYTHON]     # FOLDER gets the results as JSON; target/bench-gpu if not given
#
# First every operation and whole tiny models on CUDA against the CPU; the speed of a wrong kernel is worth nothing, so
# the script stops there if one differs. Then training steps of named shapes in bf16, with and without recomputation.
# PYTHON is an interpreter with torch for CUDA and the packages of scripts/requirements.txt; with it, the same work is
# done by transformers + PEFT. The program is target/cuda/bayesteach (scripts/build-cuda.sh makes it, also elsewhere), or
# is built here where it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/bench-gpu}
python=${2:-}
mkdir -p "$out"
program=target/cuda/bayesteach
check=target/cuda/check
if [ ! -x "$program" ]; then
    if command -v nvcc >/dev/null; then
        cargo build --release --features cuda
        program=target/release/bayesteach
        check="cargo test --release --features cuda --test cuda --"
    else
        scripts/build-cuda.sh
    fi
fi

echo "== correctness"
$check --test-threads 1 --nocapture >"$out/correctness.txt" 2>&1 || {
    tail -30 "$out/correctness.txt"
    echo "a kernel differs from the CPU: $out/correctness.txt has all of it" >&2
    exit 1
}
tail -3 "$out/correctness.txt"

echo "== speed"
row() { # file, who
    sed -E 's/.*"checkpointing":"([a-z]+)".*"step_seconds":([0-9.e-]+).*"tokens_per_second":([0-9.e+]+).*"flops_per_second":([0-9.e+]+).*"matmul_flops_per_second":([0-9.e+]+).*"peak_memory_bytes":([0-9]+).*/\1 \2 \3 \4 \5 \6/' "$1" |
        awk -v who="$2" '{ printf "| %s | %s | %.3f | %.0f | %.0f %% | %.1f GB |\n", who, $1, $2, $3, 100 * $4 / $5, $6 / 1e9 }'
}
echo "| program and shape | recomputation | s a step | tokens/s | of the matrix product's rate | peak memory |"
echo "|---|---|---|---|---|---|"
for shape in llama-3.2-1b llama-3.2-3b llama-3.1-8b; do
    for checkpointing in none block; do
        work="--shape $shape --seq 1024 --batch 8 --answers 50 --steps 5 --checkpointing $checkpointing"
        if "$program" bench $work --device cuda:0 --json >"$out/$shape-$checkpointing.json" 2>"$out/error.txt"; then
            row "$out/$shape-$checkpointing.json" "bayesteach, $shape"
        else
            echo "| bayesteach, $shape | $checkpointing | $(tail -1 "$out/error.txt") | | | |"
        fi
        if [ -n "$python" ]; then
            if "$python" -W ignore scripts/bench_peft.py $work --device cuda --dtype bf16 --json \
                >"$out/$shape-$checkpointing-peft.json" 2>"$out/error.txt"; then
                "$python" -c "import json, sys
r = json.load(open(sys.argv[1]))
print(f'| PEFT, {sys.argv[2]} | {sys.argv[3]} | {r[\"step_seconds\"]:.3f} | {r[\"tokens_per_second\"]:.0f} | | {r[\"peak_memory_bytes\"] / 1e9:.1f} GB |')" \
                    "$out/$shape-$checkpointing-peft.json" "$shape" "$checkpointing"
            else
                echo "| PEFT, $shape | $checkpointing | $(tail -1 "$out/error.txt") | | | |"
            fi
        fi
    done
done
