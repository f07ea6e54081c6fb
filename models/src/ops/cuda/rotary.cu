// Rotary positions: queries and keys of a packed projection [rows, 3 H d] are turned in place, where asked behind the bias of the
// projection. The values j and j + d / 2 of a head are a pair. A thread has a few pairs of the rows of a chunk; those of values, which
// are not turned, only get their bias.
#include "common.cuh"

// Row `row` is token `row % tokens` of an image and has the angles [d / 2] of that token. `heads` are those of a row's `parts` parts
// that are gone through: all three with a bias, else queries and keys.
template <int V, class T>
__device__ inline void turn(T *__restrict__ qkv, const float *__restrict__ bias, const float *__restrict__ cosines,
                            const float *__restrict__ sines, int rows, int tokens, int heads, int parts, int half, float sign,
                            int chunk_rows, int across) {
    const Strip strip = strip_of<V>(rows, parts * heads * half, chunk_rows, across);
    if (strip.is_empty) {
        return;
    }
    const int head = strip.column / half, pair = strip.column % half, first = 2 * head * half + pair, second = first + half;
    const bool is_turned = head < 2 * heads;
    const Several<V> add_first = load_or_zeros<V>(bias, first), add_second = load_or_zeros<V>(bias, second);
    const int end = strip.end;
    for (int row = strip.first; row < end; row += Ahead<V>::ROWS) {
        Several<V> firsts[Ahead<V>::ROWS], seconds[Ahead<V>::ROWS];
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const offset_t start = static_cast<offset_t>(row + next) * 6 * heads * half;
            firsts[next] = load_several<V>(qkv, start + first);
            seconds[next] = load_several<V>(qkv, start + second);
        }
        EACH_OF_AHEAD(Ahead<V>::ROWS) {
            const offset_t angle = static_cast<offset_t>((row + next) % tokens) * half + pair;
            Several<V> cosine, sine;
            if (is_turned) {
                cosine = load_several<V>(cosines, angle);
                sine = load_several<V>(sines, angle);
            }
            EACH_OF(V) {
                const float x = firsts[next].values[i] + add_first.values[i], y = seconds[next].values[i] + add_second.values[i];
                const float c = is_turned ? cosine.values[i] : 1.f, s = is_turned ? sign * sine.values[i] : 0.f;
                firsts[next].values[i] = x * c - y * s;
                seconds[next].values[i] = y * c + x * s;
            }
            const offset_t start = static_cast<offset_t>(row + next) * 6 * heads * half;
            store_several<V>(qkv, start + first, firsts[next]);
            store_several<V>(qkv, start + second, seconds[next]);
        }
    }
}

#define ROTARY(T, V, suffix)                                                                                                 \
    KERNEL(rotary_##suffix, T *qkv, const float *bias, const float *cosines, const float *sines, int rows, int tokens,       \
           int heads, int parts, int half, float sign, int chunk_rows, int across) {                                         \
        turn<V>(qkv, bias, cosines, sines, rows, tokens, heads, parts, half, sign, chunk_rows, across);                      \
    }

ROTARY(float, 1, f32)
ROTARY(bf16, 1, bf16)
ROTARY(float, 8, f32_wide)
ROTARY(bf16, 8, bf16_wide)
