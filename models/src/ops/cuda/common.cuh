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

// Values beside each other that a thread has of a row: one, or four or eight, which are moved as many bytes at once as they have,
// 16 at most. Rows and addresses are then multiples of so many values.
template <int V>
struct Several {
    float values[V];
};

#define EACH_OF(V) _Pragma("unroll") for (int i = 0; i < V; i++)

// Elsewhere the emulation has these.
#ifdef __CUDACC__
// Eight values of bf16, four pairs of them, the first of a pair in the lower half. Their address is a multiple of 16 bytes.
__device__ inline void load_eight(unsigned (&pairs)[4], const bf16 *values) {
    const uint4 loaded = *reinterpret_cast<const uint4 *>(values);
    pairs[0] = loaded.x, pairs[1] = loaded.y, pairs[2] = loaded.z, pairs[3] = loaded.w;
}

__device__ inline void store_eight(bf16 *values, const unsigned (&pairs)[4]) {
    *reinterpret_cast<uint4 *>(values) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Four of them, at a multiple of 8 bytes.
__device__ inline void load_four(unsigned (&pairs)[2], const bf16 *values) {
    const uint2 loaded = *reinterpret_cast<const uint2 *>(values);
    pairs[0] = loaded.x, pairs[1] = loaded.y;
}

__device__ inline void store_four(bf16 *values, const unsigned (&pairs)[2]) {
    *reinterpret_cast<uint2 *>(values) = make_uint2(pairs[0], pairs[1]);
}

// Four values of f32, at a multiple of 16 bytes.
__device__ inline void load_four(float (&four)[4], const float *values) {
    const float4 loaded = *reinterpret_cast<const float4 *>(values);
    four[0] = loaded.x, four[1] = loaded.y, four[2] = loaded.z, four[3] = loaded.w;
}

__device__ inline void store_four(float *values, const float (&four)[4]) {
    *reinterpret_cast<float4 *>(values) = make_float4(four[0], four[1], four[2], four[3]);
}

// Two values rounded to nearest, ties to even.
__device__ inline unsigned rounded_pair(float first, float second) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
#endif

__device__ inline float first_of(unsigned pair) { return __uint_as_float(pair << 16); }

__device__ inline float second_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

template <int V>
__device__ inline Several<V> load_several(const float *values, offset_t at) {
    Several<V> several;
    if constexpr (V == 1) {
        several.values[0] = values[at];
    } else {
        EACH_OF(V / 4) {
            float four[4];
            load_four(four, values + at + 4 * i);
            several.values[4 * i] = four[0], several.values[4 * i + 1] = four[1];
            several.values[4 * i + 2] = four[2], several.values[4 * i + 3] = four[3];
        }
    }
    return several;
}

template <int V>
__device__ inline Several<V> load_several(const bf16 *values, offset_t at) {
    Several<V> several;
    if constexpr (V == 1) {
        several.values[0] = load(values, at);
    } else {
        unsigned pairs[V / 2];
        if constexpr (V == 4) {
            load_four(pairs, values + at);
        } else {
            load_eight(pairs, values + at);
        }
        EACH_OF(V / 2) {
            several.values[2 * i] = first_of(pairs[i]), several.values[2 * i + 1] = second_of(pairs[i]);
        }
    }
    return several;
}

template <int V>
__device__ inline void store_several(float *values, offset_t at, const Several<V> &several) {
    if constexpr (V == 1) {
        values[at] = several.values[0];
    } else {
        EACH_OF(V / 4) {
            const float four[4] = {several.values[4 * i], several.values[4 * i + 1], several.values[4 * i + 2],
                                   several.values[4 * i + 3]};
            store_four(values + at + 4 * i, four);
        }
    }
}

template <int V>
__device__ inline void store_several(bf16 *values, offset_t at, const Several<V> &several) {
    if constexpr (V == 1) {
        store(values, at, several.values[0]);
    } else {
        unsigned pairs[V / 2];
        EACH_OF(V / 2) { pairs[i] = rounded_pair(several.values[2 * i], several.values[2 * i + 1]); }
        if constexpr (V == 4) {
            store_four(values + at, pairs);
        } else {
            store_eight(values + at, pairs);
        }
    }
}

// Of numbers that may not be there: null means zeros.
template <int V>
__device__ inline Several<V> load_or_zeros(const float *values, offset_t at) {
    if (values != nullptr) {
        return load_several<V>(values, at);
    }
    Several<V> zeros;
    EACH_OF(V) { zeros.values[i] = 0.f; }
    return zeros;
}

static const unsigned WARP = 32;
static const unsigned ALL_LANES = 0xffffffffu;
// Rows whose values a thread loads before it stores any: so many loads are under way at once. Unrolled, or the loaded values
// would not be in registers. `row` is the first of them, `end` the end of the chunk.
static const int AHEAD = 4;
#define EACH_AHEAD EACH_OF_AHEAD(AHEAD)
#define EACH_OF_AHEAD(ahead)                                                                                                 \
    _Pragma("unroll") for (int next = 0; next < ahead; next++) if (row + next < end)

// Rows ahead of a thread that has `V` values of each.
template <int V>
struct Ahead {
    static const int ROWS = V == 1 ? AHEAD : 2;
};

// What a thread of a kernel by columns has: `V` columns from `column` of the rows from `first` to `end`, which are chunk `chunk`.
// `across` threads of a block lie beside each other, and below them those of further chunks; left over ones have nothing.
struct Strip {
    int column, chunk, first, end;
    bool is_empty;
};

template <int V>
__device__ inline Strip strip_of(int rows, int width, int chunk_rows, int across) {
    const int down = blockDim.x / across, below = threadIdx.x / across;
    Strip strip;
    strip.column = (blockIdx.x * across + threadIdx.x % across) * V;
    strip.chunk = blockIdx.y * down + below;
    const offset_t first = static_cast<offset_t>(strip.chunk) * chunk_rows;
    strip.is_empty = below >= down || strip.column >= width || first >= rows;
    strip.first = strip.is_empty ? rows : static_cast<int>(first);
    strip.end = min(rows, strip.first + chunk_rows);
    return strip;
}

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
