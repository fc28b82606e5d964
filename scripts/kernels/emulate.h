// Enough of CUDA's language to run the kernels of src/ops/cuda on a CPU, one block after the other: a block's threads are
// fibers that go on in turn, and wait for each other at the barriers. Slow, but every rule of a kernel (who reads what,
// when, in which order of sums) is executed as it is written.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(n)
#define DYNAMIC_SHARED(name) char *name = emulated::shared_memory
#ifndef __forceinline__
#define __forceinline__ inline
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulated {
extern dim3 thread, block, threads, blocks;
extern char *shared_memory;
// Waits until all threads of the block, or of the warp, are here.
void block_barrier();
void warp_barrier();
float exchange(float value, int lane_mask);
// Runs a kernel: `body` is one thread's work.
void launch(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()> &body);
}  // namespace emulated

#define threadIdx emulated::thread
#define blockIdx emulated::block
#define blockDim emulated::threads
#define gridDim emulated::blocks

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp() { emulated::warp_barrier(); }
inline float __shfl_xor_sync(unsigned, float value, int mask) { return emulated::exchange(value, mask); }

// Rounds to nearest, ties to even, as the hardware does.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t wide = (uint32_t)x.bits << 16;
    float f;
    std::memcpy(&f, &wide, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t wide;
    std::memcpy(&wide, &f, 4);
    if (std::isnan(f)) return {0x7fff};
    return {(uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}

// A warp's matrix fragment: here every lane has all of it. Loads and stores wait for the warp, so that what lanes wrote
// before is there.
namespace emulated_wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout { mem_row_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    float x[16][16];
};
template <typename F> void fill_fragment(F &f, float value) {
    for (auto &row : f.x) std::fill(row, row + 16, value);
}
inline void check(const void *at, size_t stride_bytes) {
    if ((uintptr_t)at % 32 || stride_bytes % 16) {
        std::fprintf(stderr, "a fragment at %p with rows of %zu bytes is not aligned\n", at, stride_bytes);
        std::abort();
    }
}
template <typename Use, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, Layout> &f, const __nv_bfloat16 *from, int stride) {
    emulated::warp_barrier();
    check(from, stride * sizeof *from);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            f.x[i][j] = __bfloat162float(std::is_same<Layout, row_major>::value ? from[i * stride + j]
                                                                                : from[j * stride + i]);
}
template <typename A, typename B, typename C> void mma_sync(C &d, const A &a, const B &b, const C &c) {
    C sum = c;
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 16; j++) sum.x[i][j] += a.x[i][k] * b.x[k][j];
    d = sum;
}
template <typename F> void store_matrix_sync(float *to, const F &f, int stride, layout) {
    check(to, stride * sizeof *to);
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) to[i * stride + j] = f.x[i][j];
    emulated::warp_barrier();
}
}  // namespace emulated_wmma
