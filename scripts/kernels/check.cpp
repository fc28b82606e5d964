// Runs the kernels of src/ops/cuda on the CPU and compares them with plain loops in f64 that share nothing with them:
// the definitions for the forward, and their derivatives written out (attention, KL) or by central differences.
#include <random>
#include <string>

#include "common.cuh"

namespace norm {
#include "rms_norm.cu"
#undef KERNELS
}
namespace rotation {
#include "rope.cu"
#undef KERNELS
}
namespace gated {
#include "glu.cu"
#undef KERNELS
}
namespace divergence {
#include "kl.cu"
#undef KERNELS
}
namespace dropped {
#include "dropout.cu"
#undef KERNELS
}
namespace optimizer {
#include "adamw.cu"
}
namespace attention {
#include "attention.cu"
}

typedef std::vector<double> Doubles;
static std::mt19937 generator(7);
static int failures = 0, checks = 0;

static Doubles normals(size_t n, double scale = 1.0) {
    std::normal_distribution<double> normal(0.0, scale);
    Doubles x(n);
    for (double &v : x) v = normal(generator);
    return x;
}

template <typename T> std::vector<T> stored(Doubles &x) {
    std::vector<T> out;
    for (double &v : x) {
        out.push_back(narrow<T>((float)v));
        v = wide(out.back());  // the reference sees what the kernel sees
    }
    return out;
}
template <typename T> std::vector<T> space(size_t n) { return std::vector<T>(n, narrow<T>(NAN)); }

template <typename T> void compare(const std::string &what, const std::vector<T> &got, const Doubles &expected, double tolerance) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        double d = wide(got[i]) - expected[i];
        difference += d * d;
        size += expected[i] * expected[i];
    }
    double relative = std::sqrt(difference / (size > 0 ? size : 1));
    checks++;
    bool ok = relative <= tolerance;
    if (!ok) failures++;
    if (!ok || std::getenv("VERBOSE")) std::printf("%s %-60s %.2e (at most %.0e)\n", ok ? "ok  " : "FAIL", what.c_str(), relative, tolerance);
}

template <typename T> const char *name();
template <> const char *name<float>() { return "f32"; }
template <> const char *name<bf16>() { return "bf16"; }
template <typename T> double tolerance() { return sizeof(T) == 2 ? 1e-2 : 2e-6; }

// The gradient of sum(f(x) dy) by central differences.
static Doubles differences(Doubles x, const Doubles &dy, const std::function<Doubles(const Doubles &)> &f) {
    Doubles grad(x.size());
    const double h = 1e-5;
    for (size_t i = 0; i < x.size(); i++) {
        double at = x[i], slope = 0;
        x[i] = at + h;
        Doubles up = f(x);
        x[i] = at - h;
        Doubles down = f(x);
        x[i] = at;
        for (size_t j = 0; j < dy.size(); j++) slope += (up[j] - down[j]) / (2 * h) * dy[j];
        grad[i] = slope;
    }
    return grad;
}

template <typename T> void check_norm(int rows, int width, int one_plus) {
    Doubles x = normals(rows * width), w = normals(width, 0.3), dy = normals(rows * width);
    for (double &v : w) v += one_plus ? 0 : 1;
    auto xs = stored<T>(x), ws = stored<T>(w), dys = stored<T>(dy), y = space<T>(x.size()), dx = space<T>(x.size());
    auto f = [&](const Doubles &x) {
        Doubles y(x.size());
        for (int r = 0; r < rows; r++) {
            double squares = 0;
            for (int i = 0; i < width; i++) squares += x[r * width + i] * x[r * width + i];
            double scale = 1 / std::sqrt(squares / width + 1e-6);
            for (int i = 0; i < width; i++) y[r * width + i] = x[r * width + i] * scale * (w[i] + one_plus);
        }
        return y;
    };
    emulated::launch({(unsigned)rows}, ROW_THREADS, 0, [&] { norm::forward<T>(xs.data(), ws.data(), y.data(), width, 1e-6f, one_plus); });
    emulated::launch({(unsigned)rows}, ROW_THREADS, 0, [&] { norm::backward<T>(xs.data(), ws.data(), dys.data(), dx.data(), width, 1e-6f, one_plus); });
    std::string what = std::string(name<T>()) + " norm of " + std::to_string(width) + (one_plus ? " 1 + w" : "");
    compare(what, y, f(x), tolerance<T>());
    compare(what + " dx", dx, differences(x, dy, f), sizeof(T) == 2 ? 1e-2 : 1e-5);
}

