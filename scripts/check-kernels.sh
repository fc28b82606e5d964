#!/usr/bin/env bash
# Checks the CUDA kernels without a GPU: runs each on the CPU under an emulation of CUDA's blocks and threads against plain
# loops in f64, and compiles all of them with nvcc for every compute capability from 8.0 on.
#
#     scripts/check-kernels.sh
#
# The first needs a C++ compiler, the second NVIDIA's wheels (scripts/cuda-toolkit.sh). What is missing is *not run*.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

if command -v g++ >/dev/null; then
    g++ -std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter -DEMULATED -I scripts/kernels \
        -I src/ops/cuda scripts/kernels/check.cpp scripts/kernels/emulate.cpp -o "$out/check"
    "$out/check"
else
    echo "kernels on the CPU: not run (no g++)"
fi

if root=$(scripts/cuda-toolkit.sh 2>"$out/log"); then
    for capability in 80 90 120; do
        for source in src/ops/cuda/*.cu; do
            "$root/bin/nvcc" -ptx -std=c++17 -O3 -arch=compute_$capability -o "$out/kernel.ptx" "$source"
        done
        echo "kernels compile for compute capability $capability"
    done
    # What ptxas makes of them for a device: registers, and whether any spill.
    for source in src/ops/cuda/*.cu; do
        "$root/bin/nvcc" -cubin -std=c++17 -O3 -arch=sm_90 -Xptxas -v -o "$out/kernel.cubin" "$source" 2>>"$out/ptxas"
    done
    spilling=$(grep -B1 -E '[1-9][0-9]* bytes spill stores' "$out/ptxas" | grep -oE "'[a-z_0-9]+'|for '[^']*'" | tr '\n' ' ' || true)
    echo "kernels that spill registers on compute capability 90: ${spilling:-none}"
else
    echo "kernels through nvcc: not run (NVIDIA's wheels could not be fetched)"
fi
