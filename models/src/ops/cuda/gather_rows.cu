// Chosen rows, and their gradients back. A warp a row.
#include "common.cuh"

KERNEL(gather_rows_forward, const float *x, const unsigned *chosen, float *out, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const offset_t source = static_cast<offset_t>(chosen[row]) * width, start = static_cast<offset_t>(row) * width;
    for (int column = lane; column < width; column += WARP) {
        out[start + column] = x[source + column];
    }
}

// Row `row` was taken by `takers[starts[row]..starts[row + 1]]`: its gradient is the sum of theirs, in their order.
KERNEL(gather_rows_backward, const float *grad, const unsigned *starts, const unsigned *takers, float *dx, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const unsigned first = starts[row], end = starts[row + 1];
    for (int column = lane; column < width; column += WARP) {
        float sum = 0.f;
        for (unsigned taker = first; taker < end; taker++) {
            sum += grad[static_cast<offset_t>(takers[taker]) * width + column];
        }
        dx[static_cast<offset_t>(row) * width + column] = sum;
    }
}
