// GELU and the gate of SwiGLU with the bias before them. A thread has a few columns, over the rows of a chunk.
#include "common.cuh"

static const float INV_SQRT_2 = 0.70710678f;
static const float INV_SQRT_2PI = 0.39894228f;
static const float TWICE_SQRT_2_BY_PI = 1.5957691f;
static const float CUBIC = 0.044715f;
static const float QUICK = 1.702f;

// The normal distribution function.
__device__ inline float distribution(float x) { return 0.5f * (1.f + erff(x * INV_SQRT_2)); }

__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The forms of GELU (`GeluKind`): the value and the slope at x.
struct Exact {
    static __device__ inline float value(float x) { return x * distribution(x); }

    static __device__ inline float slope(float x) {
        const float density = INV_SQRT_2PI * expf(-0.5f * x * x);
        // Far out the density is 0 however large the value, infinite ones too.
        return distribution(x) + (density == 0.f ? 0.f : x * density);
    }
};

// Of `x sigmoid(g)`, where g has the slope `along`. Far out the sigmoid is 0 or 1, and does not bend.
__device__ inline float gated_slope(float x, float g, float along) {
    const float open = sigmoid(g), bend = open * (1.f - open);
    return open + (bend == 0.f ? 0.f : x * bend * along);
}

// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), and 1 + tanh(u) = 2 sigmoid(2 u).
struct ByTanh {
    // Beyond 15 the sigmoid is 0 or 1, and the powers stay finite; NaN stays.
    static __device__ inline float near(float x) { return x < -15.f ? -15.f : x > 15.f ? 15.f : x; }

    static __device__ inline float gate(float y) { return TWICE_SQRT_2_BY_PI * (y + CUBIC * y * y * y); }

    static __device__ inline float value(float x) { return x * sigmoid(gate(near(x))); }

    static __device__ inline float slope(float x) {
        const float y = near(x);
        return gated_slope(x, gate(y), TWICE_SQRT_2_BY_PI * (1.f + 3.f * CUBIC * y * y));
    }
};

// x sigmoid(1.702 x).
struct Quick {
    static __device__ inline float value(float x) { return x * sigmoid(QUICK * x); }

    static __device__ inline float slope(float x) { return gated_slope(x, QUICK * x, QUICK); }
};

template <class Form, int V, class T>
__device__ inline void gelu(const T *__restrict__ x, const float *__restrict__ bias, T *__restrict__ out, int rows, int width,
                            int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> add = load_or_zeros<V>(bias, strip.column);
    const int end = strip.end;
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> loaded[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            loaded[next] = load_several<V>(x, static_cast<offset_t>(row + next) * width + strip.column);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            Several<V> &own = loaded[next];
            EACH_OF(V) {
                own.values[i] = Form::value(own.values[i] + add.values[i]);
            }
            store_several<V>(out, static_cast<offset_t>(row + next) * width + strip.column, own);
        }
    }
}

// `dx` may be `grad` itself. The sums of dx over the chunk go to `partials` [chunks, width], where there are any.
template <class Form, int V, class T>
__device__ inline void gelu_gradient(const T *__restrict__ x, const float *__restrict__ bias, const T *grad, T *dx,
                                     float *__restrict__ partials, int rows, int width, int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> add = load_or_zeros<V>(bias, strip.column);
    const int end = strip.end;
    Several<V> sums = load_or_zeros<V>(nullptr, 0);
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> loaded[Ahead<V>::ROWS], grads[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const offset_t at = static_cast<offset_t>(row + next) * width + strip.column;
            loaded[next] = load_several<V>(x, at);
            grads[next] = load_several<V>(grad, at);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            Several<V> &own = grads[next];
            EACH_OF(V) {
                own.values[i] *= Form::slope(loaded[next].values[i] + add.values[i]);
                sums.values[i] += own.values[i];
            }
            store_several<V>(dx, static_cast<offset_t>(row + next) * width + strip.column, own);
        }
    }
    if (partials != nullptr) {
        store_several<V>(partials, static_cast<offset_t>(strip.chunk) * width + strip.column, sums);
    }
}

