#!/bin/sh
# Exports tiny models of every family in every format and runs them in the programs that the formats are for: PEFT,
# transformers, llama.cpp, gguf, mlx-lm.
#
#   python -m venv VENV && VENV/bin/pip install -r scripts/requirements.txt -r scripts/requirements-exports.txt
#   PYTHON=VENV/bin/python scripts/check-exports.sh [--family NAME]… [--work DIR]
#
# Prints a line a check and a table; fails if a check does.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --quiet
exec "${PYTHON:-python3}" scripts/check_exports.py target/release/bayesteach "$@"
