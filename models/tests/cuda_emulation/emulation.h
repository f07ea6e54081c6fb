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
