// Log-probabilities of the options of answer rows, and the gradient of sum(weight KL) with respect to their logits.
#include "common.cuh"

__device__ inline float capped(float logit, float cap) { return cap > 0.0f ? cap * tanhf(logit / cap) : logit; }

// One block a row of logits (M, V): the log-sum-exp of the row, and the log-probability of each of its options.
template <typename T>
__device__ void forward(const T *logits, float cap, const unsigned *boundaries, const unsigned *ids, float *log_z,
                        float *option_log_probs, int vocabulary) {
    int row = blockIdx.x;
    logits += (size_t)row * vocabulary;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, capped(wide(logits[i]), cap));
    most = block_max(most);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(capped(wide(logits[i]), cap) - most);
    float log_sum = most + logf(block_sum(sum));
    if (threadIdx.x == 0) log_z[row] = log_sum;
    for (unsigned o = boundaries[row] + threadIdx.x; o < boundaries[row + 1]; o += blockDim.x)
        option_log_probs[o] = capped(wide(logits[ids[o]]), cap) - log_sum;
}

// Over the vocabulary: weight (mass p - t); over the options: the same with p renormalised there, 0 elsewhere. The soft
// cap's slope is 1 - tanh^2.
template <typename T>
__device__ void backward(const T *logits, float cap, const unsigned *boundaries, const unsigned *ids,
                         const float *probs, const float *weights, const unsigned *whole, const float *log_z,
                         const float *option_log_probs, T *grad, int vocabulary) {
    int row = blockIdx.x;
    logits += (size_t)row * vocabulary;
    grad += (size_t)row * vocabulary;
    unsigned first = boundaries[row], end = boundaries[row + 1];
    float weight = weights[row], mass = 0.0f;
    for (unsigned o = first; o < end; o++) mass += probs[o];
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float l = capped(wide(logits[i]), cap), slope = cap > 0.0f ? 1.0f - l * l / (cap * cap) : 1.0f;
        grad[i] = narrow<T>(whole[row] ? weight * mass * expf(l - log_z[row]) * slope : 0.0f);
    }
    __syncthreads();
    float most = -INFINITY, sum = 0.0f;
    for (unsigned o = first; o < end; o++) most = fmaxf(most, option_log_probs[o]);
    for (unsigned o = first; o < end; o++) sum += expf(option_log_probs[o] - most);
    float log_mass = whole[row] ? 0.0f : most + logf(sum);
    for (unsigned o = first + threadIdx.x; o < end; o += blockDim.x) {
        float l = capped(wide(logits[ids[o]]), cap), slope = cap > 0.0f ? 1.0f - l * l / (cap * cap) : 1.0f;
        float p = mass * expf(option_log_probs[o] - log_mass);
        grad[ids[o]] = narrow<T>(weight * (p - probs[o]) * slope);
    }
}

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void kl_forward_##name(const T *logits, float cap, const unsigned *boundaries,             \
                                                 const unsigned *ids, float *log_z, float *option_log_probs,         \
                                                 int vocabulary) {                                                   \
        forward<T>(logits, cap, boundaries, ids, log_z, option_log_probs, vocabulary);                               \
    }                                                                                                                \
    extern "C" __global__ void kl_backward_##name(                                                                   \
        const T *logits, float cap, const unsigned *boundaries, const unsigned *ids, const float *probs,             \
        const float *weights, const unsigned *whole, const float *log_z, const float *option_log_probs, T *grad,     \
        int vocabulary) {                                                                                            \
        backward<T>(logits, cap, boundaries, ids, probs, weights, whole, log_z, option_log_probs, grad, vocabulary); \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
