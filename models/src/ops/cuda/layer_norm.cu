// LayerNorm over rows, where asked on chosen samples only, read in place.
#include "common.cuh"

// A warp a row. `statistics` gets mean and reciprocal deviation of each row for the backward pass.
template <class T>
__device__ inline void forward(const float *__restrict__ x, const unsigned *__restrict__ kept,
                               const float *__restrict__ weight, const float *__restrict__ bias, T *__restrict__ out,
                               float *__restrict__ statistics, int rows, int width, Packing chosen, Packing all, float eps) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const float *values = x + source_row(kept, row, chosen, all) * width;
    float sum = 0.f;
    for (int column = lane; column < width; column += WARP) {
        sum += values[column];
    }
    const float mean = warp_sum(sum) / width;
    float squares = 0.f;
    for (int column = lane; column < width; column += WARP) {
        const float centred = values[column] - mean;
        squares += centred * centred;
    }
    const float scale = 1.f / sqrtf(warp_sum(squares) / width + eps);
    const offset_t start = static_cast<offset_t>(row) * width;
    for (int column = lane; column < width; column += WARP) {
        store(out, start + column, (values[column] - mean) * scale * weight[column] + bias[column]);
    }
    if (lane == 0) {
        statistics[2 * static_cast<offset_t>(row)] = mean;
        statistics[2 * static_cast<offset_t>(row) + 1] = scale;
    }
}

// A block for every `gridDim.x`-th row, a thread for every `blockDim.x`-th column: threads add the gradients of gain and offset
// to shared sums of their own columns, which leave as one row of `partials` [blocks, 2, width]. dx is written, or added to what
// is there, in the rows that x came from.
template <class T>
__device__ inline void backward(const float *__restrict__ x, const unsigned *__restrict__ kept,
                                const float *__restrict__ weight, const float *__restrict__ statistics,
                                const T *__restrict__ grad, float *__restrict__ dx, float *__restrict__ partials, int rows,
                                int width, Packing chosen, Packing all, int add) {
    SHARED_FLOATS(shared);
    float *sums = shared, *scratch = shared + 2 * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        sums[column] = 0.f;
        sums[width + column] = 0.f;
    }
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const offset_t source = source_row(kept, row, chosen, all) * width, start = static_cast<offset_t>(row) * width;
        const float mean = statistics[2 * static_cast<offset_t>(row)];
        const float scale = statistics[2 * static_cast<offset_t>(row) + 1];
        float along_one = 0.f, along_hat = 0.f;
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            const float hat = (x[source + column] - mean) * scale, dy = load(grad, start + column);
            const float weighted = dy * weight[column];
            along_one += weighted;
            along_hat += weighted * hat;
            sums[column] += dy * hat;
            sums[width + column] += dy;
        }
        const Two along = block_sums(along_one, along_hat, scratch);
        const float by_one = along.first / width, by_hat = along.second / width;
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            const float hat = (x[source + column] - mean) * scale;
            const float value = scale * (load(grad, start + column) * weight[column] - by_one - hat * by_hat);
            dx[source + column] = add ? dx[source + column] + value : value;
        }
    }
    float *out = partials + static_cast<offset_t>(blockIdx.x) * 2 * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        out[column] = sums[column];
        out[width + column] = sums[width + column];
    }
}

#define LAYER_NORM(T, suffix)                                                                                                \
    KERNEL(layer_norm_forward_##suffix, const float *x, const unsigned *kept, const float *weight, const float *bias,        \
           T *out, float *statistics, int rows, int width, int first_chosen, int first, int tokens, int tokens_of_second,    \
           float eps) {                                                                                                      \
        forward(x, kept, weight, bias, out, statistics, rows, width, {first_chosen, tokens, tokens_of_second},               \
                {first, tokens, tokens_of_second}, eps);                                                                     \
    }                                                                                                                        \
    KERNEL(layer_norm_backward_##suffix, const float *x, const unsigned *kept, const float *weight, const float *statistics, \
           const T *grad, float *dx, float *partials, int rows, int width, int first_chosen, int first, int tokens,          \
           int tokens_of_second, int add) {                                                                                  \
        backward(x, kept, weight, statistics, grad, dx, partials, rows, width, {first_chosen, tokens, tokens_of_second},     \
                 {first, tokens, tokens_of_second}, add);                                                                    \
    }

LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
