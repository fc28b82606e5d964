// Causal attention within sequence boundaries, with grouped heads, sliding window and soft cap.
//
// A block owns a tile of rows (queries, or keys for their gradients) and goes over the other side in tiles of INNER
// rows. No score matrix is kept: the forward goes over the keys twice, first for every query's log-sum-exp, then for
// the values, so that its sums never have to be rescaled; the backward computes scores again from the log-sum-exp.
// Nothing is added atomically: queries' and keys' gradients have a kernel each, so results repeat bit for bit.
//
// bf16 goes through matrix units with sums in f32; f32 goes through plain arithmetic.
#include "common.cuh"

#define INNER 32
#define THREADS 128
#define WARPS (THREADS / 32)
// Columns of padding, against bank conflicts.
#define PAD 8

// Rows that one block owns, and the rows of the other side that may matter to them. Keys are rows of k and v, queries
// are rows of q, which may be fewer.
struct Tile {
    int first, end;
    int keys_first, keys_end;
    int queries_first, queries_end;
};

struct Spec {
    int heads, kv_heads;
    float scale;
    // 0 for none.
    float softcap;
    int window;
};

// 16 x 16 sums of one warp.
template <typename T> struct Sums;

#ifdef EMULATED
using namespace emulated_wmma;
#else
using namespace nvcuda::wmma;
#endif

template <> struct Sums<bf16> {
    fragment<accumulator, 16, 16, 16, float> sums;

    __device__ void clear() { fill_fragment(sums, 0.0f); }
    // sums += a b^T, of a (16, depth) and b (16, depth).
    __device__ void add_transposed(const bf16 *a, int a_stride, const bf16 *b, int b_stride, int depth) {
        for (int at = 0; at < depth; at += 16) {
            fragment<matrix_a, 16, 16, 16, bf16, row_major> left;
            fragment<matrix_b, 16, 16, 16, bf16, col_major> right;
            load_matrix_sync(left, a + at, a_stride);
            load_matrix_sync(right, b + at, b_stride);
            mma_sync(sums, left, right, sums);
        }
    }
    // sums += a b, of a (16, depth) and b (depth, 16).
    __device__ void add(const bf16 *a, int a_stride, const bf16 *b, int b_stride, int depth) {
        for (int at = 0; at < depth; at += 16) {
            fragment<matrix_a, 16, 16, 16, bf16, row_major> left;
            fragment<matrix_b, 16, 16, 16, bf16, row_major> right;
            load_matrix_sync(left, a + at, a_stride);
            load_matrix_sync(right, b + at * b_stride, b_stride);
            mma_sync(sums, left, right, sums);
        }
    }
    __device__ void store(float *out, int stride) { store_matrix_sync(out, sums, stride, mem_row_major); }
};

// A lane has half a row: lane / 2, columns (lane % 2) 8 and on.
template <> struct Sums<float> {
    float sums[8];

    __device__ void clear() {
        for (int i = 0; i < 8; i++) sums[i] = 0.0f;
    }
    __device__ void add_transposed(const float *a, int a_stride, const float *b, int b_stride, int depth) {
        int row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
        for (int at = 0; at < depth; at++)
            for (int i = 0; i < 8; i++) sums[i] += a[row * a_stride + at] * b[(column + i) * b_stride + at];
    }
    __device__ void add(const float *a, int a_stride, const float *b, int b_stride, int depth) {
        int row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
        for (int at = 0; at < depth; at++)
            for (int i = 0; i < 8; i++) sums[i] += a[row * a_stride + at] * b[at * b_stride + column + i];
    }
    __device__ void store(float *out, int stride) {
        int row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
        for (int i = 0; i < 8; i++) out[row * stride + column + i] = sums[i];
    }
};

// How a head of size D is cut. Rows of 16 go to a warp; where a head is wide, two warps share its columns.
template <typename T, int D> struct Cut {
    static constexpr int OWN = D > 128 ? 32 : 64;
    static constexpr int COLUMN_GROUPS = WARPS / (OWN / 16);
    static constexpr int COLUMNS = D / COLUMN_GROUPS;
    static constexpr int STRIDE = D + PAD;
    static constexpr int SCORE_STRIDE = INNER + PAD;
};

