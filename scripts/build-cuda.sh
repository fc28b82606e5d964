#!/usr/bin/env bash
# Builds the program with CUDA on a machine without CUDA or a GPU, and leaves it in target/cuda/bayesteach, with the
# test of all kernels against the CPU beside it (target/cuda/check).
#
#     scripts/build-cuda.sh [COMPUTE_CAPABILITY]   # 80 if not given: A100 and everything newer
#     scripts/build-cuda.sh --check                # only checks that everything compiles, in much less time
#
# Kernels for 80, 86 (RTX 30) and 89 (RTX 40) run on that compute capability and on newer ones; candle's for 90 (H100, H200) and
# above on that one alone. On a machine that has CUDA, `cargo build --release --features cuda` is all that is needed.
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
    # Only Rust is checked here, and nothing is linked, so that empty files do for kernels (scripts/check-kernels.sh compiles
    # this program's; candle's take most of an hour).
    wrapper=$PWD/target/checks/nvcc
    mkdir -p "$(dirname "$wrapper")"
    cat >"$wrapper" <<WRAPPER
#!/usr/bin/env bash
if [[ "\$*" =~ (^|[[:space:]])-o[[:space:]]+([^[:space:]]+\.o) ]]; then
    echo | gcc -x c -c -o "\${BASH_REMATCH[2]}" -
elif [[ "\$*" =~ (^|[[:space:]])-o[[:space:]]+([^[:space:]]+\.ptx) ]]; then
    : >"\${BASH_REMATCH[2]}"
else
    exec "$root/bin/nvcc" "\$@"
fi
WRAPPER
    chmod +x "$wrapper"
    export NVCC=$wrapper CUDA_COMPUTE_CAP=80
    cargo clippy --release --features cuda --all-targets --quiet --target-dir target/checks -- -D warnings
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
echo "target/cuda/bayesteach: $(du -h target/cuda/bayesteach | cut -f1), for compute capability $CUDA_COMPUTE_CAP$([ "$CUDA_COMPUTE_CAP" -ge 90 ] || echo " and newer")"
