// The teacher's logits to target distributions: softmax around a centre, and the parts of Sinkhorn-Knopp, whose matrix is always
// `diag(of_row) exponentials diag(of_prototype)`. A block a row where nothing else is said.
#include "common.cuh"

__device__ inline float block_sum(float value, float *scratch) { return block_sums(value, 0.f, scratch).first; }

// The largest of a thread's values so far, and the sum of `exp((value - largest) inverse)`.
struct Seen {
    float largest, sum;
};

template <int V>
__device__ inline void take(Seen &seen, const Several<V> &several, float inverse) {
    float largest = seen.largest;
    EACH_OF(V) { largest = fmaxf(largest, several.values[i]); }
    if (largest > seen.largest) {
        seen.sum *= seen.largest == -INFINITY ? 0.f : expf((seen.largest - largest) * inverse);
        seen.largest = largest;
    }
    EACH_OF(V) {
        const float shifted = seen.largest == -INFINITY ? several.values[i] : several.values[i] - seen.largest;
        seen.sum += expf(shifted * inverse);
    }
}

template <int V>
__device__ inline Several<V> centred(const float *logits, const float *centre, int column) {
    Several<V> values = load_several<V>(logits, column);
    const Several<V> of_centre = load_several<V>(centre, column);
    EACH_OF(V) { values.values[i] -= of_centre.values[i]; }
    return values;
}

// `softmax((z - centre) inverse)`.
template <int V>
__device__ inline void softmax(const float *__restrict__ logits, const float *__restrict__ centre, float *__restrict__ targets,
                               int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    Seen seen = {-INFINITY, 0.f};
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        take<V>(seen, centred<V>(logits + start, centre, column), inverse);
    }
    const float largest = block_max(seen.largest, scratch);
    const float own = seen.largest == -INFINITY ? seen.sum : seen.sum * expf((seen.largest - largest) * inverse);
    const float scale = 1.f / block_sum(own, scratch);
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        Several<V> values = centred<V>(logits + start, centre, column);
        EACH_OF(V) { values.values[i] = expf((values.values[i] - largest) * inverse) * scale; }
        store_several<V>(targets, start + column, values);
    }
}

// `exp((z - largest of the row) inverse)`, and that largest value times `inverse`.
template <int V>
__device__ inline void exponentials_of(const float *__restrict__ logits, float *__restrict__ exponentials,
                                       float *__restrict__ row_max, int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    float largest = -INFINITY;
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        const Several<V> values = load_several<V>(logits, start + column);
        EACH_OF(V) { largest = fmaxf(largest, values.values[i]); }
    }
    largest = block_max(largest, scratch);
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        Several<V> values = load_several<V>(logits, start + column);
        EACH_OF(V) { values.values[i] = expf((values.values[i] - largest) * inverse); }
        store_several<V>(exponentials, start + column, values);
    }
    if (threadIdx.x == 0) {
        row_max[blockIdx.x] = largest * inverse;
    }
}

// The sums of the rows of a chunk, each times its own number: `partials` [chunks, classes]. A thread has a few columns.
template <int V>
__device__ inline void weighted_sums(const float *__restrict__ exponentials, const float *__restrict__ of_row,
                                     float *__restrict__ partials, int rows, int classes, int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, classes, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int end = strip.end;
    Several<V> sums = load_or_zeros<V>(nullptr, 0);
    for (int row = strip.first; row < end; row += AHEAD) {
        Several<V> loaded[AHEAD];
        float weights[AHEAD];
        EACH_AHEAD {
            loaded[next] = load_several<V>(exponentials, static_cast<offset_t>(row + next) * classes + strip.column);
            weights[next] = of_row[row + next];
        }
        EACH_AHEAD {
            EACH_OF(V) { sums.values[i] += loaded[next].values[i] * weights[next]; }
        }
    }
    store_several<V>(partials, static_cast<offset_t>(strip.chunk) * classes + strip.column, sums);
}

#define WEIGHTED_SUMS(V, suffix)                                                                                             \
    KERNEL(targets_weighted_sums_##suffix, const float *exponentials, const float *of_row, float *partials, int rows,        \
           int classes, int chunk_rows, int across) {                                                                        \
        weighted_sums<V>(exponentials, of_row, partials, rows, classes, chunk_rows, across);                                 \
    }

WEIGHTED_SUMS(1, f32)
WEIGHTED_SUMS(8, f32_wide)

// The sum of a row, of which every column is scaled.
template <int V>
__device__ inline float scaled_sum(const float *row, const float *__restrict__ of_prototype, int classes, float *scratch) {
    float sum = 0.f;
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        const Several<V> values = load_several<V>(row, column), scales = load_several<V>(of_prototype, column);
        EACH_OF(V) { sum += values.values[i] * scales.values[i]; }
    }
    return block_sum(sum, scratch);
}

// What brings that sum to 1.
template <int V>
__device__ inline void row_scale(const float *__restrict__ exponentials, const float *__restrict__ of_prototype,
                                 float *__restrict__ of_row, int classes) {
    SHARED_FLOATS(scratch);
    const float sum =
        scaled_sum<V>(exponentials + static_cast<offset_t>(blockIdx.x) * classes, of_prototype, classes, scratch);
    if (threadIdx.x == 0) {
        of_row[blockIdx.x] = 1.f / sum;
    }
}

// The same, done to the row in its place.
template <int V>
__device__ inline void scale_row(float *exponentials, const float *__restrict__ of_prototype, int classes) {
    SHARED_FLOATS(scratch);
    float *row = exponentials + static_cast<offset_t>(blockIdx.x) * classes;
    const float scale = 1.f / scaled_sum<V>(row, of_prototype, classes, scratch);
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        Several<V> values = load_several<V>(row, column);
        const Several<V> scales = load_several<V>(of_prototype, column);
        EACH_OF(V) { values.values[i] *= scales.values[i] * scale; }
        store_several<V>(row, column, values);
    }
}

#define TARGETS(V, suffix)                                                                                                   \
    KERNEL(targets_centred_##suffix, const float *logits, const float *centre, float *targets, int classes, float inverse) { \
        softmax<V>(logits, centre, targets, classes, inverse);                                                               \
    }                                                                                                                        \
    KERNEL(targets_exponentials_##suffix, const float *logits, float *exponentials, float *row_max, int classes,             \
           float inverse) {                                                                                                  \
        exponentials_of<V>(logits, exponentials, row_max, classes, inverse);                                                 \
    }                                                                                                                        \
    KERNEL(targets_row_scales_##suffix, const float *exponentials, const float *of_prototype, float *of_row, int classes) {  \
        row_scale<V>(exponentials, of_prototype, of_row, classes);                                                           \
    }                                                                                                                        \
    KERNEL(targets_scaled_##suffix, float *exponentials, const float *of_prototype, int classes) {                           \
        scale_row<V>(exponentials, of_prototype, classes);                                                                   \
    }

TARGETS(1, f32)
TARGETS(4, f32_wide)
