// Factors of dropout, from the words that src/rng.rs draws on the host: those of ChaCha with 8 rounds, nonce 0, and a block
// counter that begins with 0 in each sequence.
#include "common.cuh"

#define BLOCK_WORDS 16

__device__ inline unsigned rotated(unsigned x, int by) { return x << by | x >> (32 - by); }

__device__ inline void quarter_round(unsigned &a, unsigned &b, unsigned &c, unsigned &d) {
    a += b, d = rotated(d ^ a, 16);
    c += d, b = rotated(b ^ c, 12);
    a += b, d = rotated(d ^ a, 8);
    c += d, b = rotated(b ^ c, 7);
}

__device__ inline void chacha8(const unsigned *key, unsigned long long counter, unsigned *words) {
    unsigned start[BLOCK_WORDS] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};  // "expand 32-byte k"
    for (int i = 0; i < 8; i++) start[4 + i] = key[i];
    start[12] = (unsigned)counter, start[13] = (unsigned)(counter >> 32);
    start[14] = start[15] = 0;
    unsigned x[BLOCK_WORDS];
    for (int i = 0; i < BLOCK_WORDS; i++) x[i] = start[i];
    for (int pair = 0; pair < 4; pair++) {
        quarter_round(x[0], x[4], x[8], x[12]);
        quarter_round(x[1], x[5], x[9], x[13]);
        quarter_round(x[2], x[6], x[10], x[14]);
        quarter_round(x[3], x[7], x[11], x[15]);
        quarter_round(x[0], x[5], x[10], x[15]);
        quarter_round(x[1], x[6], x[11], x[12]);
        quarter_round(x[2], x[7], x[8], x[13]);
        quarter_round(x[3], x[4], x[9], x[14]);
    }
    for (int i = 0; i < BLOCK_WORDS; i++) words[i] = x[i] + start[i];
}

// out (N, width): 0 where the word is below `threshold`, else `keep`. blockIdx.y is the sequence, whose rows are
// boundaries[y]..boundaries[y + 1] and whose key is keys[8 y..]; a thread fills the elements of one block of words.
template <typename T>
__device__ void dropout(const unsigned *keys, const unsigned *boundaries, T *out, int width, size_t threshold, float keep) {
    unsigned sequence = blockIdx.y;
    size_t counter = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t at = (size_t)boundaries[sequence] * width + counter * BLOCK_WORDS;
    size_t end = (size_t)boundaries[sequence + 1] * width;
    if (at >= end) return;
    unsigned words[BLOCK_WORDS];
    chacha8(keys + 8 * sequence, counter, words);
    for (int i = 0; i < BLOCK_WORDS; i++)
        if (at + i < end) out[at + i] = narrow<T>(words[i] < threshold ? 0.0f : keep);
}

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void dropout_##name(const unsigned *keys, const unsigned *boundaries, T *out, int width,   \
                                              size_t threshold, float keep) {                                        \
        dropout<T>(keys, boundaries, out, width, threshold, keep);                                                   \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
