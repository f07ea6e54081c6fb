// Square patches of images as rows: [B, C, H, W] to [B rows columns, depth], where the values of a patch are [C, P, P] and what of the
// depth is beyond them is 0. A thread has eight values of the patches of a chunk.
#include "common.cuh"

template <class T>
__device__ inline void cut(const float *__restrict__ pixels, T *__restrict__ out, int patches, int depth, int channels, int height,
                           int width, int patch, int chunk_rows, int across) {
    const int V = 8;
    const Strip strip = strip_of<V>(patches, depth, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    // Where its values are from the corner of a patch.
    int offsets[V];
    EACH_OF(V) {
        const int value = strip.column + i, channel = value / (patch * patch), row = value / patch % patch;
        offsets[i] = channel < channels ? (channel * height + row) * width + value % patch : -1;
    }
    const int rows = height / patch, columns = width / patch;
    for (int number = strip.first; number < strip.end; number++) {
        const int image = number / (rows * columns), row = number / columns % rows, column = number % columns;
        const float *corner = pixels + (static_cast<offset_t>(image) * channels * height + row * patch) * width + column * patch;
        Several<V> values;
        EACH_OF(V) { values.values[i] = offsets[i] < 0 ? 0.f : corner[offsets[i]]; }
        store_several<V>(out, static_cast<offset_t>(number) * depth + strip.column, values);
    }
}

#define PATCHES(T, suffix)                                                                                                   \
    KERNEL(patches_##suffix, const float *pixels, T *out, int patches, int depth, int channels, int height, int width,       \
           int patch, int chunk_rows, int across) {                                                                          \
        cut(pixels, out, patches, depth, channels, height, width, patch, chunk_rows, across);                                \
    }

PATCHES(float, f32)
PATCHES(bf16, bf16)
