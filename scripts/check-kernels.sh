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
    # For 9.0 down to a device's own code, so that ptxas tells of registers, and whether any spill.
    compile() { # capability, source
        local name=$out/$(basename "$2" .cu)-$1 kind=(-ptx -arch=compute_"$1")
        [ "$1" = 90 ] && kind=(-cubin -arch=sm_90 -Xptxas -v)
        "$root/bin/nvcc" "${kind[@]}" -std=c++17 -O3 -o "$name" "$2" 2>"$name.log" || {
            cat "$name.log"
            echo "$2 does not compile for compute capability $1"
            return 1
        }
    }
    export -f compile
    export root out
    # The longest first.
    ls -S src/ops/cuda/*.cu | while read -r source; do printf "%s $source\n" 80 90 120; done |
        xargs -P "$(nproc)" -L 1 bash -c 'compile "$0" "$1"'
    echo "kernels compile for compute capabilities 80, 90 and 120"
    cat "$out"/*-90.log >"$out/ptxas"
    spilling=$(grep -B1 -E '[1-9][0-9]* bytes spill stores' "$out/ptxas" | grep -oE "'[a-z_0-9]+'|for '[^']*'" | tr '\n' ' ' || true)
    echo "kernels that spill registers on compute capability 90: ${spilling:-none}"
else
    echo "kernels through nvcc: not run (NVIDIA's wheels could not be fetched)"
fi
