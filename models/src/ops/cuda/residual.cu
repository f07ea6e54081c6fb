// A branch added to the residual stream: bias, LayerScale and the factors of stochastic depth in one pass. A thread a column,
// over the rows of a chunk.
#include "common.cuh"

// A sample that the branch did not run on.
static const unsigned NOWHERE = 0xffffffffu;

// `factors` are the bits of f32: they travel in one tensor with `kept` and `places`.
__device__ inline float factor_of(const unsigned *factors, int place) {
    return factors == nullptr ? 1.f : __uint_as_float(factors[place]);
}

// `out = x + factor gamma (branch + bias)`; `places` has, for each sample, its place in the branch.
template <class T>
__device__ inline void add(const float *__restrict__ x, const T *__restrict__ branch, const float *__restrict__ bias,
                           const float *__restrict__ gamma, const unsigned *__restrict__ places,
                           const unsigned *__restrict__ factors, float *__restrict__ out, int rows, int width, Packing chosen,
                           Packing all, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float offset = bias[column], scale = gamma[column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    for (int row = first; row < end; row += AHEAD) {
        float sums[AHEAD];
        EACH_AHEAD {
            const Position in_all = position_of(row + next, all);
            const unsigned place = places == nullptr ? static_cast<unsigned>(in_all.image) : places[in_all.image];
            sums[next] = x[static_cast<offset_t>(row + next) * width + column];
            if (place != NOWHERE) {
                const offset_t from = row_of({static_cast<int>(place), in_all.token}, chosen);
                sums[next] += factor_of(factors, place) * scale * (load(branch, from * width + column) + offset);
            }
        }
        EACH_AHEAD {
            out[static_cast<offset_t>(row + next) * width + column] = sums[next];
        }
    }
}

// The gradient of the branch's rows, and the sums over a chunk of the gradients of gamma and bias: `partials` [chunks, 2, width].
template <class T>
__device__ inline void gradient(const float *__restrict__ grad, const T *__restrict__ branch, const float *__restrict__ bias,
                                const float *__restrict__ gamma, const unsigned *__restrict__ kept,
                                const unsigned *__restrict__ factors, T *__restrict__ dbranch, float *__restrict__ partials,
                                int rows, int width, Packing chosen, Packing all, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float offset = bias[column], scale = gamma[column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    float gamma_sum = 0.f, bias_sum = 0.f;
    for (int row = first; row < end; row += AHEAD) {
        float grads[AHEAD], branches[AHEAD];
        EACH_AHEAD {
            const float factor = factor_of(factors, position_of(row + next, chosen).image);
            grads[next] = factor * grad[source_row(kept, row + next, chosen, all) * width + column];
            branches[next] = load(branch, static_cast<offset_t>(row + next) * width + column) + offset;
        }
        EACH_AHEAD {
            const float value = grads[next] * scale;
            gamma_sum += grads[next] * branches[next];
            bias_sum += value;
            store(dbranch, static_cast<offset_t>(row + next) * width + column, value);
        }
    }
    float *out = partials + static_cast<offset_t>(blockIdx.y) * 2 * width;
    out[column] = gamma_sum;
    out[width + column] = bias_sum;
}

#define RESIDUAL(T, suffix)                                                                                                  \
    KERNEL(residual_forward_##suffix, const float *x, const T *branch, const float *bias, const float *gamma,                \
           const unsigned *places, const unsigned *factors, float *out, int rows, int width, int first_chosen, int first,    \
           int tokens, int tokens_of_second, int chunk_rows) {                                                               \
        add(x, branch, bias, gamma, places, factors, out, rows, width, {first_chosen, tokens, tokens_of_second},             \
            {first, tokens, tokens_of_second}, chunk_rows);                                                                  \
    }                                                                                                                        \
    KERNEL(residual_backward_##suffix, const float *grad, const T *branch, const float *bias, const float *gamma,            \
           const unsigned *kept, const unsigned *factors, T *dbranch, float *partials, int rows, int width,                  \
           int first_chosen, int first, int tokens, int tokens_of_second, int chunk_rows) {                                  \
        gradient(grad, branch, bias, gamma, kept, factors, dbranch, partials, rows, width,                                   \
                 {first_chosen, tokens, tokens_of_second}, {first, tokens, tokens_of_second}, chunk_rows);                   \
    }

RESIDUAL(float, f32)
RESIDUAL(bf16, bf16)
