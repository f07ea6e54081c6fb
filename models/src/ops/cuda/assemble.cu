// The tokens that enter the first block: `special` has the class token, the registers and, behind these `in_front` rows, the mask
// token; `positions` has a row for the class token and one for each of `count` patches.
#include "common.cuh"

__device__ inline bool is_masked(const unsigned char *masks, int image, int patch, int count) {
    return masks != nullptr && masks[static_cast<offset_t>(image) * count + patch] != 0;
}

// A thread a column, over the rows of a chunk.
KERNEL(assemble_forward, const float *patches, const float *positions, const float *special, const unsigned char *masks,
       float *tokens_out, int rows, int width, int in_front, int count, int chunk_rows, int across) {
    const Strip strip = strip_of<1>(rows, width, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int column = strip.column, end = strip.end, tokens = in_front + count;
    for (int row = strip.first; row < end; row += AHEAD) {
        float values[AHEAD];
        EACH_AHEAD {
            const int image = (row + next) / tokens, token = (row + next) % tokens, patch = token - in_front;
            if (patch < 0) {
                values[next] = special[static_cast<offset_t>(token) * width + column];
                values[next] += token == 0 ? positions[column] : 0.f;
            } else {
                const float *content = is_masked(masks, image, patch, count)
                                           ? special + static_cast<offset_t>(in_front) * width
                                           : patches + (static_cast<offset_t>(image) * count + patch) * width;
                values[next] = content[column] + positions[static_cast<offset_t>(1 + patch) * width + column];
            }
        }
        EACH_AHEAD {
            tokens_out[static_cast<offset_t>(row + next) * width + column] = values[next];
        }
    }
}

// A row of blocks for each token, a thread a column, over all images: the gradients of patches, their sums over the images for
// each token [T, D], and for each patch those of the images in which it is masked [N, D].
KERNEL(assemble_backward, const float *grad, const unsigned char *masks, float *dpatches, float *of_tokens, float *of_masked,
       int batch, int width, int in_front, int count) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y, patch = token - in_front;
    if (column >= width) {
        return;
    }
    const int tokens = in_front + count, end = batch;
    float sum = 0.f, masked_sum = 0.f;
    for (int row = 0; row < end; row += AHEAD) {
        float loaded[AHEAD];
        EACH_AHEAD {
            loaded[next] = grad[(static_cast<offset_t>(row + next) * tokens + token) * width + column];
        }
        EACH_AHEAD {
            sum += loaded[next];
            if (patch >= 0) {
                const bool masked = is_masked(masks, row + next, patch, count);
                masked_sum += masked ? loaded[next] : 0.f;
                dpatches[(static_cast<offset_t>(row + next) * count + patch) * width + column] = masked ? 0.f : loaded[next];
            }
        }
    }
    of_tokens[static_cast<offset_t>(token) * width + column] = sum;
    if (patch >= 0 && of_masked != nullptr) {
        of_masked[static_cast<offset_t>(patch) * width + column] = masked_sum;
    }
}
