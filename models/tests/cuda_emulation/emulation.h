// CUDA on the processor, as far as the kernels use it: one block after the other, its threads as fibers that run from barrier to
// barrier in an order of the caller's. What depends on that order (a missing barrier) gives other bits in another order; what
// reaches outside of a buffer meets a guard page.
#pragma once
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <type_traits>
#include <utility>

struct Index {
    unsigned x, y, z;
};

extern Index threadIdx, blockIdx, blockDim, gridDim;

#define __device__
#define SHARED_FLOATS(name) float *name = emulation::shared_floats()
#define KERNEL(name, ...)                                                                                                    \
    static void name(__VA_ARGS__);                                                                                           \
    static const emulation::Registered name##_registered(#name, emulation::kinds_of(&name), emulation::caller(&name));      \
    static void name(__VA_ARGS__)
#define BOUNDED_KERNEL(bounds, name, ...) KERNEL(name, __VA_ARGS__)

using std::max;
using std::min;

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Each operation rounded by itself: the compiler is told to fuse none.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }

struct bf16;

namespace emulation {

// One argument, in the lower bytes.
typedef unsigned long long Cell;
typedef void (*Caller)(void *kernel, const Cell *cells);

float *shared_floats();
void block_barrier();
// Leaves eight bytes for the other lanes of the warp and takes those of `from`.
Cell exchanged(unsigned mask, Cell value, unsigned from);
unsigned lane();
// Ends the run with a word, after the block.
void refuse(const char *what);
// Takes note of a copy of a thread, and makes all that it has asked for. In between there is no number where they go.
void ask_for_copy(void *to, const void *from, size_t bytes);
void make_copies();

// What a parameter is: addresses of f32 (F), f64 (D), bf16 (B), u32 (U), u8 (C), addresses (T); an int (i), a float (f).
template <class A>
constexpr char kind_of() {
    if constexpr (std::is_pointer_v<A>) {
        using P = std::remove_cv_t<std::remove_pointer_t<A>>;
        return std::is_same_v<P, float>                ? 'F'
               : std::is_same_v<P, double>             ? 'D'
               : std::is_same_v<P, bf16>               ? 'B'
               : std::is_same_v<P, unsigned>           ? 'U'
               : std::is_same_v<P, unsigned char>      ? 'C'
               : std::is_same_v<P, unsigned long long> ? 'T'
                                                       : '?';
    } else {
        return std::is_same_v<A, int> ? 'i' : std::is_same_v<A, float> ? 'f' : '?';
    }
}

template <class... A>
const char *kinds_of(void (*)(A...)) {
    static const char kinds[] = {kind_of<A>()..., 0};
    return kinds;
}

template <class A>
A argument(const Cell *cell) {
    A value;
    memcpy(&value, cell, sizeof value);
    return value;
}

template <class... A, size_t... I>
void call_with(void (*kernel)(A...), const Cell *cells, std::index_sequence<I...>) {
    kernel(argument<A>(cells + I)...);
}

struct Registered {
    Registered(const char *name, const char *kinds, std::pair<void *, Caller> kernel) { add(name, kinds, kernel); }

