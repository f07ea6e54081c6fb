// A branch added to the residual stream: bias, LayerScale and the factors of stochastic depth in one pass. A thread has
// a few columns, over the rows of a chunk.
#include "common.cuh"

// A sample that the branch did not run on.
static const unsigned NOWHERE = 0xffffffffu;

// Where a row of the stream is in the branch, or that it is not, and the factor of its sample. Without samples every row is where it
// is. `factors` are the bits of f32: they travel in one tensor with `kept` and `places`.
struct Taken {
    offset_t row;
    float factor;
    bool is_there;
};

__device__ inline Taken taken_by(int row, const unsigned *places, const unsigned *factors, Packing chosen, Packing all) {
    if (places == nullptr) {
        return {row, 1.f, true};
    }
    const Position in_all = position_of(row, all);
    const unsigned place = places[in_all.image];
    if (place == NOWHERE) {
        return {0, 0.f, false};
    }
    return {row_of({static_cast<int>(place), in_all.token}, chosen), __uint_as_float(factors[place]), true};
}

// `out = x + factor gamma (branch + bias)`; `places` has, for each sample, its place in the branch.
template <int V, class T>
__device__ inline void add(const float *__restrict__ x, const T *__restrict__ branch, const float *__restrict__ bias,
                           const float *__restrict__ gamma, const unsigned *__restrict__ places,
                           const unsigned *__restrict__ factors, float *__restrict__ out, int rows, int width, Packing chosen,
                           Packing all, int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> offset = load_several<V>(bias, strip.column), scale = load_several<V>(gamma, strip.column);
    const int end = strip.end;
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> sums[Ahead<V>::ROWS], branches[Ahead<V>::ROWS];
        float factor[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const Taken taken = taken_by(row + next, places, factors, chosen, all);
            sums[next] = load_several<V>(x, static_cast<offset_t>(row + next) * width + strip.column);
            factor[next] = taken.factor;
            branches[next] = load_or_zeros<V>(nullptr, 0);
            if (taken.is_there) {
                branches[next] = load_several<V>(branch, taken.row * width + strip.column);
            }
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            // A sample without the branch has the factor 0, which would not do for a bias that is not finite.
            if (factor[next] != 0.f) {
                EACH_OF(V) {
                    sums[next].values[i] += factor[next] * scale.values[i] * (branches[next].values[i] + offset.values[i]);
                }
            }
            store_several<V>(out, static_cast<offset_t>(row + next) * width + strip.column, sums[next]);
        }
    }
}

// The gradient of the branch's rows, and the sums over a chunk of the gradients of gamma and bias: `partials` [chunks, 2, width].
template <int V, class T>
__device__ inline void gradient(const float *__restrict__ grad, const T *__restrict__ branch, const float *__restrict__ bias,
                                const float *__restrict__ gamma, const unsigned *__restrict__ kept,
                                const unsigned *__restrict__ factors, T *__restrict__ dbranch, float *__restrict__ partials,
                                int rows, int width, Packing chosen, Packing all, int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> offset = load_several<V>(bias, strip.column), scale = load_several<V>(gamma, strip.column);
    const int end = strip.end;
    Several<V> gamma_sums = load_or_zeros<V>(nullptr, 0), bias_sums = load_or_zeros<V>(nullptr, 0);
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> grads[Ahead<V>::ROWS], branches[Ahead<V>::ROWS];
        float factor[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            factor[next] = factors == nullptr ? 1.f : __uint_as_float(factors[position_of(row + next, chosen).image]);
            grads[next] = load_several<V>(grad, source_row(kept, row + next, chosen, all) * width + strip.column);
            branches[next] = load_several<V>(branch, static_cast<offset_t>(row + next) * width + strip.column);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            EACH_OF(V) {
                const float own = factor[next] * grads[next].values[i], value = own * scale.values[i];
                gamma_sums.values[i] += own * (branches[next].values[i] + offset.values[i]);
                bias_sums.values[i] += value;
                grads[next].values[i] = value;
            }
            store_several<V>(dbranch, static_cast<offset_t>(row + next) * width + strip.column, grads[next]);
        }
    }
    float *out = partials + static_cast<offset_t>(strip.chunk) * 2 * width;
    store_several<V>(out, strip.column, gamma_sums);
    store_several<V>(out, width + strip.column, bias_sums);
}

#define RESIDUAL(T, V, suffix)                                                                                               \
    KERNEL(residual_forward_##suffix, const float *x, const T *branch, const float *bias, const float *gamma,                \
           const unsigned *places, const unsigned *factors, float *out, int rows, int width, int first_chosen, int first,    \
           int tokens, int tokens_of_second, int chunk_rows, int across) {                                                   \
        add<V>(x, branch, bias, gamma, places, factors, out, rows, width, {first_chosen, tokens, tokens_of_second},          \
               {first, tokens, tokens_of_second}, chunk_rows, across);                                                       \
    }                                                                                                                        \
    KERNEL(residual_backward_##suffix, const float *grad, const T *branch, const float *bias, const float *gamma,            \
           const unsigned *kept, const unsigned *factors, T *dbranch, float *partials, int rows, int width,                  \
           int first_chosen, int first, int tokens, int tokens_of_second, int chunk_rows, int across) {                      \
        gradient<V>(grad, branch, bias, gamma, kept, factors, dbranch, partials, rows, width,                                \
                    {first_chosen, tokens, tokens_of_second}, {first, tokens, tokens_of_second}, chunk_rows, across);        \
    }

RESIDUAL(float, 1, f32)
RESIDUAL(bf16, 1, bf16)
RESIDUAL(float, 8, f32_wide)
RESIDUAL(bf16, 8, bf16_wide)
