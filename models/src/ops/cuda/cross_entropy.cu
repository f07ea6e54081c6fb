// Cross-entropy of logits with target distributions, and its gradient in the place of the logits.
#include "common.cuh"

__device__ inline const float *target_of(const float *targets, const unsigned *target_rows, int row, int classes) {
    const offset_t target = target_rows == nullptr ? static_cast<unsigned>(row) : target_rows[row];
    return targets + target * classes;
}

// What is added up of logits z and targets t in one pass, relative to the largest logit so far: the sums of `exp((z - largest)
// inverse)`, of t, and of `t (z - largest)`.
struct Seen {
    float largest, exponentials, weight, along;
};

// Makes the sums relative to `largest`, which is not below theirs.
__device__ inline void raise(Seen &seen, float largest, float inverse) {
    // While nothing but -inf has been seen there is nothing to rescale, and no distance to it.
    const float below = seen.largest == -INFINITY ? 0.f : seen.largest - largest;
    seen.exponentials *= expf(below * inverse);
    seen.along += below * seen.weight;
    seen.largest = largest;
}

// `-sum_k t_k log softmax(z inverse)_k`; a block a row. `statistics` [rows, 2] gets what the backward pass needs: the largest
// logit, and the sum of the targets over that of the exponentials.
template <int V>
__device__ inline void forward(const float *__restrict__ logits, const float *__restrict__ targets,
                               const unsigned *__restrict__ target_rows, float *__restrict__ losses,
                               float *__restrict__ statistics, int classes, float inverse) {
    SHARED_FLOATS(scratch);
    const int row = blockIdx.x;
    const float *z = logits + static_cast<offset_t>(row) * classes, *t = target_of(targets, target_rows, row, classes);
    Seen seen = {-INFINITY, 0.f, 0.f, 0.f};
    for (int column = threadIdx.x * V; column < classes; column += blockDim.x * V) {
        const Several<V> values = load_several<V>(z, column), weights = load_several<V>(t, column);
        float largest = seen.largest;
        EACH_OF(V) { largest = fmaxf(largest, values.values[i]); }
        if (largest > seen.largest) {
            raise(seen, largest, inverse);
        }
        EACH_OF(V) {
            // Where all have been -inf so far, so is this one: its exponential is 0, and its distance counts if its target does.
            const float shifted = seen.largest == -INFINITY ? values.values[i] : values.values[i] - seen.largest;
            seen.exponentials += expf(shifted * inverse);
            seen.weight += weights.values[i];
            seen.along += weights.values[i] == 0.f ? 0.f : weights.values[i] * shifted;
        }
    }
    raise(seen, block_max(seen.largest, scratch), inverse);
    const Two sums = block_sums(seen.exponentials, seen.weight, scratch);
    const float along = block_sums(seen.along, 0.f, scratch).first * inverse;
    if (threadIdx.x == 0) {
        losses[row] = logf(sums.first) * sums.second - along;
        statistics[2 * static_cast<offset_t>(row)] = seen.largest;
        statistics[2 * static_cast<offset_t>(row) + 1] = sums.second / sums.first;
    }
}

// `dz = g inverse (softmax(z inverse) sum(t) - t)`, where `dz` may be the logits themselves. A row of blocks a row.
template <int V>
__device__ inline void backward(const float *logits, const float *__restrict__ targets,
                                const unsigned *__restrict__ target_rows, const float *__restrict__ statistics,
                                const float *__restrict__ grads, float *dlogits, int classes, float inverse) {
    const int row = blockIdx.x;
    const offset_t start = static_cast<offset_t>(row) * classes;
    const float *t = target_of(targets, target_rows, row, classes);
    const float largest = statistics[2 * static_cast<offset_t>(row)];
    const float scale = statistics[2 * static_cast<offset_t>(row) + 1], factor = grads[row] * inverse;
    const int step = gridDim.y * blockDim.x * V;
    for (int column = (blockIdx.y * blockDim.x + threadIdx.x) * V; column < classes; column += step) {
        Several<V> values = load_several<V>(logits, start + column);
        const Several<V> weights = load_several<V>(t, column);
        EACH_OF(V) { values.values[i] = factor * (expf((values.values[i] - largest) * inverse) * scale - weights.values[i]); }
        store_several<V>(dlogits, start + column, values);
    }
}

#define CROSS_ENTROPY(V, suffix)                                                                                             \
    KERNEL(cross_entropy_forward_##suffix, const float *logits, const float *targets, const unsigned *target_rows,           \
           float *losses, float *statistics, int classes, float inverse) {                                                   \
        forward<V>(logits, targets, target_rows, losses, statistics, classes, inverse);                                      \
    }                                                                                                                        \
    KERNEL(cross_entropy_backward_##suffix, const float *logits, const float *targets, const unsigned *target_rows,          \
           const float *statistics, const float *grads, float *dlogits, int classes, float inverse) {                        \
        backward<V>(logits, targets, target_rows, statistics, grads, dlogits, classes, inverse);                             \
    }

CROSS_ENTROPY(1, f32)
CROSS_ENTROPY(4, f32_wide)
