// All weights of a network in one launch: AdamW with the teacher's average, and sums of squares. A block a piece of a tensor;
// `pieces` has two numbers a piece, the tensor and which of its pieces.
#include "common.cuh"

static const int PER_THREAD = 16;

// Addresses of one tensor in the table.
static const int WEIGHTS = 0, FIRST = 1, SECOND = 2, GRADIENT = 3, TEACHER = 4, ADDRESSES = 5;
// And its factors.
static const int SCALE = 0, TOWARDS = 1, KEEP = 2, ADD = 3, SHRINK = 4, SIZE = 5, ROOT = 6, EPS = 7, STAYS = 8, FOLLOWS = 9,
                 FACTORS = 10;

__device__ inline float *address(const unsigned long long *table, int entry) {
    return reinterpret_cast<float *>(static_cast<size_t>(table[entry]));
}

// PyTorch's guard against a division by 0 (`clip_grad_norm_`).
static const double CLIP_EPS = 1e-6;
// The scale of gradients that must not be applied.
static const float NOT_AT_ALL = -1.f;

// What brings a gradient's norm, of which this is the square, down to `max_norm`; NOT_AT_ALL where any of `checked` is not finite.
__device__ inline float clip_scale(double square, double max_norm, const double *checked, int checked_count) {
    for (int number = 0; number < checked_count; number++) {
        if (!isfinite(checked[number])) {
            return NOT_AT_ALL;
        }
    }
    return static_cast<float>(fmin(max_norm / (sqrt(square) + CLIP_EPS), 1.));
}

// A tensor without a gradient stays as it is, and its teacher follows it. Without a teacher, nothing follows. With `squares`, the
// gradients of a tensor of group g are clipped by their norm, and nothing moves where a number of `checked` is not finite.
KERNEL(adamw, const unsigned long long *table, const float *factors, const unsigned *sizes, const unsigned *pieces,
       const unsigned *groups, const double *squares, const double *max_norm, const double *checked, int checked_count) {
    SHARED_FLOATS(shared);
    const unsigned tensor = pieces[2 * blockIdx.x], piece = pieces[2 * blockIdx.x + 1];
    const unsigned long long *addresses = table + static_cast<offset_t>(tensor) * ADDRESSES;
    float *weights = address(addresses, WEIGHTS), *first = address(addresses, FIRST), *second = address(addresses, SECOND);
    const float *gradient = address(addresses, GRADIENT);
    float *teacher = address(addresses, TEACHER);
    const float *f = factors + static_cast<offset_t>(tensor) * FACTORS;
    float clip = 1.f;
    if (squares != nullptr) {
        if (threadIdx.x == 0) {
            shared[0] = clip_scale(squares[groups[tensor]], max_norm[0], checked, checked_count);
        }
        __syncthreads();
        clip = shared[0];
        if (clip == NOT_AT_ALL) {
            return;
        }
    }
    const float scale = f[SCALE] * clip, towards = f[TOWARDS], keep = f[KEEP], add = f[ADD], shrink = f[SHRINK], size = f[SIZE],
                root = f[ROOT], eps = f[EPS], stays = f[STAYS], follows = f[FOLLOWS];
    const offset_t start = static_cast<offset_t>(piece) * blockDim.x * PER_THREAD + threadIdx.x, count = sizes[tensor];
    for (int step = 0; step < PER_THREAD; step++) {
        const offset_t at = start + static_cast<offset_t>(step) * blockDim.x;
        if (at >= count) {
            return;
        }
        float weight = weights[at];
        if (gradient != nullptr) {
            const float g = gradient[at] * scale;
            const float mean = first[at] + (g - first[at]) * towards;
            const float square = second[at] * keep + g * g * add;
            first[at] = mean;
            second[at] = square;
            weight = weight * shrink - size * mean / (sqrtf(square) / root + eps);
            weights[at] = weight;
        }
        if (teacher != nullptr) {
            teacher[at] = teacher[at] * stays + weight * follows;
        }
    }
}

// The sum of squares of each piece: in f32 within a thread, in f64 beyond.
KERNEL(squares_of_pieces, const unsigned long long *table, const unsigned *sizes, const unsigned *pieces, double *partials) {
    SHARED_FLOATS(shared);
    const unsigned tensor = pieces[2 * blockIdx.x], piece = pieces[2 * blockIdx.x + 1];
    const float *values = address(table, tensor);
    const offset_t start = static_cast<offset_t>(piece) * blockDim.x * PER_THREAD + threadIdx.x, count = sizes[tensor];
    float sum = 0.f;
    for (int step = 0; step < PER_THREAD; step++) {
        const offset_t at = start + static_cast<offset_t>(step) * blockDim.x;
        if (at < count) {
            sum += values[at] * values[at];
        }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < WARP) {
        // A lane adds up its column of the block, then the first lane the columns.
        double total = 0.;
        for (unsigned other = threadIdx.x; other < blockDim.x; other += WARP) {
            total += static_cast<double>(shared[other]);
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            total += __shfl_down_sync(ALL_LANES, total, distance);
        }
        if (threadIdx.x == 0) {
            partials[blockIdx.x] = total;
        }
    }
}

// The sum of the pieces `bounds[group]..bounds[group + 1]`. A warp a group.
KERNEL(squares_of_groups, const double *partials, const unsigned *bounds, double *out, int groups) {
    const int group = row_of_warp(), lane = threadIdx.x % WARP;
    if (group >= groups) {
        return;
    }
    double total = 0.;
    for (unsigned piece = bounds[group] + lane; piece < bounds[group + 1]; piece += WARP) {
        total += partials[piece];
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        total += __shfl_down_sync(ALL_LANES, total, distance);
    }
    if (lane == 0) {
        out[group] = total;
    }
}