// `half` columns of gates, then as many of values.
template <int V, class T>
__device__ inline void swiglu(const T *__restrict__ x, const float *__restrict__ bias, T *__restrict__ out, int rows, int half,
                              int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, half, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> gate_bias = load_or_zeros<V>(bias, strip.column), value_bias = load_or_zeros<V>(bias, half + strip.column);
    const int end = strip.end;
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> gates[Ahead<V>::ROWS], values[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + strip.column;
            gates[next] = load_several<V>(x, at);
            values[next] = load_several<V>(x, at + half);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            Several<V> &own = gates[next];
            EACH_OF(V) {
                const float gate = own.values[i] + gate_bias.values[i];
                own.values[i] = gate * sigmoid(gate) * (values[next].values[i] + value_bias.values[i]);
            }
            store_several<V>(out, static_cast<offset_t>(row + next) * half + strip.column, own);
        }
    }
}

// `partials` [chunks, 2 half], where there are any.
template <int V, class T>
__device__ inline void swiglu_gradient(const T *__restrict__ x, const float *__restrict__ bias, const T *__restrict__ grad,
                                       T *__restrict__ dx, float *__restrict__ partials, int rows, int half, int chunk_rows,
                                       int across) {
    const Strip strip = strip_of<V>(rows, half, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> gate_bias = load_or_zeros<V>(bias, strip.column), value_bias = load_or_zeros<V>(bias, half + strip.column);
    const int end = strip.end;
    Several<V> gate_sums = load_or_zeros<V>(nullptr, 0), value_sums = load_or_zeros<V>(nullptr, 0);
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> gates[Ahead<V>::ROWS], values[Ahead<V>::ROWS], grads[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + strip.column;
            gates[next] = load_several<V>(x, at);
            values[next] = load_several<V>(x, at + half);
            grads[next] = load_several<V>(grad, static_cast<offset_t>(row + next) * half + strip.column);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            EACH_OF(V) {
                const float gate = gates[next].values[i] + gate_bias.values[i], open = sigmoid(gate);
                const float value = values[next].values[i] + value_bias.values[i], dy = grads[next].values[i];
                const float dgate = dy * value * open * (1.f + gate * (1.f - open)), dvalue = dy * gate * open;
                gate_sums.values[i] += dgate;
                value_sums.values[i] += dvalue;
                gates[next].values[i] = dgate;
                values[next].values[i] = dvalue;
            }
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + strip.column;
            store_several<V>(dx, at, gates[next]);
            store_several<V>(dx, at + half, values[next]);
        }
    }
    if (partials != nullptr) {
        float *out = partials + static_cast<offset_t>(strip.chunk) * 2 * half;
        store_several<V>(out, strip.column, gate_sums);
        store_several<V>(out, half + strip.column, value_sums);
    }
}

#define GELU(name, Form, T, V, suffix)                                                                                       \
    KERNEL(name##_forward_##suffix, const T *x, const float *bias, T *out, int rows, int width, int chunk_rows,              \
           int across) {                                                                                                     \
        gelu<Form, V>(x, bias, out, rows, width, chunk_rows, across);                                                        \
    }                                                                                                                        \
    KERNEL(name##_backward_##suffix, const T *x, const float *bias, const T *grad, T *dx, float *partials, int rows,         \
           int width, int chunk_rows, int across) {                                                                          \
        gelu_gradient<Form, V>(x, bias, grad, dx, partials, rows, width, chunk_rows, across);                                \
    }

#define ACTIVATIONS(T, V, suffix)                                                                                            \
    GELU(gelu, Exact, T, V, suffix)                                                                                          \
    GELU(gelu_tanh, ByTanh, T, V, suffix)                                                                                    \
    GELU(quick_gelu, Quick, T, V, suffix)                                                                                    \
    KERNEL(swiglu_forward_##suffix, const T *x, const float *bias, T *out, int rows, int half, int chunk_rows, int across) { \
        swiglu<V>(x, bias, out, rows, half, chunk_rows, across);                                                             \
    }                                                                                                                        \
    KERNEL(swiglu_backward_##suffix, const T *x, const float *bias, const T *grad, T *dx, float *partials, int rows,         \
           int half, int chunk_rows, int across) {                                                                           \
        swiglu_gradient<V>(x, bias, grad, dx, partials, rows, half, chunk_rows, across);                                     \
    }

ACTIVATIONS(float, 1, f32)
ACTIVATIONS(bf16, 1, bf16)
ACTIVATIONS(float, 8, f32_wide)
ACTIVATIONS(bf16, 8, bf16_wide)