  private:
    static void add(const char *name, const char *kinds, std::pair<void *, Caller> kernel);
};

template <class... A>
std::pair<void *, Caller> caller(void (*kernel)(A...)) {
    return {reinterpret_cast<void *>(kernel), [](void *kernel, const Cell *cells) {
                call_with(reinterpret_cast<void (*)(A...)>(kernel), cells, std::index_sequence_for<A...>());
            }};
}

template <class V>
V exchange(unsigned mask, V value, unsigned from) {
    static_assert(sizeof(V) <= sizeof(Cell), "a value of at most eight bytes");
    Cell cell = 0;
    memcpy(&cell, &value, sizeof value);
    cell = exchanged(mask, cell, from);
    memcpy(&value, &cell, sizeof value);
    return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier(); }

template <class V>
V __shfl_xor_sync(unsigned mask, V value, int distance) {
    return emulation::exchange(mask, value, emulation::lane() ^ static_cast<unsigned>(distance));
}

template <class V>
V __shfl_down_sync(unsigned mask, V value, int distance) {
    const unsigned from = emulation::lane() + static_cast<unsigned>(distance);
    return emulation::exchange(mask, value, from < 32 ? from : emulation::lane());
}

inline void __syncwarp() { emulation::exchange(0xffffffffu, 0, emulation::lane()); }

// What `common.cuh` and `tensor_core.cuh` have for a GPU.

namespace emulation {

inline void expect_aligned(const void *address, size_t bytes) {
    if (reinterpret_cast<size_t>(address) % bytes != 0) {
        refuse("an address that is not a multiple of what is read or written at once");
    }
}

inline float from_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

inline unsigned to_bf16(float value) {
    const unsigned bits = __float_as_uint(value);
    return value != value ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Two registers as one cell.
struct Registers {
    unsigned first, second;
};

// Sixteen values, of which each of four lanes, the first of them `from`, has two in each of its `registers`.
struct Sixteen {
    float values[16];
};

inline Sixteen sixteen_of(Registers registers, unsigned from) {
    Sixteen all;
    for (unsigned i = 0; i < 4; i++) {
        const Registers other = exchange(0xffffffffu, registers, from + i);
        const unsigned pairs[2] = {other.first, other.second};
        for (unsigned half = 0; half < 2; half++) {
            all.values[8 * half + 2 * i] = from_bf16(pairs[half] & 0xffffu);
            all.values[8 * half + 2 * i + 1] = from_bf16(pairs[half] >> 16);
        }
    }
    return all;
}

// The address of row `row` of matrix `matrix`, which the lane `8 * matrix + row` has.
inline const char *row_of(const bf16 *own, unsigned matrix, unsigned row) {
    return reinterpret_cast<const char *>(exchange(0xffffffffu, own, 8 * matrix + row));
}

}  // namespace emulation

inline void add_product(float (&sum)[4], const unsigned (&left)[4], unsigned right_upper, unsigned right_lower) {
    using namespace emulation;
    const unsigned group = lane() / 4, pair = 2 * (lane() % 4);
    const Sixteen rows[2] = {sixteen_of({left[0], left[2]}, 4 * group), sixteen_of({left[1], left[3]}, 4 * group)};
    const Registers right = {right_upper, right_lower};
    const Sixteen columns[2] = {sixteen_of(right, 4 * pair), sixteen_of(right, 4 * (pair + 1))};
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned place = 0; place < 4; place++) {
            sum[place] += rows[place / 2].values[i] * columns[place % 2].values[i];
        }
    }
}

inline void load_matrices(unsigned (&matrices)[4], const bf16 *row) {
    using namespace emulation;
    expect_aligned(row, 16);
    const unsigned group = lane() / 4, pair = 2 * (lane() % 4);
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        memcpy(&matrices[matrix], row_of(row, matrix, group) + 2 * pair, sizeof(unsigned));
    }
}

inline void load_transposed(unsigned (&matrices)[4], const bf16 *row) {
    using namespace emulation;
    expect_aligned(row, 16);
    const unsigned group = lane() / 4, pair = 2 * (lane() % 4);
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        unsigned short below[2];
        memcpy(&below[0], row_of(row, matrix, pair) + 2 * group, sizeof below[0]);
        memcpy(&below[1], row_of(row, matrix, pair + 1) + 2 * group, sizeof below[1]);
        matrices[matrix] = below[0] | static_cast<unsigned>(below[1]) << 16;
    }
}

inline void load_eight(unsigned (&pairs)[4], const bf16 *values) {
    emulation::expect_aligned(values, 16);
    memcpy(pairs, reinterpret_cast<const char *>(values), sizeof pairs);
}

inline void store_eight(bf16 *values, const unsigned (&pairs)[4]) {
    emulation::expect_aligned(values, 16);
    memcpy(reinterpret_cast<char *>(values), pairs, sizeof pairs);
}

inline void load_four(unsigned (&pairs)[2], const bf16 *values) {
    emulation::expect_aligned(values, 8);
    memcpy(pairs, reinterpret_cast<const char *>(values), sizeof pairs);
}

inline void store_four(bf16 *values, const unsigned (&pairs)[2]) {
    emulation::expect_aligned(values, 8);
    memcpy(reinterpret_cast<char *>(values), pairs, sizeof pairs);
}

inline void load_four(float (&four)[4], const float *values) {
    emulation::expect_aligned(values, 16);
    memcpy(four, values, sizeof four);
}

inline void store_four(float *values, const float (&four)[4]) {
    emulation::expect_aligned(values, 16);
    memcpy(values, four, sizeof four);
}

inline unsigned rounded_pair(float first, float second) {
    return emulation::to_bf16(first) | emulation::to_bf16(second) << 16;
}

inline void store_pair(bf16 *values, unsigned pair) {
    emulation::expect_aligned(values, 4);
    memcpy(reinterpret_cast<char *>(values), &pair, sizeof pair);
}

inline float power_of_two(float x) { return exp2f(x); }

inline void copy_eight(bf16 *to, const bf16 *from) {
    emulation::expect_aligned(to, 16);
    emulation::expect_aligned(from, 16);
    emulation::ask_for_copy(to, from, 16);
}

inline void copy_one(float *to, const float *from) { emulation::ask_for_copy(to, from, sizeof *to); }

inline void wait_for_copies() { emulation::make_copies(); }
