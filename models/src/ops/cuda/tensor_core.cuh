// Products of 16 x 16 by 16 x 8 values on tensor cores (sm_80 and newer), each made by the 32 lanes of a warp together, and how
// their factors get into registers. Factors are bf16, two a register, the first in its lower half; sums are f32. With
// `group = lane / 4` and `pair = 2 * (lane % 4)` a lane holds (row, column) of
//   a left factor [16, 16]:  (group, pair), (group + 8, pair), (group, pair + 8), (group + 8, pair + 8), and the value right of each;
//   a right factor [16, 8]:  (pair, group), (pair + 8, group), and the value below each;
//   a sum [16, 8]:           (group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1).
// So two sums beside each other, rounded, are a left factor.
#pragma once
#include "common.cuh"

// Elsewhere the emulation has these.
#ifdef __CUDACC__
// sum += left right
__device__ inline void add_product(float (&sum)[4], const unsigned (&left)[4], unsigned right_upper, unsigned right_lower) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_upper), "r"(right_lower));
}

// Four matrices [8, 8] from shared memory. `row` is 16 bytes, row `lane % 8` of matrix `lane / 8`; of each matrix a lane gets
// (group, pair) and its right neighbour.
__device__ inline void load_matrices(unsigned (&matrices)[4], const bf16 *row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

// The same, of which a lane gets (pair, group) and its neighbour below.
__device__ inline void load_transposed(unsigned (&matrices)[4], const bf16 *row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void store_pair(bf16 *values, unsigned pair) { *reinterpret_cast<unsigned *>(values) = pair; }

// Copies of 16 and of 4 bytes to shared memory, from and to multiples of as many, that a thread asks for and goes on: they are there
// once it has waited for them, for other threads after a barrier behind that.
__device__ inline void copy_eight(bf16 *to, const bf16 *from) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

__device__ inline void copy_one(float *to, const float *from) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
}

__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2^x, to about two units in the last place.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
#endif
