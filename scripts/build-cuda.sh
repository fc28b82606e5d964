#!/usr/bin/env bash
# Builds the program with CUDA on a machine without CUDA or a GPU, and leaves it in target/cuda/bayesteach, with the
# test of all kernels against the CPU beside it (target/cuda/check).
#
#     scripts/build-cuda.sh [COMPUTE_CAPABILITY]   # 80 if not given: A100 and everything newer
#     scripts/build-cuda.sh --check                # only checks that everything compiles, in much less time
#
# Kernels are compiled for that compute capability and run on it and on newer ones; 90 is an H100 or H200, 89 an RTX 40,
# 86 an RTX 30. On a machine that has CUDA, `cargo build --release --features cuda` is all that is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! [[ "${1:-80}" =~ ^(--check|[0-9]{2,3})$ ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    [[ "$1" =~ ^(-h|--help)$ ]] && exit 0
    echo "$1 is no compute capability: 80, 86, 89, 90, 100, 120" >&2
    exit 2
fi
root=$(scripts/cuda-toolkit.sh)
export CUDA_HOME=$root CUDA_PATH=$root CUDA_TOOLKIT_ROOT_DIR=$root
export PATH=$root/bin:$PATH
export CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
export LIBRARY_PATH=$root/lib:$root/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}

if [ "${1:-}" = "--check" ]; then
    # Candle's matrix products on GGUF blocks, which this program never calls, take nine tenths of nvcc's time. Nothing
    # is linked here, so that empty objects do.
    wrapper=$PWD/target/cuda-check/nvcc
    mkdir -p "$(dirname "$wrapper")"
    cat >"$wrapper" <<WRAPPER
#!/usr/bin/env bash
if [[ "\$*" =~ (mmq_gguf/|moe/|mmvq_gguf) && "\$*" =~ (^|[[:space:]])-o[[:space:]]+([^[:space:]]+\.o) ]]; then
    echo | gcc -x c -c -o "\${BASH_REMATCH[2]}" -
else
    exec "$root/bin/nvcc" "\$@"
fi
WRAPPER
    chmod +x "$wrapper"
    export NVCC=$wrapper CUDA_COMPUTE_CAP=80
    cargo clippy --release --features cuda --all-targets --quiet --target-dir target/cuda-check -- -D warnings
    echo "the program and its tests compile with --features cuda"
    exit
fi

export CUDA_COMPUTE_CAP=${1:-80}
# In one go, which compiles everything once: a test is built with the program.
built=$(cargo test --release --features cuda --target-dir target/cuda-build --test cuda --no-run --message-format=json)
executable() { sed -n "s/.*\"executable\":\"\([^\"]*\/$1\)\".*/\1/p" <<<"$built" | tail -1; }
mkdir -p target/cuda
cp "$(executable bayesteach)" target/cuda/bayesteach
cp "$(executable 'cuda-[^"\/]*')" target/cuda/check
strip target/cuda/bayesteach target/cuda/check
echo "target/cuda/bayesteach: $(du -h target/cuda/bayesteach | cut -f1), for compute capability $CUDA_COMPUTE_CAP and newer"