template <typename T> void check_rope(int rows, int heads, int half) {
    int width = heads * 2 * half;
    Doubles x = normals(rows * width), angles = normals(rows * half), cosines(angles.size()), sines(angles.size());
    for (size_t i = 0; i < angles.size(); i++) cosines[i] = std::cos(angles[i]), sines[i] = std::sin(angles[i]);
    auto xs = stored<T>(x), c = stored<T>(cosines), s = stored<T>(sines), y = space<T>(x.size());
    for (double sign : {1.0, -1.0}) {
        Doubles expected(x.size());
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < heads; h++)
                for (int i = 0; i < half; i++) {
                    int a = r * width + h * 2 * half + i, b = a + half, t = r * half + i;
                    expected[a] = x[a] * cosines[t] - x[b] * sign * sines[t];
                    expected[b] = x[b] * cosines[t] + x[a] * sign * sines[t];
                }
        emulated::launch({(unsigned)rows}, ROW_THREADS, 0, [&] { rotation::rotate<T>(xs.data(), c.data(), s.data(), y.data(), width, half, sign); });
        compare(std::string(name<T>()) + " rotation", y, expected, tolerance<T>());
    }
}

template <typename T> void check_glu(size_t n, int gelu) {
    Doubles gate = normals(n, 2), up = normals(n), dy = normals(n);
    auto g = stored<T>(gate), u = stored<T>(up), d = stored<T>(dy), y = space<T>(n), dg = space<T>(n), du = space<T>(n);
    auto act = [&](double x) {
        return gelu ? 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) : x / (1 + std::exp(-x));
    };
    Doubles expected(n), gate_grad(n), up_grad(n);
    for (size_t i = 0; i < n; i++) {
        expected[i] = act(gate[i]) * up[i];
        gate_grad[i] = (act(gate[i] + 1e-6) - act(gate[i] - 1e-6)) / 2e-6 * up[i] * dy[i];
        up_grad[i] = act(gate[i]) * dy[i];
    }
    unsigned blocks = (n + ROW_THREADS - 1) / ROW_THREADS;
    emulated::launch({blocks}, ROW_THREADS, 0, [&] { gated::forward<T>(g.data(), u.data(), y.data(), n, gelu); });
    emulated::launch({blocks}, ROW_THREADS, 0, [&] { gated::backward<T>(g.data(), u.data(), d.data(), dg.data(), du.data(), n, gelu); });
    std::string what = std::string(name<T>()) + (gelu ? " GELU" : " SiLU");
    compare(what, y, expected, tolerance<T>());
    compare(what + " d gate", dg, gate_grad, tolerance<T>());
    compare(what + " d up", du, up_grad, tolerance<T>());
}