// What a thread moves at once.
struct alignas(16) Chunk {
    unsigned words[4];
};

// Copies rows [first, end) of one head into shared memory (rows, STRIDE), with zeros up to `rows`.
template <typename T, int D>
__device__ void load_rows(T *to, const T *from, int first, int end, int rows, int heads, int head) {
    const int WIDTH = sizeof(Chunk) / sizeof(T);
    for (int i = threadIdx.x; i < rows * (D / WIDTH); i += THREADS) {
        int row = i / (D / WIDTH), column = i % (D / WIDTH) * WIDTH;
        Chunk chunk = {{0, 0, 0, 0}};
        if (first + row < end) chunk = *(const Chunk *)(from + ((size_t)(first + row) * heads + head) * D + column);
        *(Chunk *)(to + row * Cut<T, D>::STRIDE + column) = chunk;
    }
}

// out (OWN, INNER) = own (OWN, D) inner (INNER, D)^T. Every warp has its share of the 16 x 16 patches.
template <typename T, int D> __device__ void products(float *out, const T *own, const T *inner) {
    typedef Cut<T, D> C;
    const int patches = C::OWN / 16 * (INNER / 16);
    for (int patch = threadIdx.x / 32; patch < patches; patch += WARPS) {
        int row = patch / (INNER / 16) * 16, column = patch % (INNER / 16) * 16;
        Sums<T> sums;
        sums.clear();
        sums.add_transposed(own + row * C::STRIDE, C::STRIDE, inner + column * C::STRIDE, C::STRIDE, D);
        sums.store(out + row * C::SCORE_STRIDE + column, C::SCORE_STRIDE);
    }
}

// What a block sums up over the inner tiles: (OWN, D), a warp's rows and columns of it.
template <typename T, int D> struct Output {
    typedef Cut<T, D> C;
    static constexpr int PATCHES = C::COLUMNS / 16;
    Sums<T> sums[PATCHES];

    __device__ int row() const { return threadIdx.x / 32 / C::COLUMN_GROUPS * 16; }
    __device__ int column(int patch) const {
        return threadIdx.x / 32 % C::COLUMN_GROUPS * C::COLUMNS + patch * 16;
    }
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < PATCHES; i++) sums[i].clear();
    }
    // += factors (OWN, INNER) inner (INNER, D)
    __device__ void add(const T *factors, const T *inner) {
#pragma unroll
        for (int i = 0; i < PATCHES; i++)
            sums[i].add(factors + row() * C::SCORE_STRIDE, C::SCORE_STRIDE, inner + column(i), C::STRIDE, INNER);
    }
    // Writes rows [first, end) of one head, by way of a patch (16, 16) of shared memory a warp.
    __device__ void write(T *out, float *patches, int first, int end, int heads, int head, float factor) {
        float *patch = patches + threadIdx.x / 32 * 256;
#pragma unroll
        for (int i = 0; i < PATCHES; i++) {
            sums[i].store(patch, 16);
            __syncwarp();
            for (int at = threadIdx.x % 32; at < 256; at += 32) {
                int r = first + row() + at / 16;
                if (r < end) out[((size_t)r * heads + head) * D + column(i) + at % 16] = narrow<T>(patch[at] * factor);
            }
            __syncwarp();
        }
    }
};

// The row of the run that a row of q is.
__device__ inline int row_of(const unsigned *query_rows, int query) {
    return query_rows ? (int)query_rows[query] : query;
}

__device__ inline bool sees(int row, int key, const Spec &spec) {
    return key <= row && (spec.window == 0 || row - key < spec.window);
}

__device__ inline float score(float product, const Spec &spec) {
    float s = product * spec.scale;
    return spec.softcap > 0.0f ? spec.softcap * tanhf(s / spec.softcap) : s;
}

// d score / d (scaled product)
__device__ inline float score_slope(float s, const Spec &spec) {
    return spec.softcap > 0.0f ? 1.0f - s * s / (spec.softcap * spec.softcap) : 1.0f;
}

// The keys that any query of a tile sees, as a range.
__device__ inline void visible_keys(const Tile &tile, const unsigned *query_rows, const Spec &spec, int &first, int &end) {
    first = tile.keys_first;
    if (spec.window > 0) first = max(first, row_of(query_rows, tile.first) - spec.window + 1);
    end = row_of(query_rows, tile.end - 1) + 1;
}

