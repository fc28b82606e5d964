#!/usr/bin/env bash
# What should a model be trained on? Trains the same base on the same users and the same evidence with four targets:
# the teacher's whole predictive distribution, its most probable option, a draw from it, and the user's true answer
# (the oracle). All are measured on the same episodes of the exact teacher, which training never saw.
#
#     scripts/compare-targets.sh CONFIG FOLDER "0 1 2" [MODEL]
#
# CONFIG as configs/quickstart.toml; FOLDER gets the runs and a NAME-SEED.json of measures each. What is there is kept. MODEL is
# a hub id or a folder; the config's if not given.
set -euo pipefail
cd "$(dirname "$0")/.."
config=$1 out=$2 seeds=${3:-0 1 2}
program=${BAYESTEACH:-target/release/bayesteach}
name=$(basename "$config" .toml)
mkdir -p "$out"

model=${4:-$(sed -n 's/^source = "\(.*\)"/\1/p' "$config")}
for seed in $seeds; do
    test_file=$out/$name-predictive-$seed/episodes/test.jsonl
    for target in predictive argmax sampled oracle; do
        case $target in
        oracle) set -- --set teacher.kind=oracle ;;
        *) set -- --set teacher.targets=$target ;;
        esac
        run=$name-$target-$seed
        result=$out/$run.json
        [ -s "$result" ] && continue
        resume=()
        [ -d "$out/$run" ] && resume=(--resume)
        "$program" train "$config" --set run.dir="$out" --set run.name="$run" --set run.seed="$seed" --set model.source="$model" \
            "$@" "${resume[@]}"
        "$program" eval --model "$model" --adapter "$out/$run/adapter" --episodes "$test_file" --out "$result"
    done
done
for seed in $seeds; do
    "$program" compare "$out/$name"-{predictive,argmax,sampled,oracle}-"$seed.json"
done
# All seeds together, and how much each target differs from the first on the same answers.
"$program" compare --pool $(for target in predictive argmax sampled oracle; do for seed in $seeds; do
    echo "$out/$name-$target-$seed.json"
done; done)