template <typename T> void check_kl(int rows, int vocabulary, double cap) {
    Doubles logits = normals((size_t)rows * vocabulary, 3);
    auto ls = stored<T>(logits);
    std::vector<unsigned> boundaries = {0}, ids, whole;
    std::vector<float> probs, weights;
    for (int r = 0; r < rows; r++) {
        int options = 2 + r % 4;
        for (int o = 0; o < options; o++) ids.push_back((r * 7 + o * 11) % vocabulary), probs.push_back((o + 1.0) / (options * (options + 1) / 2));
        boundaries.push_back(ids.size());
        whole.push_back(r % 3 != 1);
        weights.push_back(0.5 + r);
    }
    auto loss = [&](const Doubles &logits, Doubles *log_probs) {
        double total = 0;
        for (int r = 0; r < rows; r++) {
            Doubles l(logits.begin() + (size_t)r * vocabulary, logits.begin() + (size_t)(r + 1) * vocabulary);
            for (double &v : l) v = cap > 0 ? cap * std::tanh(v / cap) : v;
            double z = 0, mass = 0;
            for (double v : l) z += std::exp(v);
            for (unsigned o = boundaries[r]; o < boundaries[r + 1]; o++) mass += std::exp(l[ids[o]]);
            for (unsigned o = boundaries[r]; o < boundaries[r + 1]; o++) {
                if (log_probs) log_probs->push_back(l[ids[o]] - std::log(z));
                total -= weights[r] * probs[o] * (l[ids[o]] - std::log(whole[r] ? z : mass));
            }
        }
        return total;
    };
    std::vector<float> log_z = space<float>(rows), option_log_probs = space<float>(ids.size());
    auto grad = space<T>(logits.size());
    emulated::launch({(unsigned)rows}, ROW_THREADS, 0, [&] { divergence::forward<T>(ls.data(), cap, boundaries.data(), ids.data(), log_z.data(), option_log_probs.data(), vocabulary); });
    emulated::launch({(unsigned)rows}, ROW_THREADS, 0, [&] {
        divergence::backward<T>(ls.data(), cap, boundaries.data(), ids.data(), probs.data(), weights.data(), whole.data(), log_z.data(), option_log_probs.data(), grad.data(), vocabulary);
    });
    Doubles expected;
    loss(logits, &expected);
    std::string what = std::string(name<T>()) + " KL" + (cap > 0 ? " with soft cap" : "");
    compare(what + " log-probabilities", option_log_probs, expected, 2e-6);
    Doubles slope = differences(logits, {1.0}, [&](const Doubles &x) { return Doubles{loss(x, nullptr)}; });
    compare(what + " gradient", grad, slope, sizeof(T) == 2 ? 1e-2 : 1e-5);
}

static void check_adamw(size_t n) {
    Doubles p = normals(n), m = normals(n, 0.1), v = normals(n, 0.1), g = normals(n);
    for (double &x : v) x *= x;
    auto ps = stored<float>(p), ms = stored<float>(m), vs = stored<float>(v), gs = stored<float>(g);
    auto p2 = space<float>(n), m2 = space<float>(n), v2 = space<float>(n);
    const double b1 = 0.9, b2 = 0.98, lr = 1e-2, decay = 0.1, eps = 1e-8, factor = 0.3;
    const double c1 = 1 - std::pow(b1, 3), c2 = 1 - std::pow(b2, 3);
    optimizer::AdamW step = {(float)b1, (float)(1 - b1), (float)b2, (float)(1 - b2), (float)(1 / std::sqrt(c2)), (float)eps, (float)(lr / c1), (float)(1 - lr * decay), (float)factor};
    emulated::launch({(unsigned)((n + ROW_THREADS - 1) / ROW_THREADS)}, ROW_THREADS, 0, [&] {
        optimizer::adamw_f32(gs.data(), ps.data(), ms.data(), vs.data(), p2.data(), m2.data(), v2.data(), n, step);
    });
    for (size_t i = 0; i < n; i++) {
        double grad = g[i] * factor;
        m[i] = b1 * m[i] + (1 - b1) * grad;
        v[i] = b2 * v[i] + (1 - b2) * grad * grad;
        p[i] = p[i] * (1 - lr * decay) - lr * (m[i] / c1) / (std::sqrt(v[i] / c2) + eps);
    }
    compare("AdamW p", p2, p, 2e-6);
    compare("AdamW m", m2, m, 2e-6);
    compare("AdamW v", v2, v, 2e-6);
}

struct Naive {
    Doubles y, dq, dk, dv;
};

