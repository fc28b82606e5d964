#!/usr/bin/env bash
# Makes the base model that ships in data/base: its text, then its training. See data/README.md.
#
#     scripts/make-base.sh FOLDER
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/make-base.sh FOLDER}")
cd "$(dirname "$0")/.."
python3 scripts/make_base.py "$out"
cargo run --release -- train configs/base.toml --set model.source="$out/model" --set run.dir="$out/runs" \
    --set data.train="$out/text/train.jsonl" --set data.validation="$out/text/validation.jsonl"
echo "the snapshot is in $out/runs/base/model"
