// Kernels with faults, for the test that the emulation sees them.
#define BLOCK_FLOATS 64

KERNEL(broken_no_barrier, float *out, int count) {
    SHARED_FLOATS(shared);
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (static_cast<int>(threadIdx.x) < count) {
        out[threadIdx.x] = shared[BLOCK_FLOATS - 1 - threadIdx.x];
    }
}

KERNEL(broken_barrier_of_some, float *out, int count) {
    if (static_cast<int>(threadIdx.x) < count) {
        __syncthreads();
        out[threadIdx.x] = 1.f;
    }
}

KERNEL(broken_writes_before, float *out, int count) {
    if (static_cast<int>(threadIdx.x) < count) {
        out[static_cast<int>(threadIdx.x) - 1] = 1.f;
    }
}

KERNEL(broken_unaligned, float *out, int count) {
    unsigned zeros[4] = {0, 0, 0, 0};
    store_eight(reinterpret_cast<bf16 *>(out + count), zeros);
}

KERNEL(broken_copy, float *out, int count) {
    SHARED_FLOATS(shared);
    copy_one(shared + threadIdx.x, out + threadIdx.x);
    if (static_cast<int>(threadIdx.x) < count) {
        out[threadIdx.x] = shared[threadIdx.x];
    }
}