// Attention by its definition, one query and one head at a time.
static Naive attend(const Doubles &q, const Doubles &k, const Doubles &v, const Doubles &dy, const std::vector<int> &rows,
                    const std::vector<int> &starts, attention::Spec spec, int d) {
    int n = starts.back(), heads = spec.heads, kv = spec.kv_heads;
    Naive out = {Doubles(q.size()), Doubles(q.size()), Doubles(k.size()), Doubles(v.size())};
    for (size_t i = 0; i < rows.size(); i++) {
        int row = rows[i], start = 0;
        for (int s : starts)
            if (s <= row) start = s;
        (void)n;
        int first = spec.window ? std::max(start, row - spec.window + 1) : start;
        for (int h = 0; h < heads; h++) {
            int g = h / (heads / kv);
            const double *qi = &q[(i * heads + h) * d], *dyi = &dy[(i * heads + h) * d];
            Doubles s, slope, p;
            double z = 0, dot = 0;
            for (int j = first; j <= row; j++) {
                double x = 0;
                for (int c = 0; c < d; c++) x += qi[c] * k[((size_t)j * kv + g) * d + c];
                x *= spec.scale;
                double t = spec.softcap > 0 ? std::tanh(x / spec.softcap) : 0;
                s.push_back(spec.softcap > 0 ? spec.softcap * t : x);
                slope.push_back(spec.softcap > 0 ? 1 - t * t : 1);
                z += std::exp(s.back());
            }
            for (double x : s) p.push_back(std::exp(x) / z);
            Doubles dp(s.size());
            for (size_t a = 0; a < s.size(); a++) {
                size_t j = first + a;
                for (int c = 0; c < d; c++) {
                    out.y[(i * heads + h) * d + c] += p[a] * v[(j * kv + g) * d + c];
                    out.dv[(j * kv + g) * d + c] += p[a] * dyi[c];
                    dp[a] += dyi[c] * v[(j * kv + g) * d + c];
                }
                dot += p[a] * dp[a];
            }
            for (size_t a = 0; a < s.size(); a++) {
                size_t j = first + a;
                double ds = p[a] * (dp[a] - dot) * slope[a] * spec.scale;
                for (int c = 0; c < d; c++) {
                    out.dq[(i * heads + h) * d + c] += ds * k[(j * kv + g) * d + c];
                    out.dk[(j * kv + g) * d + c] += ds * qi[c];
                }
            }
        }
    }
    return out;
}

// As src/ops/cuda/attention.rs asks for it; the emulation finds what is written beyond it.
template <typename T, int D> size_t shared_bytes(bool backward) {
    typedef attention::Cut<T, D> C;
    size_t sides = backward ? 2 : 1;
    size_t elements = sides * C::OWN * C::STRIDE + 2 * INNER * C::STRIDE + sides * C::OWN * C::SCORE_STRIDE;
    return elements * sizeof(T) + 4 * (sides * C::OWN * C::SCORE_STRIDE + WARPS * 256 + 3 * 64);
}

