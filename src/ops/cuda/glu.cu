// Gated MLP activation: act(gate) up, with SiLU or the tanh form of GELU.
#include "common.cuh"

struct Activated {
    float value, slope;
};

__device__ inline Activated activate(float x, int gelu) {
    if (!gelu) {
        float sigmoid = 1.0f / (1.0f + expf(-x));
        return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
    }
    const float a = 0.7978845608028654f, c = 0.044715f;
    float t = tanhf(a * (x + c * x * x * x));
    float slope = a * (1.0f + 3.0f * c * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope};
}

template <typename T> __device__ void forward(const T *gate, const T *up, T *y, size_t n, int gelu) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(rounded<T>(activate(wide(gate[i]), gelu).value) * wide(up[i]));
}

template <typename T>
__device__ void backward(const T *gate, const T *up, const T *dy, T *gate_grad, T *up_grad, size_t n, int gelu) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Activated at = activate(wide(gate[i]), gelu);
    gate_grad[i] = narrow<T>(wide(dy[i]) * wide(up[i]) * at.slope);
    up_grad[i] = narrow<T>(wide(dy[i]) * at.value);
}

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void glu_forward_##name(const T *gate, const T *up, T *y, size_t n, int gelu) {            \
        forward<T>(gate, up, y, n, gelu);                                                                            \
    }                                                                                                                \
    extern "C" __global__ void glu_backward_##name(const T *gate, const T *up, const T *dy, T *gate_grad,            \
                                                   T *up_grad, size_t n, int gelu) {                                 \
        backward<T>(gate, up, dy, gate_grad, up_grad, n, gelu);                                                      \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
