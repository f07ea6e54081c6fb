// GELU and the gate of SwiGLU with the bias before them. A thread a column, over the rows of a chunk.
#include "common.cuh"

static const float INV_SQRT_2 = 0.70710678f;
static const float INV_SQRT_2PI = 0.39894228f;

// The normal distribution function.
__device__ inline float distribution(float x) { return 0.5f * (1.f + erff(x * INV_SQRT_2)); }

__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <class T>
__device__ inline void gelu(const T *__restrict__ x, const float *__restrict__ bias, T *__restrict__ out, int rows, int width,
                            int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float add = bias == nullptr ? 0.f : bias[column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    for (int row = first; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            loaded[next] = load(x, static_cast<offset_t>(row + next) * width + column) + add;
        }
        EACH_AHEAD {
            store(out, static_cast<offset_t>(row + next) * width + column, loaded[next] * distribution(loaded[next]));
        }
    }
}

// `dx` may be `grad` itself. The sums of dx over the chunk go to `partials` [chunks, width], where there are any.
template <class T>
__device__ inline void gelu_gradient(const T *__restrict__ x, const float *__restrict__ bias, const T *grad, T *dx,
                                     float *__restrict__ partials, int rows, int width, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float add = bias == nullptr ? 0.f : bias[column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    float sum = 0.f;
    for (int row = first; row < end; row += AHEAD) {
        float loaded[AHEAD], grads[AHEAD];
        EACH_AHEAD {
            const offset_t at = static_cast<offset_t>(row + next) * width + column;
            loaded[next] = load(x, at) + add;
            grads[next] = load(grad, at);
        }
        EACH_AHEAD {
            const float value = loaded[next], density = INV_SQRT_2PI * expf(-0.5f * value * value);
            // Far out the density is 0 however large the value, infinite ones too.
            const float slope = distribution(value) + (density == 0.f ? 0.f : value * density);
            const float result = grads[next] * slope;
            sum += result;
            store(dx, static_cast<offset_t>(row + next) * width + column, result);
        }
    }
    if (partials != nullptr) {
        partials[static_cast<offset_t>(blockIdx.y) * width + column] = sum;
    }
}

// `half` columns of gates, then as many of values.
template <class T>
__device__ inline void swiglu(const T *__restrict__ x, const float *__restrict__ bias, T *__restrict__ out, int rows, int half,
                              int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= half) {
        return;
    }
    const float gate_bias = bias == nullptr ? 0.f : bias[column], value_bias = bias == nullptr ? 0.f : bias[half + column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    for (int row = first; row < end; row += AHEAD) {
        float gates[AHEAD], values[AHEAD];
        EACH_AHEAD {
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + column;
            gates[next] = load(x, at) + gate_bias;
            values[next] = load(x, at + half) + value_bias;
        }
        EACH_AHEAD {
            const float result = gates[next] * sigmoid(gates[next]) * values[next];
            store(out, static_cast<offset_t>(row + next) * half + column, result);
        }
    }
}

// `partials` [chunks, 2 half], where there are any.
template <class T>
__device__ inline void swiglu_gradient(const T *__restrict__ x, const float *__restrict__ bias, const T *__restrict__ grad,
                                       T *__restrict__ dx, float *__restrict__ partials, int rows, int half, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= half) {
        return;
    }
    const float gate_bias = bias == nullptr ? 0.f : bias[column], value_bias = bias == nullptr ? 0.f : bias[half + column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    float gate_sum = 0.f, value_sum = 0.f;
    for (int row = first; row < end; row += AHEAD) {
        float gates[AHEAD], values[AHEAD], grads[AHEAD];
        EACH_AHEAD {
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + column;
            gates[next] = load(x, at) + gate_bias;
            values[next] = load(x, at + half) + value_bias;
            grads[next] = load(grad, static_cast<offset_t>(row + next) * half + column);
        }
        EACH_AHEAD {
            const float gate = gates[next], open = sigmoid(gate);
            const float dgate = grads[next] * values[next] * open * (1.f + gate * (1.f - open));
            const float dvalue = grads[next] * gate * open;
            gate_sum += dgate;
            value_sum += dvalue;
            const offset_t at = static_cast<offset_t>(row + next) * 2 * half + column;
            store(dx, at, dgate);
            store(dx, at + half, dvalue);
        }
    }
    if (partials != nullptr) {
        float *out = partials + static_cast<offset_t>(blockIdx.y) * 2 * half;
        out[column] = gate_sum;
        out[half + column] = value_sum;
    }
}

#define ACTIVATIONS(T, suffix)                                                                                               \
    KERNEL(gelu_forward_##suffix, const T *x, const float *bias, T *out, int rows, int width, int chunk_rows) {              \
        gelu(x, bias, out, rows, width, chunk_rows);                                                                         \
    }                                                                                                                        \
    KERNEL(gelu_backward_##suffix, const T *x, const float *bias, const T *grad, T *dx, float *partials, int rows,           \
           int width, int chunk_rows) {                                                                                      \
        gelu_gradient(x, bias, grad, dx, partials, rows, width, chunk_rows);                                                 \
    }                                                                                                                        \
    KERNEL(swiglu_forward_##suffix, const T *x, const float *bias, T *out, int rows, int half, int chunk_rows) {             \
        swiglu(x, bias, out, rows, half, chunk_rows);                                                                        \
    }                                                                                                                        \
    KERNEL(swiglu_backward_##suffix, const T *x, const float *bias, const T *grad, T *dx, float *partials, int rows,         \
           int half, int chunk_rows) {                                                                                       \
        swiglu_gradient(x, bias, grad, dx, partials, rows, half, chunk_rows);                                                \
    }

ACTIVATIONS(float, f32)
ACTIVATIONS(bf16, bf16)
