// Rotary position embedding, half-split: (x[i], x[i + half]) of every head turns by its row's angle i.
#include "common.cuh"

template <typename T>
__device__ void rotate(const T *x, const T *cosines, const T *sines, T *y, int width, int half, float sign) {
    size_t row = blockIdx.x;
    x += row * width, y += row * width;
    cosines += row * half, sines += row * half;
    for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
        int i = pair % half, first = pair / half * 2 * half + i;
        float c = wide(cosines[i]), s = sign * wide(sines[i]);
        float a = wide(x[first]), b = wide(x[first + half]);
        y[first] = narrow<T>(a * c - b * s);
        y[first + half] = narrow<T>(b * c + a * s);
    }
}

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void rope_##name(const T *x, const T *cosines, const T *sines, T *y, int width, int half,  \
                                           float sign) {                                                             \
        rotate<T>(x, cosines, sines, y, width, half, sign);                                                          \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
