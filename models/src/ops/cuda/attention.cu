// What stands around the matrix products of attention: heads apart and together again, and the softmax of scores.
#include "common.cuh"

// Packed tokens [B, T, parts, H, d] to heads [parts, B, H, T, d], with the bias added, and the first part (the queries) scaled
// after that. A thread a packed column, over the rows of a chunk.
template <class T>
__device__ inline void split(const T *__restrict__ packed, const float *__restrict__ bias, T *__restrict__ heads_out,
                             float first_scale, int batch, int tokens, int parts, int heads, int head_dim, int chunk_rows, int across) {
    const int rows = batch * tokens, width = parts * heads * head_dim;
    const Strip strip = strip_of<1>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int column = strip.column, end = strip.end;
    const int part = column / (heads * head_dim), head = column / head_dim % heads, place = column % head_dim;
    const float add = bias == nullptr ? 0.f : bias[column], scale = part == 0 ? first_scale : 1.f;
    for (int row = strip.first; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            loaded[next] = load(packed, static_cast<offset_t>(row + next) * width + column);
        }
        EACH_AHEAD {
            const int image = (row + next) / tokens, token = (row + next) % tokens;
            const offset_t matrix = (static_cast<offset_t>(part) * batch + image) * heads + head;
            store(heads_out, (matrix * tokens + token) * head_dim + place, (loaded[next] + add) * scale);
        }
    }
}

// Heads [B, H, T, d], one tensor a part, to packed tokens [B, T, parts, H, d], the first part scaled.
template <class T>
__device__ inline void merge(const T *__restrict__ first_part, const T *__restrict__ second_part,
                             const T *__restrict__ third_part, T *__restrict__ packed, float first_scale, int batch,
                             int tokens, int parts, int heads, int head_dim, int chunk_rows, int across) {
    const int rows = batch * tokens, width = parts * heads * head_dim;
    const Strip strip = strip_of<1>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int column = strip.column, end = strip.end;
    const int part = column / (heads * head_dim), head = column / head_dim % heads, place = column % head_dim;
    const T *source = part == 0 ? first_part : part == 1 ? second_part : third_part;
    const float scale = part == 0 ? first_scale : 1.f;
    for (int row = strip.first; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            const int image = (row + next) / tokens, token = (row + next) % tokens;
            const offset_t matrix = static_cast<offset_t>(image) * heads + head;
            loaded[next] = load(source, (matrix * tokens + token) * head_dim + place) * scale;
        }
        EACH_AHEAD {
            store(packed, static_cast<offset_t>(row + next) * width + column, loaded[next]);
        }
    }
}

// The softmax of a row, in its place. A warp a row.
template <class T>
__device__ inline void softmax(T *scores, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    T *values = scores + static_cast<offset_t>(row) * width;
    float largest = -INFINITY;
    for (int column = lane; column < width; column += WARP) {
        largest = fmaxf(largest, load(values, column));
    }
    largest = warp_max(largest);
    float sum = 0.f;
    for (int column = lane; column < width; column += WARP) {
        sum += expf(load(values, column) - largest);
    }
    const float inverse = 1.f / warp_sum(sum);
    for (int column = lane; column < width; column += WARP) {
        store(values, column, expf(load(values, column) - largest) * inverse);
    }
}

// The gradient of a row of scores in the place of that of its probabilities: `p (dp - p . dp)`. A warp a row.
template <class T>
__device__ inline void softmax_gradient(const T *__restrict__ probabilities, T *grads, int rows, int width) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const T *p = probabilities + static_cast<offset_t>(row) * width;
    T *grad = grads + static_cast<offset_t>(row) * width;
    float along = 0.f;
    for (int column = lane; column < width; column += WARP) {
        along += load(p, column) * load(grad, column);
    }
    along = warp_sum(along);
    for (int column = lane; column < width; column += WARP) {
        store(grad, column, load(p, column) * (load(grad, column) - along));
    }
}

#define ATTENTION(T, suffix)                                                                                                 \
    KERNEL(split_heads_##suffix, const T *packed, const float *bias, T *heads_out, float first_scale, int batch, int tokens, \
           int parts, int heads, int head_dim, int chunk_rows, int across) {                                                             \
        split(packed, bias, heads_out, first_scale, batch, tokens, parts, heads, head_dim, chunk_rows, across);                      \
    }                                                                                                                        \
    KERNEL(merge_heads_##suffix, const T *first_part, const T *second_part, const T *third_part, T *packed,                  \
           float first_scale, int batch, int tokens, int parts, int heads, int head_dim, int chunk_rows, int across) {                   \
        merge(first_part, second_part, third_part, packed, first_scale, batch, tokens, parts, heads, head_dim, chunk_rows, across);  \
    }                                                                                                                        \
    KERNEL(softmax_forward_##suffix, T *scores, int rows, int width) { softmax(scores, rows, width); }                       \
    KERNEL(softmax_backward_##suffix, const T *probabilities, T *grads, int rows, int width) {                               \
        softmax_gradient(probabilities, grads, rows, width);                                                                 \
    }

ATTENTION(float, f32)
ATTENTION(bf16, bf16)
