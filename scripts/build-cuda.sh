#!/usr/bin/env bash
# Builds the program with CUDA on a machine without CUDA or a GPU, and leaves it in target/cuda/bayesteach.
#
#     scripts/build-cuda.sh [COMPUTE_CAPABILITY]   # 80 if not given: A100 and everything newer
#
# Kernels are compiled for that compute capability and run on it and on newer ones; 90 is an H100 or H200, 89 an RTX 40,
# 86 an RTX 30. On a machine that has CUDA, `cargo build --release --features cuda` is all that is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(scripts/cuda-toolkit.sh)
export CUDA_HOME=$root CUDA_PATH=$root CUDA_TOOLKIT_ROOT_DIR=$root
export PATH=$root/bin:$PATH
export CUDA_COMPUTE_CAP=${1:-80}
export CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
export LIBRARY_PATH=$root/lib:$root/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}
cargo ${CARGO_COMMAND:-build} --release --features cuda --target-dir target/cuda-build
if [ -z "${CARGO_COMMAND:-}" ]; then
    mkdir -p target/cuda
    cp target/cuda-build/release/bayesteach target/cuda/bayesteach
    strip target/cuda/bayesteach
    echo "target/cuda/bayesteach: $(du -h target/cuda/bayesteach | cut -f1), for compute capability $CUDA_COMPUTE_CAP and newer"
fi
