#!/usr/bin/env bash
# Sets up what a CUDA build needs on a machine without CUDA, from NVIDIA's own Python wheels: nvcc, headers, cuBLAS,
# cuRAND, NVRTC, and a stub of the driver's library to link against.
#
#     scripts/cuda-toolkit.sh [FOLDER]        # target/cuda-toolkit if not given; prints the toolkit's root
#
# It needs Python with venv, gcc, and a network for the wheels. It stays at CUDA 13.0: drivers of the 580 series load
# nothing newer.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-target/cuda-toolkit}")
venv=$folder/venv
if [ ! -e "$folder/done" ]; then
    mkdir -p "$folder"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88 >&2
    root=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
    ln -sfn lib "$root/lib64"
    for library in cudart:13 cublas:13 cublasLt:13 curand:10 nvrtc:13; do
        name=lib${library%:*}.so
        ln -sfn "$name.${library#*:}" "$root/lib/$name"
    done

    # The driver's own library comes with the driver. To link, a library of the same name that has all of its functions
    # is enough; it must never be found at run time.
    cargo fetch --quiet
    bindings=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -path '*/cudarc-0.19*/src/driver/sys/mod.rs' | sort | tail -1)
    mkdir -p "$root/lib/stubs"
    grep -oE '\bfn cu[A-Za-z0-9_]+' "$bindings" | sort -u | sed 's/^fn \(.*\)$/int \1(void) { return 999; }/' >"$folder/stub.c"
    gcc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so" "$folder/stub.c"
    ln -sfn "$root" "$folder/root"
    touch "$folder/done"
fi
realpath "$folder/root"
