// One AdamW update of one parameter, as torch has it: decoupled decay, then the step.
#include "common.cuh"

struct AdamW {
    float keep1, take1, keep2, take2, root, eps, rate, decay, factor;
};

extern "C" __global__ void adamw_f32(const float *gradient, const float *p, const float *m, const float *v,
                                     float *p_out, float *m_out, float *v_out, size_t n, AdamW step) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float g = gradient[i] * step.factor;
    float first = m[i] * step.keep1 + g * step.take1, second = v[i] * step.keep2 + g * g * step.take2;
    m_out[i] = first;
    v_out[i] = second;
    p_out[i] = p[i] * step.decay - step.rate * first / (sqrtf(second) * step.root + step.eps);
}