template <typename T, int D>
void check_attention(std::vector<int> starts, int heads, int kv_heads, int window, double softcap, int every) {
    typedef attention::Cut<T, D> C;
    int n = starts.back();
    std::vector<int> rows;
    for (int i = 0; i < n; i++)
        if (every == 1 || i % every == 1 || i % 29 == 3) rows.push_back(i);
    attention::Spec spec = {heads, kv_heads, (float)(1 / std::sqrt(D)), (float)softcap, window};
    // Large values of q, so that the softmax is far from flat and the soft cap bends.
    Doubles q = normals(rows.size() * heads * D, 3), k = normals((size_t)n * kv_heads * D), v = normals((size_t)n * kv_heads * D), dy = normals(q.size());
    auto qs = stored<T>(q), ks = stored<T>(k), vs = stored<T>(v), dys = stored<T>(dy);
    std::vector<unsigned> query_rows(rows.begin(), rows.end());
    const unsigned *queries = every == 1 ? nullptr : query_rows.data();
    std::vector<attention::Tile> query_tiles, key_tiles;
    for (size_t s = 0; s + 1 < starts.size(); s++) {
        int first = std::lower_bound(rows.begin(), rows.end(), starts[s]) - rows.begin();
        int end = std::lower_bound(rows.begin(), rows.end(), starts[s + 1]) - rows.begin();
        for (int at = first; at < end; at += C::OWN) query_tiles.push_back({at, std::min(at + C::OWN, end), starts[s], starts[s + 1], first, end});
        for (int at = starts[s]; at < starts[s + 1]; at += C::OWN) key_tiles.push_back({at, std::min(at + C::OWN, starts[s + 1]), starts[s], starts[s + 1], first, end});
    }
    auto y = space<T>(q.size()), dq = space<T>(q.size()), dk = space<T>(k.size()), dv = space<T>(v.size());
    auto lse = space<float>(rows.size() * heads), delta = space<float>(rows.size() * heads);
    emulated::launch({(unsigned)query_tiles.size(), (unsigned)heads}, THREADS, shared_bytes<T, D>(false), [&] {
        attention::forward<T, D>(qs.data(), ks.data(), vs.data(), query_tiles.data(), queries, y.data(), lse.data(), spec, emulated::shared_memory);
    });
    Naive naive = attend(q, k, v, dy, rows, starts, spec, D);
    unsigned dots = (rows.size() * heads + WARPS - 1) / WARPS;
    emulated::launch({dots}, THREADS, 0, [&] { attention::output_dot<T>(y.data(), dys.data(), delta.data(), rows.size() * heads, D); });
    emulated::launch({(unsigned)query_tiles.size(), (unsigned)heads}, THREADS, shared_bytes<T, D>(true), [&] {
        attention::query_grads<T, D>(qs.data(), ks.data(), vs.data(), dys.data(), lse.data(), delta.data(), query_tiles.data(), queries, dq.data(), spec, emulated::shared_memory);
    });
    emulated::launch({(unsigned)key_tiles.size(), (unsigned)kv_heads}, THREADS, shared_bytes<T, D>(true), [&] {
        attention::key_grads<T, D>(qs.data(), ks.data(), vs.data(), dys.data(), lse.data(), delta.data(), key_tiles.data(), queries, dk.data(), dv.data(), spec, emulated::shared_memory);
    });
    std::string what = std::string(name<T>()) + " attention " + std::to_string(D) + " heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) +
                       (window ? " window " + std::to_string(window) : "") + (softcap > 0 ? " cap" : "") + (every > 1 ? " some queries" : "");
    double tolerance = sizeof(T) == 2 ? 1e-2 : 1e-5;
    compare(what, y, naive.y, tolerance);
    compare(what + " dq", dq, naive.dq, 2 * tolerance);
    compare(what + " dk", dk, naive.dk, 2 * tolerance);
    compare(what + " dv", dv, naive.dv, tolerance);
}

// Bernstein's ChaCha as its paper has it, a column and a diagonal round at a time on a 4 x 4 matrix.
static std::vector<uint32_t> chacha8(const std::vector<uint32_t> &key, uint64_t counter) {
    uint32_t matrix[4][4] = {{0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}};
    for (int i = 0; i < 8; i++) matrix[1 + i / 4][i % 4] = key[i];
    matrix[3][0] = (uint32_t)counter, matrix[3][1] = (uint32_t)(counter >> 32);
    uint32_t x[4][4];
    std::memcpy(x, matrix, sizeof x);
    for (int round = 0; round < 8; round++)
        for (int column = 0; column < 4; column++) {
            int shift = round % 2;
            uint32_t *at[4];
            for (int row = 0; row < 4; row++) at[row] = &x[row][(column + shift * row) % 4];
            const int turns[4] = {16, 12, 8, 7};
            for (int step = 0; step < 4; step++) {
                uint32_t &sum = *at[step % 2 ? 2 : 0], &turned = *at[step % 2 ? 1 : 3];
                sum += *at[step % 2 ? 3 : 1];
                turned ^= sum;
                turned = (turned << turns[step]) | (turned >> (32 - turns[step]));
            }
        }
    std::vector<uint32_t> words;
    for (int i = 0; i < 16; i++) words.push_back(x[i / 4][i % 4] + matrix[i / 4][i % 4]);
    return words;
}

