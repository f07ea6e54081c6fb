// LayerNorm over rows, where asked on chosen samples only, read in place.
#include "common.cuh"

// A warp a row, a few columns a lane at a time. `statistics` gets mean and reciprocal deviation of each row for the backward pass.
template <int V, class T>
__device__ inline void forward(const float *__restrict__ x, const unsigned *__restrict__ kept,
                               const float *__restrict__ weight, const float *__restrict__ bias, T *__restrict__ out,
                               float *__restrict__ statistics, int rows, int width, Packing chosen, Packing all, float eps) {
    const int row = row_of_warp(), first = threadIdx.x % WARP * V, step = WARP * V;
    if (row >= rows) {
        return;
    }
    const float *values = x + source_row(kept, row, chosen, all) * width;
    float sum = 0.f;
    for (int column = first; column < width; column += step) {
        const Several<V> own = load_several<V>(values, column);
        EACH_OF(V) { sum += own.values[i]; }
    }
    const float mean = warp_sum(sum) / width;
    float squares = 0.f;
    for (int column = first; column < width; column += step) {
        const Several<V> own = load_several<V>(values, column);
        EACH_OF(V) {
            const float centred = own.values[i] - mean;
            squares += centred * centred;
        }
    }
    const float scale = 1.f / sqrtf(warp_sum(squares) / width + eps);
    const offset_t start = static_cast<offset_t>(row) * width;
    for (int column = first; column < width; column += step) {
        Several<V> own = load_several<V>(values, column);
        const Several<V> gain = load_several<V>(weight, column), offset = load_several<V>(bias, column);
        EACH_OF(V) { own.values[i] = (own.values[i] - mean) * scale * gain.values[i] + offset.values[i]; }
        store_several<V>(out, start + column, own);
    }
    if (first == 0) {
        statistics[2 * static_cast<offset_t>(row)] = mean;
        statistics[2 * static_cast<offset_t>(row) + 1] = scale;
    }
}

// A block for every `gridDim.x`-th row, a few columns a thread at a time: threads add the gradients of gain and offset to shared
// sums of their own columns, which leave as one row of `partials` [blocks, 2, width]. dx is written, or added to what is there, in
// the rows that x came from.
template <int V, class T>
__device__ inline void backward(const float *__restrict__ x, const unsigned *__restrict__ kept,
                                const float *__restrict__ weight, const float *__restrict__ statistics,
                                const T *__restrict__ grad, float *__restrict__ dx, float *__restrict__ partials, int rows,
                                int width, Packing chosen, Packing all, int add) {
    SHARED_FLOATS(shared);
    float *sums = shared, *scratch = shared + 2 * width;
    const int first = threadIdx.x * V, step = blockDim.x * V;
    for (int column = first; column < width; column += step) {
        store_several<V>(sums, column, load_or_zeros<V>(nullptr, 0));
        store_several<V>(sums, width + column, load_or_zeros<V>(nullptr, 0));
    }
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const offset_t source = source_row(kept, row, chosen, all) * width, start = static_cast<offset_t>(row) * width;
        const float mean = statistics[2 * static_cast<offset_t>(row)];
        const float scale = statistics[2 * static_cast<offset_t>(row) + 1];
        float along_one = 0.f, along_hat = 0.f;
        for (int column = first; column < width; column += step) {
            const Several<V> own = load_several<V>(x, source + column), dy = load_several<V>(grad, start + column);
            const Several<V> gain = load_several<V>(weight, column);
            Several<V> dgain = load_several<V>(sums, column), doffset = load_several<V>(sums, width + column);
            EACH_OF(V) {
                const float hat = (own.values[i] - mean) * scale, weighted = dy.values[i] * gain.values[i];
                along_one += weighted;
                along_hat += weighted * hat;
                dgain.values[i] += dy.values[i] * hat;
                doffset.values[i] += dy.values[i];
            }
            store_several<V>(sums, column, dgain);
            store_several<V>(sums, width + column, doffset);
        }
        const Two along = block_sums(along_one, along_hat, scratch);
        const float by_one = along.first / width, by_hat = along.second / width;
        for (int column = first; column < width; column += step) {
            const Several<V> own = load_several<V>(x, source + column), dy = load_several<V>(grad, start + column);
            const Several<V> gain = load_several<V>(weight, column);
            Several<V> out = load_or_zeros<V>(add ? dx : nullptr, source + column);
            EACH_OF(V) {
                const float hat = (own.values[i] - mean) * scale;
                out.values[i] += scale * (dy.values[i] * gain.values[i] - by_one - hat * by_hat);
            }
            store_several<V>(dx, source + column, out);
        }
    }
    float *out = partials + static_cast<offset_t>(blockIdx.x) * 2 * width;
    for (int column = first; column < width; column += step) {
        store_several<V>(out, column, load_several<V>(sums, column));
        store_several<V>(out, width + column, load_several<V>(sums, width + column));
    }
}

#define LAYER_NORM(T, V, suffix)                                                                                             \
    KERNEL(layer_norm_forward_##suffix, const float *x, const unsigned *kept, const float *weight, const float *bias,        \
           T *out, float *statistics, int rows, int width, int first_chosen, int first, int tokens, int tokens_of_second,    \
           float eps) {                                                                                                      \
        forward<V>(x, kept, weight, bias, out, statistics, rows, width, {first_chosen, tokens, tokens_of_second},            \
                   {first, tokens, tokens_of_second}, eps);                                                                  \
    }                                                                                                                        \
    KERNEL(layer_norm_backward_##suffix, const float *x, const unsigned *kept, const float *weight, const float *statistics, \
           const T *grad, float *dx, float *partials, int rows, int width, int first_chosen, int first, int tokens,          \
           int tokens_of_second, int add) {                                                                                  \
        backward<V>(x, kept, weight, statistics, grad, dx, partials, rows, width, {first_chosen, tokens, tokens_of_second},  \
                    {first, tokens, tokens_of_second}, add);                                                                 \
    }

LAYER_NORM(float, 1, f32)
LAYER_NORM(bf16, 1, bf16)
LAYER_NORM(float, 4, f32_wide)
LAYER_NORM(bf16, 4, bf16_wide)
