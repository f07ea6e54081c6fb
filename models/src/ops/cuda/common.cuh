// What the kernels share: how values are stored, and sums over warps and blocks. All arithmetic is in f32. Every sum is taken
// in a fixed order, so a result does not depend on which block runs first.
#pragma once

#ifndef KERNEL
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
// A kernel of `bounds`: most threads of a block, and blocks that a multiprocessor is to hold at once.
#define BOUNDED_KERNEL(bounds, name, ...) extern "C" __global__ __launch_bounds__(bounds) void name(__VA_ARGS__)
#define SHARED_FLOATS(name) extern __shared__ __align__(16) float name[]
#endif

typedef long long offset_t;

// The upper half of an f32.
struct bf16 {
    unsigned short bits;
};

__device__ inline float load(const float *values, offset_t at) { return values[at]; }

__device__ inline float load(const bf16 *values, offset_t at) {
    return __uint_as_float(static_cast<unsigned>(values[at].bits) << 16);
}

__device__ inline void store(float *values, offset_t at, float value) { values[at] = value; }

// Rounds to nearest, ties to even; NaN stays NaN.
__device__ inline void store(bf16 *values, offset_t at, float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        bits |= 0x400000u;
    } else {
        bits += 0x7fffu + ((bits >> 16) & 1u);
    }
    values[at].bits = static_cast<unsigned short>(bits >> 16);
}

static const unsigned WARP = 32;
static const unsigned ALL_LANES = 0xffffffffu;
// Rows whose values a thread loads before it stores any: so many loads are under way at once. Unrolled, or the loaded values
// would not be in registers. `row` is the first of them, `end` the end of the chunk.
static const int AHEAD = 4;
#define EACH_AHEAD                                                                                                           \
    _Pragma("unroll") for (int next = 0; next < AHEAD; next++) if (row + next < end)

// The sum over the lanes of a warp, in each of them.
__device__ inline float warp_sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// The largest value of a warp, in each of its lanes. NaN is passed over.
__device__ inline float warp_max(float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

// The sums of two values over a block of whole warps, in each of its threads. `scratch` holds two floats a warp.
struct Two {
    float first, second;
};

__device__ inline Two block_sums(float first, float second, float *scratch) {
    const unsigned warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    first = warp_sum(first);
    second = warp_sum(second);
    if (threadIdx.x % WARP == 0) {
        scratch[2 * warp] = first;
        scratch[2 * warp + 1] = second;
    }
    __syncthreads();
    Two sums = {0.f, 0.f};
    for (unsigned other = 0; other < warps; other++) {
        sums.first += scratch[2 * other];
        sums.second += scratch[2 * other + 1];
    }
    // Nobody writes the scratch again before everybody has read it.
    __syncthreads();
    return sums;
}

__device__ inline float block_max(float value, float *scratch) {
    const unsigned warps = blockDim.x / WARP;
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float largest = scratch[0];
    for (unsigned other = 1; other < warps; other++) {
        largest = fmaxf(largest, scratch[other]);
    }
    __syncthreads();
    return largest;
}

// The row that a warp of this block works on, of blocks of whole warps.
__device__ inline int row_of_warp() {
    return static_cast<int>(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
}

// Images of two sizes in the rows of one tensor: `first` images of `tokens` rows each, then ones of `tokens_of_second`.
struct Packing {
    int first, tokens, tokens_of_second;
};

struct Position {
    int image, token;
};

__device__ inline Position position_of(int row, Packing packing) {
    const int beyond = row - packing.first * packing.tokens;
    if (beyond < 0) {
        return {row / packing.tokens, row % packing.tokens};
    }
    return {packing.first + beyond / packing.tokens_of_second, beyond % packing.tokens_of_second};
}

__device__ inline int row_of(Position place, Packing packing) {
    const int beyond = place.image - packing.first;
    if (beyond < 0) {
        return place.image * packing.tokens + place.token;
    }
    return packing.first * packing.tokens + beyond * packing.tokens_of_second + place.token;
}

// Where row `row` of chosen images lies among the rows of all: `kept` names the chosen ones and is null where all are.
__device__ inline offset_t source_row(const unsigned *kept, int row, Packing chosen, Packing all) {
    if (kept == nullptr) {
        return row;
    }
    const Position place = position_of(row, chosen);
    return row_of({static_cast<int>(kept[place.image]), place.token}, all);
}
