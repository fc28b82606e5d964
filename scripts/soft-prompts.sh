#!/usr/bin/env bash
# Where soft prompts suffice and where they cannot: a small model learns coins of unknown bias, then a soft prompt (and LoRA
# beside it) is tuned for one coin of bias .8 and for a mixture of two coins. Prints the expected regret over 50 flips.
#
#     scripts/soft-prompts.sh FOLDER "0 1 2"
#
# FOLDER gets the runs; what is there is kept. About 10 minutes on two cores with one seed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 seeds=${2:-0}
program=${BAYESTEACH:-target/release/bayesteach}
base=$out/soft-prompts-base
[ -d "$base/model" ] ||
    "$program" train configs/papers/soft-prompts-base.toml --set run.dir="$out" $([ -d "$base" ] && echo --resume)

mixture='teacher.coins.prior={ mixture = { components = [[0.8, 0.2], [0.2, 0.8]] } }'
# The same file without its [prefix]: LoRA of rank 4.
awk '/^\[/ { skip = /^\[prefix\]/ } !skip' configs/papers/soft-prompts.toml >"$out/lora.toml"
for seed in $seeds; do
    for what in prefix lora; do
        config=configs/papers/soft-prompts.toml
        set --
        [ $what = lora ] && config=$out/lora.toml && set -- --set lora.r=4 --set lora.alpha=8 --set optimizer.lr=5e-3
        for task in coin mixture; do
            name=$what-$task-$seed
            [ -s "$out/$name/eval.json" ] && continue
            task_set=()
            [ $task = mixture ] && task_set=(--set "$mixture")
            "$program" run "$config" --set model.source="$base/model" --set run.dir="$out" --set run.name="$name" \
                --set run.seed="$seed" "$@" "${task_set[@]}"
        done
    done
done
python3 - "$out" $seeds <<'PY'
import json, math, sys
out, seeds = sys.argv[1], sys.argv[2:]
# The regret of a predictor is that of the exact one plus its KL from it, over 50 flips. The exact one of a known coin has
# none; that of two coins has ln 2, less what 50 flips leave undecided (nothing, to five digits).
exact = {"coin": 0.0, "mixture": math.log(2)}
print("| expected regret over 50 flips (nats) | one coin of .8 | a mixture of two |\n|---|---|---|")
def row(text, of):
    cells = []
    for task in ("coin", "mixture"):
        values = [of(task, seed) for seed in seeds]
        cells.append(" / ".join(f"{v:.3f}" for v in values))
    print(f"| {text} | {' | '.join(cells)} |")
def regret(what, which):
    def of(task, seed):
        with open(f"{out}/{what}-{task}-{seed}/eval.json", encoding="utf-8") as f:
            return exact[task] + 50 * json.load(f)[which]["kl"]
    return of
row("untuned", regret("prefix", "baseline"))
row("soft prompt of 6", regret("prefix", "fine_tuned"))
row("LoRA of rank 4", regret("lora", "fine_tuned"))
row("exact", lambda task, seed: exact[task])
PY
