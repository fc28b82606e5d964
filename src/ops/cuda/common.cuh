// What all kernels share: numbers in f32 whatever they are stored as, and sums over a block in a fixed order.
#pragma once
#ifdef EMULATED
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <mma.h>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]
#endif

typedef __nv_bfloat16 bf16;

// Threads of a block that works on one row.
#define ROW_THREADS 256

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }

// x as it would come back from being stored.
template <typename T> __device__ inline float rounded(float x) { return wide(narrow<T>(x)); }

// The sum over all threads of a block, in every thread. Blocks are whole warps.
__device__ inline float block_sum(float x) {
    __shared__ float parts[32];
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += parts[i];
    __syncthreads();
    return sum;
}

__device__ inline float block_max(float x) {
    __shared__ float parts[32];
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float most = parts[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) most = fmaxf(most, parts[i]);
    __syncthreads();
    return most;
}
