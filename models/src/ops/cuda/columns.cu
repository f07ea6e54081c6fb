// Sums over rows, in two steps: chunks of rows to partial sums [chunks, width], and those to sums. And a bias onto rows.
#include "common.cuh"

// A thread has a few columns, over the rows of a chunk.
template <int V, class T>
__device__ inline void sums(const T *__restrict__ values, float *__restrict__ partials, int rows, int width, int chunk_rows,
                            int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int end = strip.end;
    Several<V> sums = load_or_zeros<V>(nullptr, 0);
    for (int row = strip.first; row < end; row += AHEAD) {
        Several<V> loaded[AHEAD];
        EACH_AHEAD { loaded[next] = load_several<V>(values, static_cast<offset_t>(row + next) * width + strip.column); }
        EACH_AHEAD {
            EACH_OF(V) { sums.values[i] += loaded[next].values[i]; }
        }
    }
    store_several<V>(partials, static_cast<offset_t>(strip.chunk) * width + strip.column, sums);
}

template <int V, class T>
__device__ inline void add_bias(T *values, const float *__restrict__ bias, int rows, int width, int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const Several<V> add = load_several<V>(bias, strip.column);
    const int end = strip.end;
    for (int row = strip.first; row < end; row += AHEAD) {
        Several<V> loaded[AHEAD];
        EACH_AHEAD { loaded[next] = load_several<V>(values, static_cast<offset_t>(row + next) * width + strip.column); }
        EACH_AHEAD {
            EACH_OF(V) { loaded[next].values[i] += add.values[i]; }
            store_several<V>(values, static_cast<offset_t>(row + next) * width + strip.column, loaded[next]);
        }
    }
}

#define COLUMNS(T, V, suffix)                                                                                                \
    KERNEL(column_sums_##suffix, const T *values, float *partials, int rows, int width, int chunk_rows, int across) {        \
        sums<V>(values, partials, rows, width, chunk_rows, across);                                                          \
    }                                                                                                                        \
    KERNEL(add_bias_##suffix, T *values, const float *bias, int rows, int width, int chunk_rows, int across) {               \
        add_bias<V>(values, bias, rows, width, chunk_rows, across);                                                          \
    }

COLUMNS(float, 1, f32)
COLUMNS(bf16, 1, bf16)
COLUMNS(float, 8, f32_wide)
COLUMNS(bf16, 8, bf16_wide)

// A warp of a block takes every `warps`-th chunk of 32 columns; then one warp adds up what the warps have.
KERNEL(sum_partials, const float *partials, float *out, int chunks, int width) {
    SHARED_FLOATS(shared);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    float sum = 0.f;
    if (column < width) {
#pragma unroll 8
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
