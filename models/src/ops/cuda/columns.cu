// Sums over rows, in two steps: chunks of rows to partial sums [chunks, width], and those to sums. And a bias onto rows.
#include "common.cuh"

// A thread a column, over the rows of a chunk.
template <class T>
__device__ inline void sums(const T *__restrict__ values, float *__restrict__ partials, int rows, int width, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    float sum = 0.f;
    for (int row = first; row < end; row++) {
        sum += load(values, static_cast<offset_t>(row) * width + column);
    }
    partials[static_cast<offset_t>(blockIdx.y) * width + column] = sum;
}

template <class T>
__device__ inline void add_bias(T *values, const float *__restrict__ bias, int rows, int width, int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float add = bias[column];
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    for (int row = first; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            loaded[next] = load(values, static_cast<offset_t>(row + next) * width + column);
        }
        EACH_AHEAD {
            store(values, static_cast<offset_t>(row + next) * width + column, loaded[next] + add);
        }
    }
}

KERNEL(column_sums_f32, const float *values, float *partials, int rows, int width, int chunk_rows) {
    sums(values, partials, rows, width, chunk_rows);
}

KERNEL(column_sums_bf16, const bf16 *values, float *partials, int rows, int width, int chunk_rows) {
    sums(values, partials, rows, width, chunk_rows);
}

KERNEL(add_bias_f32, float *values, const float *bias, int rows, int width, int chunk_rows) {
    add_bias(values, bias, rows, width, chunk_rows);
}

KERNEL(add_bias_bf16, bf16 *values, const float *bias, int rows, int width, int chunk_rows) {
    add_bias(values, bias, rows, width, chunk_rows);
}

// A warp of a block takes every `warps`-th chunk of 32 columns; then one warp adds up what the warps have.
KERNEL(sum_partials, const float *partials, float *out, int chunks, int width) {
    SHARED_FLOATS(shared);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    float sum = 0.f;
    if (column < width) {
        for (int chunk = warp; chunk < chunks; chunk += warps) {
            sum += partials[static_cast<offset_t>(chunk) * width + column];
        }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        float total = 0.f;
        for (int other = 0; other < warps; other++) {
            total += shared[other * WARP + lane];
        }
        out[column] = total;
    }
}
