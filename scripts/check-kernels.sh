#!/usr/bin/env bash
# Checks kernels on machines that lack what they are for: runs each CUDA kernel on the CPU under an emulation of CUDA's blocks
# and threads against plain loops in f64, compiles all of them with nvcc, and runs the products that use AMX with its
# instructions emulated.
#
#     scripts/check-kernels.sh
#
# The first needs a C++ compiler, the second NVIDIA's wheels (scripts/cuda-toolkit.sh), the third a processor with AVX-512. What
# is missing is *not run*.
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
    # One source for every GPU (no kernel asks which it is compiled for): to PTX for compute capability 8.0, as it is shipped,
    # and from there to a device's own code, where ptxas tells of registers, and whether any spill.
    compile() { # source
        local name=$out/$(basename "$1" .cu)
        "$root/bin/nvcc" -ptx -arch=compute_80 -std=c++17 -O3 -o "$name.ptx" "$1" >"$name.log" 2>&1 &&
            "$root/bin/ptxas" --gpu-name sm_90 -v -o "$name.cubin" "$name.ptx" >>"$name.log" 2>&1 || {
            cat "$name.log"
            echo "$1 does not compile"
            return 1
        }
    }
    export -f compile
    export root out
    ! grep -l __CUDA_ARCH__ src/ops/cuda/* || {
        echo "a kernel goes by the compute capability: compile it for each of them here"
        exit 1
    }
    # The longest first.
    ls -S src/ops/cuda/*.cu | xargs -P "$(nproc)" -I {} bash -c 'compile {}'
    echo "kernels compile to PTX for compute capability 80, and from there for 90"
    cat "$out"/*.log >"$out/ptxas"
    spilling=$(grep -B1 -E '[1-9][0-9]* bytes spill stores' "$out/ptxas" | grep -oE "'[a-z_0-9]+'|for '[^']*'" | tr '\n' ' ' || true)
    echo "kernels that spill registers on compute capability 90: ${spilling:-none}"
else
    echo "kernels through nvcc: not run (NVIDIA's wheels could not be fetched)"
fi

if grep -qw avx512bw /proc/cpuinfo 2>/dev/null && grep -qw avx512_bf16 /proc/cpuinfo && command -v gcc >/dev/null; then
    gcc -O2 -mfma -Wall -Wextra -Werror -shared -fPIC -o "$out/amx.so" scripts/kernels/amx.c
    tests=$(cargo test --release --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
    LD_PRELOAD="$out/amx.so" "$tests" ops::products --quiet 2>"$out/amx"
    grep -E 'emulated AMX: [1-9][0-9]* products' "$out/amx"
else
    echo "products on AMX, emulated: not run (no AVX-512 with bf16, or no gcc)"
fi
