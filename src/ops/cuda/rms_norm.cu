// RMSNorm, one block a row: y = x s w with s = 1 / sqrt(mean(x^2) + eps), or x s (1 + w) for Gemma.
#include "common.cuh"

template <typename T> __device__ float inverse_rms(const T *x, int width, float eps) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += wide(x[i]) * wide(x[i]);
    return 1.0f / sqrtf(block_sum(squares) / width + eps);
}

// Llama and Qwen round the normalised value before they multiply by the weight; Gemma multiplies in f32.
template <typename T>
__device__ void forward(const T *x, const T *w, T *y, int width, float eps, int one_plus) {
    x += (size_t)blockIdx.x * width;
    y += (size_t)blockIdx.x * width;
    float scale = inverse_rms(x, width, eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float normal = wide(x[i]) * scale;
        y[i] = narrow<T>(one_plus ? normal * (1.0f + wide(w[i])) : rounded<T>(normal) * wide(w[i]));
    }
}

// With g = dy f: dx = s g - x s^3 sum(g x) / D.
template <typename T>
__device__ void backward(const T *x, const T *w, const T *dy, T *dx, int width, float eps, int one_plus) {
    size_t row = (size_t)blockIdx.x * width;
    x += row, dy += row, dx += row;
    float scale = inverse_rms(x, width, eps), offset = one_plus ? 1.0f : 0.0f, dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) dot += wide(dy[i]) * (wide(w[i]) + offset) * wide(x[i]);
    float pull = scale * scale * scale * block_sum(dot) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        dx[i] = narrow<T>(wide(dy[i]) * (wide(w[i]) + offset) * scale - wide(x[i]) * pull);
}

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void rms_norm_forward_##name(const T *x, const T *w, T *y, int width, float eps,           \
                                                       int one_plus) {                                               \
        forward<T>(x, w, y, width, eps, one_plus);                                                                   \
    }                                                                                                                \
    extern "C" __global__ void rms_norm_backward_##name(const T *x, const T *w, const T *dy, T *dx, int width,       \
                                                        float eps, int one_plus) {                                   \
        backward<T>(x, w, dy, dx, width, eps, one_plus);                                                             \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
