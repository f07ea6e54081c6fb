// Cross-entropy of logits with target distributions, and its gradient in the place of the logits.
#include "common.cuh"

__device__ inline const float *target_of(const float *targets, const unsigned *target_rows, int row, int classes) {
    const offset_t target = target_rows == nullptr ? static_cast<unsigned>(row) : target_rows[row];
    return targets + target * classes;
}

// `-sum_k t_k log softmax(z inverse)_k`; a block a row. `statistics` [rows, 2] gets what the backward pass needs: the largest
// logit, and the sum of the targets over that of the exponentials.
KERNEL(cross_entropy_forward, const float *logits, const float *targets, const unsigned *target_rows, float *losses,
       float *statistics, int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const int row = blockIdx.x;
    const float *z = logits + static_cast<offset_t>(row) * classes, *t = target_of(targets, target_rows, row, classes);
    float largest = -INFINITY;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        largest = fmaxf(largest, z[column]);
    }
    largest = block_max(largest, scratch);
    float exponentials = 0.f, weight = 0.f, along = 0.f;
    for (int column = threadIdx.x; column < classes; column += blockDim.x) {
        const float shifted = (z[column] - largest) * inverse;
        exponentials += expf(shifted);
        weight += t[column];
        along += t[column] * shifted;
    }
    const Two sums = block_sums(exponentials, weight, scratch);
    const float along_sum = block_sums(along, 0.f, scratch).first;
    if (threadIdx.x == 0) {
        losses[row] = logf(sums.first) * sums.second - along_sum;
        statistics[2 * static_cast<offset_t>(row)] = largest;
        statistics[2 * static_cast<offset_t>(row) + 1] = sums.second / sums.first;
    }
}

// `dz = g inverse (softmax(z inverse) sum(t) - t)`, where `dz` may be the logits themselves. A row of blocks a row.
KERNEL(cross_entropy_backward, const float *logits, const float *targets, const unsigned *target_rows,
       const float *statistics, const float *grads, float *dlogits, int classes, float inverse) {
    const int row = blockIdx.x;
    const offset_t start = static_cast<offset_t>(row) * classes;
    const float *t = target_of(targets, target_rows, row, classes);
    const float largest = statistics[2 * static_cast<offset_t>(row)];
    const float scale = statistics[2 * static_cast<offset_t>(row) + 1], factor = grads[row] * inverse;
    for (int column = blockIdx.y * blockDim.x + threadIdx.x; column < classes; column += gridDim.y * blockDim.x) {
        dlogits[start + column] = factor * (expf((logits[start + column] - largest) * inverse) * scale - t[column]);
    }
}
