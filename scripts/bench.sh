#!/usr/bin/env bash
# Times training steps of this program and of transformers + PEFT in turns, and prints the ratios of the best of each.
#
#     scripts/bench.sh [PYTHON [ROUNDS]]
#
# PYTHON is an interpreter with the packages of scripts/requirements.txt. Nothing else should run meanwhile; where the host of
# a virtual machine takes processor time away, CPU seconds grow too, so each program's quickest of ROUNDS (3) counts. In bf16
# PEFT is timed with its adapter in f32, as it comes, and in bf16.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
rounds=${2:-3}
cargo build --release --quiet
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

peft() { "$python" -W ignore scripts/bench_peft.py "$@" --json 2>/dev/null; }

compare() { # name, arguments of both
    local name=$1
    shift
    rm -f "$out"/*.json
    for round in $(seq "$rounds"); do
        echo "$name, round $round: bayesteach bench $*" >&2
        ./target/release/bayesteach bench "$@" --json >"$out/ours-$round.json"
        peft "$@" >"$out/peft-$round.json"
        case $* in *bf16*) peft "$@" --adapter-in-dtype >"$out/rounded-$round.json" ;; esac
    done
    peft "$@" --plain >"$out/plain-1.json"
    "$python" - "$out" "$name" <<'PY'
import glob, json, sys
folder, name = sys.argv[1:]
def best(kind):
    runs = [json.load(open(path, encoding="utf-8")) for path in sorted(glob.glob(f"{folder}/{kind}-*.json"))]
    runs.sort(key=lambda r: r["cpu_seconds_per_step"])
    return runs[0], [r["cpu_seconds_per_step"] for r in runs]
ours = best("ours")[0]
def above(report):
    return report["peak_memory_bytes"] - report["memory_before_bytes"]
kinds = {"ours": "bayesteach", "peft": "PEFT, head at answers", "rounded": "the same, adapter in bf16", "plain": "PEFT, plain"}
for kind, who in kinds.items():
    if not glob.glob(f"{folder}/{kind}-*.json"):
        continue
    r, all_of = best(kind)
    seconds = " ".join(f"{s:.2f}" for s in all_of)
    print(f"| {name} | {who} | {r['tokens_per_second']:.0f} | {seconds} | {above(r) / 1e6:.0f} MB |"
          f" {r['cpu_seconds_per_step'] / ours['cpu_seconds_per_step']:.2f} | {above(ours) / above(r):.2f} |", flush=True)
PY
}

echo "| work | program | tokens/s | CPU s a step, each round | memory above weights | our tokens per CPU second, times theirs | our memory, of theirs |"
echo "|---|---|---|---|---|---|---|"
compare "small, 4 × 512" --shape small --seq 512 --batch 4 --answers 50 --steps 5
compare "small, 4 × 512, recomputation" --shape small --seq 512 --batch 4 --answers 50 --steps 5 --checkpointing block
compare "qwen2.5-0.5b, 1 × 512" --shape qwen2.5-0.5b --seq 512 --batch 1 --answers 50 --steps 3
compare "small, 4 × 512, bf16" --shape small --seq 512 --batch 4 --answers 50 --steps 5 --dtype bf16
compare "qwen2.5-0.5b, 1 × 512, bf16" --shape qwen2.5-0.5b --seq 512 --batch 1 --answers 50 --steps 3 --dtype bf16
