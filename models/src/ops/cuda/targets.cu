// The teacher's logits to target distributions: softmax around a centre, and the parts of Sinkhorn-Knopp, whose matrix is always
// `diag(of_row) exponentials diag(of_prototype)`. A block a row where nothing else is said.
#include "common.cuh"

__device__ inline float block_sum(float value, float *scratch) { return block_sums(value, 0.f, scratch).first; }

// `softmax((z - centre) inverse)`.
KERNEL(targets_centred, const float *logits, const float *centre, float *targets, int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    float largest = -INFINITY;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        largest = fmaxf(largest, logits[start + column] - centre[column]);
    }
    largest = block_max(largest, scratch);
    float sum = 0.f;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        sum += expf((logits[start + column] - centre[column] - largest) * inverse);
    }
    const float scale = 1.f / block_sum(sum, scratch);
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        targets[start + column] = expf((logits[start + column] - centre[column] - largest) * inverse) * scale;
    }
}

// `exp((z - largest of the row) inverse)`, and that largest value times `inverse`.
KERNEL(targets_exponentials, const float *logits, float *exponentials, float *row_max, int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    float largest = -INFINITY;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        largest = fmaxf(largest, logits[start + column]);
    }
    largest = block_max(largest, scratch);
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        exponentials[start + column] = expf((logits[start + column] - largest) * inverse);
    }
    if (threadIdx.x == 0) {
        row_max[blockIdx.x] = largest * inverse;
    }
}

// The sums of the rows of a chunk, each times its own number: `partials` [chunks, classes]. A thread a column.
KERNEL(targets_weighted_sums, const float *exponentials, const float *of_row, float *partials, int rows, int classes,
       int chunk_rows) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= classes) {
        return;
    }
    const int first = blockIdx.y * chunk_rows, end = min(rows, first + chunk_rows);
    float sum = 0.f;
    for (int row = first; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            loaded[next] = exponentials[static_cast<offset_t>(row + next) * classes + column] * of_row[row + next];
        }
        EACH_AHEAD {
            sum += loaded[next];
        }
    }
    partials[static_cast<offset_t>(blockIdx.y) * classes + column] = sum;
}

// What brings the sum of a row, of which every column is scaled, to 1.
KERNEL(targets_row_scales, const float *exponentials, const float *of_prototype, float *of_row, int classes) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    float sum = 0.f;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        sum += exponentials[start + column] * of_prototype[column];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        of_row[blockIdx.x] = 1.f / sum;
    }
}

// The same, done to the row in its place.
KERNEL(targets_scaled, float *exponentials, const float *of_prototype, int classes) {
    SHARED_FLOATS(scratch);
    const offset_t start = static_cast<offset_t>(blockIdx.x) * classes;
    float sum = 0.f;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        sum += exponentials[start + column] * of_prototype[column];
    }
    const float scale = 1.f / block_sum(sum, scratch);
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        exponentials[start + column] *= of_prototype[column] * scale;
    }
}
