#!/usr/bin/env bash
# Times training steps of this program and of transformers + PEFT back to back, and prints the ratios.
#
#     scripts/bench.sh [PYTHON]
#
# PYTHON is an interpreter with the packages of scripts/requirements.txt. Nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
cargo build --release --quiet
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

compare() { # name, arguments of both
    local name=$1
    shift
    echo "$name: bayesteach bench $*" >&2
    ./target/release/bayesteach bench "$@" --json >"$out/ours.json"
    "$python" -W ignore scripts/bench_peft.py "$@" --json >"$out/peft.json" 2>/dev/null
    "$python" -W ignore scripts/bench_peft.py "$@" --plain --json >"$out/plain.json" 2>/dev/null
    "$python" - "$out" "$name" <<'PY'
import json, sys
folder, name = sys.argv[1:]
ours, peft, plain = (json.load(open(f"{folder}/{kind}.json")) for kind in ("ours", "peft", "plain"))
def above(report):
    return report["peak_memory_bytes"] - report["memory_before_bytes"]
def row(who, r):
    print(f"| {name} | {who} | {r['tokens_per_second']:.0f} | {r['cpu_seconds_per_step']:.2f} | {above(r) / 1e6:.0f} MB |"
          f" {r['cpu_seconds_per_step'] / ours['cpu_seconds_per_step']:.2f} | {above(ours) / above(r):.2f} |")
row("bayesteach", ours)
row("PEFT, head at answers", peft)
row("PEFT, plain", plain)
PY
}

echo "| work | program | tokens/s | CPU s a step | memory above weights | our tokens per CPU second, times theirs | our memory, of theirs |"
echo "|---|---|---|---|---|---|---|"
compare "small, 4 × 512" --shape small --seq 512 --batch 4 --answers 50 --steps 5
compare "small, 4 × 512, recomputation" --shape small --seq 512 --batch 4 --answers 50 --steps 5 --checkpointing block
compare "qwen2.5-0.5b, 1 × 512" --shape qwen2.5-0.5b --seq 512 --batch 1 --answers 50 --steps 3