// The first words of the keystream for a key of zeros (draft-strombergson-chacha-test-vectors, TC1, 8 rounds, 256 bits).
static void check_chacha() {
    std::vector<uint32_t> words = chacha8(std::vector<uint32_t>(8), 0);
    std::vector<float> got;
    Doubles expected;
    const unsigned char published[16] = {0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6, 0x7f, 0x5b, 0xb8, 0xe8, 0x1f, 0x09, 0xa5, 0xa1};
    for (int i = 0; i < 16; i++) {
        got.push_back(words[i / 4] >> 8 * (i % 4) & 255);
        expected.push_back(published[i]);
    }
    compare("ChaCha8 of the reference", got, expected, 0);
}

template <typename T> void check_dropout(const std::vector<unsigned> &boundaries, int width, double p) {
    size_t sequences = boundaries.size() - 1, longest = 0;
    std::vector<unsigned> keys(8 * sequences);
    for (unsigned &word : keys) word = generator();
    uint64_t threshold = (uint64_t)(p * 4294967296.0);
    float keep = (float)(1 / (1 - p));
    Doubles expected;
    for (size_t s = 0; s < sequences; s++) {
        size_t elements = (size_t)(boundaries[s + 1] - boundaries[s]) * width;
        longest = std::max(longest, elements);
        std::vector<uint32_t> key(keys.begin() + 8 * s, keys.begin() + 8 * s + 8), words;
        for (size_t i = 0; i < elements; i++) {
            if (i % 16 == 0) words = chacha8(key, i / 16);
            expected.push_back(words[i % 16] < threshold ? 0 : wide(narrow<T>(keep)));
        }
    }
    auto mask = space<T>(expected.size());
    unsigned blocks = (longest + 16 * ROW_THREADS - 1) / (16 * ROW_THREADS);
    emulated::launch({blocks, (unsigned)sequences}, ROW_THREADS, 0, [&] { dropped::dropout<T>(keys.data(), boundaries.data(), mask.data(), width, threshold, keep); });
    compare(std::string(name<T>()) + " dropout of " + std::to_string(p), mask, expected, 0);
}

template <typename T> void check_all() {
    check_dropout<T>({0, 3, 3, 70, 71}, 100, 0.25);
    check_dropout<T>({0, 1}, 7, 0);
    for (int width : {5, 64, 300}) check_norm<T>(3, width, 0), check_norm<T>(2, width, 1);
    check_rope<T>(5, 3, 8);
    check_rope<T>(2, 1, 200);
    for (int gelu : {0, 1}) check_glu<T>(1000, gelu);
    for (double cap : {0.0, 4.0}) check_kl<T>(7, 90, cap), check_kl<T>(1, 700, cap);
    check_attention<T, 16>({0, 1, 38, 38, 108}, 4, 2, 0, 0, 1);
    check_attention<T, 32>({0, 70, 100}, 2, 1, 9, 0, 1);
    check_attention<T, 64>({0, 131}, 4, 2, 0, 5, 1);
    check_attention<T, 64>({0, 40, 131}, 4, 1, 0, 0, 7);
    check_attention<T, 96>({0, 33}, 2, 2, 0, 0, 1);
    check_attention<T, 128>({0, 65, 97}, 2, 1, 40, 3, 5);
    check_attention<T, 256>({0, 35, 76}, 2, 1, 0, 0, 1);
    check_attention<T, 256>({0, 76}, 2, 2, 10, 2, 3);
}

int main() {
    check_all<float>();
    check_all<bf16>();
    check_adamw(1000);
    check_chacha();
    std::printf("%d checks of kernels, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