// Bytes of shared memory, in the order in which kernels take them.
template <typename T, int D> struct Shared {
    typedef Cut<T, D> C;
    T *own, *own2, *inner, *inner2, *factors, *factors2;
    float *scores, *scores2, *patches, *row_a, *row_b;
    int *rows;

    __device__ Shared(char *memory, bool backward) {
        own = (T *)memory;
        own2 = own + (backward ? C::OWN * C::STRIDE : 0);
        inner = own2 + C::OWN * C::STRIDE;
        inner2 = inner + INNER * C::STRIDE;
        factors = inner2 + INNER * C::STRIDE;
        factors2 = factors + (backward ? C::OWN * C::SCORE_STRIDE : 0);
        scores = (float *)(factors2 + C::OWN * C::SCORE_STRIDE);
        scores2 = scores + (backward ? C::OWN * C::SCORE_STRIDE : 0);
        patches = scores2 + C::OWN * C::SCORE_STRIDE;
        row_a = patches + WARPS * 256;
        row_b = row_a + 64;
        rows = (int *)(row_b + 64);
    }
};

// y (M, heads D) and the log-sum-exp of every query's scores (M, heads).
template <typename T, int D>
__device__ void forward(const T *q, const T *k, const T *v, const Tile *tiles, const unsigned *query_rows, T *y,
                        float *log_sum_exp, Spec spec, char *memory) {
    typedef Cut<T, D> C;
    const int PER_ROW = THREADS / C::OWN;
    Shared<T, D> shared(memory, false);
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (spec.heads / spec.kv_heads);
    int keys_first, keys_end;
    visible_keys(tile, query_rows, spec, keys_first, keys_end);
    load_rows<T, D>(shared.own, q, tile.first, tile.end, C::OWN, spec.heads, head);

    // A few neighbouring threads share a row.
    int own = threadIdx.x / PER_ROW, lane = threadIdx.x % PER_ROW;
    bool there = tile.first + own < tile.end;
    int row = there ? row_of(query_rows, tile.first + own) : -1;
    float most = -INFINITY, sum = 0.0f;
    for (int first = keys_first; first < keys_end; first += INNER) {
        __syncthreads();
        load_rows<T, D>(shared.inner, k, first, keys_end, INNER, spec.kv_heads, kv_head);
        __syncthreads();
        products<T, D>(shared.scores, shared.own, shared.inner);
        __syncthreads();
        for (int i = lane; i < INNER; i += PER_ROW) {
            int key = first + i;
            if (!there || key >= keys_end || !sees(row, key, spec)) continue;
            float s = score(shared.scores[own * C::SCORE_STRIDE + i], spec);
            if (s > most) {
                sum *= expf(most - s);
                most = s;
            }
            sum += expf(s - most);
        }
    }
    float row_most = most;
    for (int offset = PER_ROW / 2; offset > 0; offset /= 2)
        row_most = fmaxf(row_most, __shfl_xor_sync(0xffffffffu, row_most, offset));
    sum *= most == -INFINITY ? 0.0f : expf(most - row_most);
    for (int offset = PER_ROW / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    float lse = there ? row_most + logf(sum) : 0.0f;
    if (there && lane == 0) log_sum_exp[(size_t)(tile.first + own) * spec.heads + head] = lse;

    Output<T, D> output;
    output.clear();
    for (int first = keys_first; first < keys_end; first += INNER) {
        __syncthreads();
        load_rows<T, D>(shared.inner, k, first, keys_end, INNER, spec.kv_heads, kv_head);
        load_rows<T, D>(shared.inner2, v, first, keys_end, INNER, spec.kv_heads, kv_head);
        __syncthreads();
        products<T, D>(shared.scores, shared.own, shared.inner);
        __syncthreads();
        for (int i = lane; i < INNER; i += PER_ROW) {
            int key = first + i;
            bool seen = there && key < keys_end && sees(row, key, spec);
            float p = seen ? expf(score(shared.scores[own * C::SCORE_STRIDE + i], spec) - lse) : 0.0f;
            shared.factors[own * C::SCORE_STRIDE + i] = narrow<T>(p);
        }
        __syncthreads();
        output.add(shared.factors, shared.inner2);
    }
    output.write(y, shared.patches, tile.first, tile.end, spec.heads, head, 1.0f);
}

// delta (M, heads) = sum of dy y over a head; one warp each.
template <typename T>
__device__ void output_dot(const T *y, const T *dy, float *delta, int count, int head_dim) {
    int at = blockIdx.x * WARPS + threadIdx.x / 32;
    float sum = 0.0f;
    if (at < count)
        for (int i = threadIdx.x % 32; i < head_dim; i += 32)
            sum += wide(y[(size_t)at * head_dim + i]) * wide(dy[(size_t)at * head_dim + i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (at < count && threadIdx.x % 32 == 0) delta[at] = sum;
}

// dq = scale sum over keys of ds k, with p = exp(score - lse) and ds = p (dy v - delta) slope.
template <typename T, int D>
__device__ void query_grads(const T *q, const T *k, const T *v, const T *dy, const float *log_sum_exp,
                            const float *delta, const Tile *tiles, const unsigned *query_rows, T *dq, Spec spec,
                            char *memory) {
    typedef Cut<T, D> C;
    const int PER_ROW = THREADS / C::OWN;
    Shared<T, D> shared(memory, true);
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (spec.heads / spec.kv_heads);
    int keys_first, keys_end;
    visible_keys(tile, query_rows, spec, keys_first, keys_end);
    load_rows<T, D>(shared.own, q, tile.first, tile.end, C::OWN, spec.heads, head);
    load_rows<T, D>(shared.own2, dy, tile.first, tile.end, C::OWN, spec.heads, head);

    int own = threadIdx.x / PER_ROW, lane = threadIdx.x % PER_ROW;
    bool there = tile.first + own < tile.end;
    int row = there ? row_of(query_rows, tile.first + own) : -1;
    size_t at = (size_t)(tile.first + own) * spec.heads + head;
    float lse = there ? log_sum_exp[at] : 0.0f, dot = there ? delta[at] : 0.0f;
    Output<T, D> output;
    output.clear();
    for (int first = keys_first; first < keys_end; first += INNER) {
        __syncthreads();
        load_rows<T, D>(shared.inner, k, first, keys_end, INNER, spec.kv_heads, kv_head);
        load_rows<T, D>(shared.inner2, v, first, keys_end, INNER, spec.kv_heads, kv_head);
        __syncthreads();
        products<T, D>(shared.scores, shared.own, shared.inner);
        products<T, D>(shared.scores2, shared.own2, shared.inner2);
        __syncthreads();
        for (int i = lane; i < INNER; i += PER_ROW) {
            int key = first + i, place = own * C::SCORE_STRIDE + i;
            float ds = 0.0f;
            if (there && key < keys_end && sees(row, key, spec)) {
                float s = score(shared.scores[place], spec);
                ds = expf(s - lse) * (shared.scores2[place] - dot) * score_slope(s, spec);
            }
            shared.factors[place] = narrow<T>(ds);
        }
        __syncthreads();
        output.add(shared.factors, shared.inner);
    }
    output.write(dq, shared.patches, tile.first, tile.end, spec.heads, head, spec.scale);
}

// dv = sum over queries of p dy and dk = scale sum of ds q, over all query heads of a key head, in a fixed order.
template <typename T, int D>
__device__ void key_grads(const T *q, const T *k, const T *v, const T *dy, const float *log_sum_exp,
                          const float *delta, const Tile *tiles, const unsigned *query_rows, T *dk, T *dv, Spec spec,
                          char *memory) {
    typedef Cut<T, D> C;
    const int PER_ROW = THREADS / C::OWN;
    Shared<T, D> shared(memory, true);
    Tile tile = tiles[blockIdx.x];
    int kv_head = blockIdx.y, group = spec.heads / spec.kv_heads;
    load_rows<T, D>(shared.own, k, tile.first, tile.end, C::OWN, spec.kv_heads, kv_head);
    load_rows<T, D>(shared.own2, v, tile.first, tile.end, C::OWN, spec.kv_heads, kv_head);

    int own = threadIdx.x / PER_ROW, lane = threadIdx.x % PER_ROW;
    int key = tile.first + own;
    Output<T, D> key_sum, value_sum;
    key_sum.clear();
    value_sum.clear();
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int first = tile.queries_first; first < tile.queries_end; first += INNER) {
            int end = min(first + INNER, tile.queries_end);
            bool too_early = row_of(query_rows, end - 1) < tile.first;
            bool too_late = spec.window > 0 && row_of(query_rows, first) - spec.window >= tile.end - 1;
            if (too_early || too_late) continue;
            __syncthreads();
            load_rows<T, D>(shared.inner, q, first, end, INNER, spec.heads, head);
            load_rows<T, D>(shared.inner2, dy, first, end, INNER, spec.heads, head);
            int query = threadIdx.x;
            if (query < INNER && first + query < end) {
                size_t at = (size_t)(first + query) * spec.heads + head;
                shared.row_a[query] = log_sum_exp[at];
                shared.row_b[query] = delta[at];
                shared.rows[query] = row_of(query_rows, first + query);
            }
            __syncthreads();
            products<T, D>(shared.scores, shared.own, shared.inner);
            products<T, D>(shared.scores2, shared.own2, shared.inner2);
            __syncthreads();
            for (int i = lane; i < INNER; i += PER_ROW) {
                int place = own * C::SCORE_STRIDE + i;
                float p = 0.0f, ds = 0.0f;
                if (key < tile.end && first + i < end && sees(shared.rows[i], key, spec)) {
                    float s = score(shared.scores[place], spec);
                    p = expf(s - shared.row_a[i]);
                    ds = p * (shared.scores2[place] - shared.row_b[i]) * score_slope(s, spec);
                }
                shared.factors[place] = narrow<T>(p);
                shared.factors2[place] = narrow<T>(ds);
            }
            __syncthreads();
            value_sum.add(shared.factors, shared.inner2);
            key_sum.add(shared.factors2, shared.inner);
        }
    }
    key_sum.write(dk, shared.patches, tile.first, tile.end, spec.kv_heads, kv_head, spec.scale);
    value_sum.write(dv, shared.patches, tile.first, tile.end, spec.kv_heads, kv_head, 1.0f);
}

#define KERNELS(T, name, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##name##_##D(                            \
        const T *q, const T *k, const T *v, const Tile *tiles, const unsigned *query_rows, T *y,                     \
        float *log_sum_exp, Spec spec) {                                                                             \
        DYNAMIC_SHARED(memory);                                                                                      \
        forward<T, D>(q, k, v, tiles, query_rows, y, log_sum_exp, spec, memory);                                     \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_query_grads_##name##_##D(                        \
        const T *q, const T *k, const T *v, const T *dy, const float *log_sum_exp, const float *delta,               \
        const Tile *tiles, const unsigned *query_rows, T *dq, Spec spec) {                                           \
        DYNAMIC_SHARED(memory);                                                                                      \
        query_grads<T, D>(q, k, v, dy, log_sum_exp, delta, tiles, query_rows, dq, spec, memory);                     \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_key_grads_##name##_##D(                          \
        const T *q, const T *k, const T *v, const T *dy, const float *log_sum_exp, const float *delta,               \
        const Tile *tiles, const unsigned *query_rows, T *dk, T *dv, Spec spec) {                                    \
        DYNAMIC_SHARED(memory);                                                                                      \
        key_grads<T, D>(q, k, v, dy, log_sum_exp, delta, tiles, query_rows, dk, dv, spec, memory);                   \
    }
#define DOT(T, name)                                                                                                 \
    extern "C" __global__ void attention_output_dot_##name(const T *y, const T *dy, float *delta, int count,         \
                                                           int head_dim) {                                           \
        output_dot<T>(y, dy, delta, count, head_dim);                                                                \
    }
#define NARROW_HEADS(T, name)                                                                                        \
    KERNELS(T, name, 16)                                                                                             \
    KERNELS(T, name, 32)                                                                                             \
    KERNELS(T, name, 64)                                                                                             \
    DOT(T, name)
NARROW_HEADS(float, f32)
NARROW_HEADS(bf16, bf16)
// Wide heads in f32 take more shared memory than most GPUs have.
KERNELS(bf16, bf16, 96)
KERNELS(bf16, bf16, 128)
KERNELS(bf16, bf16, 256)
