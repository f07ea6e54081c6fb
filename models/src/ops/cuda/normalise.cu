// Rows brought to unit length, and directions brought to the length of a gain. A warp a row.
#include "common.cuh"

__device__ inline float length_of(const float *__restrict__ row, int width, int lane) {
    float squares = 0.f;
    for (int column = lane; column < width; column += WARP) {
        squares += row[column] * row[column];
    }
    return sqrtf(warp_sum(squares));
}

__device__ inline float dot(const float *__restrict__ a, const float *__restrict__ b, int width, int lane) {
    float sum = 0.f;
    for (int column = lane; column < width; column += WARP) {
        sum += a[column] * b[column];
    }
    return warp_sum(sum);
}

KERNEL(l2_normalize_forward, const float *x, float *out, float *lengths, int rows, int width, float eps) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const offset_t start = static_cast<offset_t>(row) * width;
    const float length = length_of(x + start, width, lane);
    const float scale = 1.f / fmaxf(length, eps);
    for (int column = lane; column < width; column += WARP) {
        out[start + column] = x[start + column] * scale;
    }
    if (lane == 0) {
        lengths[row] = length;
    }
}

// `dx = (g - y (y . g)) / |x|`; below `eps` the length counts as constant.
KERNEL(l2_normalize_backward, const float *y, const float *grad, const float *lengths, float *dx, int rows, int width,
       float eps) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const offset_t start = static_cast<offset_t>(row) * width;
    const float length = lengths[row], scale = 1.f / fmaxf(length, eps);
    const float whole = dot(y + start, grad + start, width, lane);
    const float along = length > eps ? whole : 0.f;
    for (int column = lane; column < width; column += WARP) {
        dx[start + column] = (grad[start + column] - y[start + column] * along) * scale;
    }
}

KERNEL(weight_norm_forward, const float *directions, const float *gain, float *out, float *lengths, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const offset_t start = static_cast<offset_t>(row) * width;
    const float length = length_of(directions + start, width, lane);
    const float scale = gain[row] / length;
    for (int column = lane; column < width; column += WARP) {
        out[start + column] = directions[start + column] * scale;
    }
    if (lane == 0) {
        lengths[row] = length;
    }
}

// With u the unit direction: `dgain = u . g` and `dv = gain / |v| (g - u (u . g))`.
KERNEL(weight_norm_backward, const float *directions, const float *gain, const float *lengths, const float *grad,
       float *ddirections, float *dgain, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const offset_t start = static_cast<offset_t>(row) * width;
    const float inverse = 1.f / lengths[row];
    const float along = dot(directions + start, grad + start, width, lane) * inverse;
    const float scale = gain[row] * inverse, back = along * inverse;
    for (int column = lane; column < width; column += WARP) {
        ddirections[start + column] = scale * (grad[start + column] - directions[start + column] * back);
    }
    if (lane == 0) {
        dgain[row] = along;
    }
}
