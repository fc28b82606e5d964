#!/usr/bin/env bash
# Makes a small base model that reads configs/worlds/flights-small.toml: its text, then its training, as make-base.sh does
# for the base that ships; data/README.md says what Python needs for both.
#
#     scripts/make-flights-base.sh FOLDER
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/make-flights-base.sh FOLDER}")
cd "$(dirname "$0")/.."
python3 scripts/make_flights_base.py "$out"
cargo run --release -- train configs/base.toml --set model.source="$out/model" --set run.dir="$out/runs" \
    --set data.train="$out/text/train.jsonl" --set data.validation="$out/text/validation.jsonl" --set train.max_steps=3000
echo "the snapshot is in $out/runs/base/model"
