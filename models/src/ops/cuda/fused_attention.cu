// Attention on tensor cores that keeps no scores. A block has the rows of a few warps, 16 each, of one head of one image, and
// passes over all other rows of it a tile at a time, which its warps share: while one is worked on, the next one is copied. A warp
// keeps its own rows and what it adds up in registers, and makes the scores of 16 x 64 pairs or fewer there, uses them and forgets
// them: forward relative to the largest score so far, backward with the logarithm of the row's sum, which the forward pass leaves.
// Factors of products are rounded to bf16; all else is in f32.
//
// Rows beyond the last are zeros in shared memory, and what comes of them is not written. Every row of a result is added up by
// one warp in the order of the tiles, so it is the same every time.
#include "tensor_core.cuh"

// Rows of a warp and of a tile, and values that a row in shared memory is longer by: rows then start four banks apart, and the
// eight rows of a matrix are read from all banks at once (`geometry.rs` has these too).
#define OWN_ROWS 16
#define TILE_ROWS 64
#define PADDING 8
// Values that a thread copies at once.
#define EIGHT 8

static const float LOG2_E = 1.4426950408889634f;

// The sum over the four lanes that have a row of a product, in each of them.
__device__ inline float quad_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

__device__ inline float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Where a warp works: at the rows from `first` of one head of one image. `group` and `pair` say what its lane has of a product.
struct Place {
    int image, head, first, warp, warps, lane, group, pair;
};

__device__ inline Place place_of(int tokens, int heads) {
    Place at;
    at.warps = blockDim.x / WARP, at.warp = threadIdx.x / WARP, at.lane = threadIdx.x % WARP;
    at.group = at.lane / 4, at.pair = 2 * (at.lane % 4);
    const int rows = at.warps * OWN_ROWS, blocks = (tokens + rows - 1) / rows, matrix = blockIdx.x / blocks;
    at.image = matrix / heads, at.head = matrix % heads;
    at.first = blockIdx.x % blocks * rows + at.warp * OWN_ROWS;
    return at;
}

// The rows of a head in packed tokens [B, T, parts, H, D].
template <class V>
struct Rows {
    V *start;
    offset_t stride;
    int count;

    __device__ V *at(int row) const { return start + row * stride; }
};

template <int D, class V>
__device__ inline Rows<V> rows_of(V *packed, const Place &at, int parts, int part, int tokens, int heads) {
    const offset_t first = (static_cast<offset_t>(at.image) * tokens * parts + part) * heads + at.head;
    return {packed + first * D, static_cast<offset_t>(parts) * heads * D, tokens};
}

// A packed projection [B, T, 3, H, D] and its bias [3, H, D], or null, which is added in shared memory or on the way to it; queries
// are scaled after that.
struct Projection {
    const bf16 *packed;
    const float *bias;
    float scale;
    int tokens, heads;
};

enum Part { QUERIES, KEYS, VALUES };

// The eight values from `column` of a part's rows: what is added to them, and what they are multiplied with then.
template <int D>
struct Change {
    float add[EIGHT], scale;
    bool is_none;

    __device__ Change(const Projection &from, Part part, const Place &at, int column) {
        const offset_t first = static_cast<offset_t>(part * from.heads + at.head) * D + column;
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            add[i] = from.bias == nullptr ? 0.f : from.bias[first + i];
        }
        scale = part == QUERIES ? from.scale : 1.f;
        is_none = from.bias == nullptr && scale == 1.f;
    }

    __device__ inline void apply(unsigned (&eight)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            eight[i] = rounded_pair((first_of(eight[i]) + add[2 * i]) * scale, (second_of(eight[i]) + add[2 * i + 1]) * scale);
        }
    }
};

// The rows of a warp to its shared memory, by itself. A row is a few threads' eight values each; those beyond the last are zeros.
template <int D>
__device__ inline void stage_own(bf16 *own, const Projection &from, Part part, const Place &at) {
    const int column = at.lane % (D / EIGHT) * EIGHT, first = at.lane / (D / EIGHT), step = WARP / (D / EIGHT);
    const Rows<const bf16> rows = rows_of<D>(from.packed, at, 3, part, from.tokens, from.heads);
    const Change<D> change(from, part, at, column);
    unsigned loaded[OWN_ROWS / step][4];
#pragma unroll
    for (int pass = 0; pass < OWN_ROWS / step; pass++) {
        const int row = at.first + first + pass * step;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            loaded[pass][i] = 0;
        }
        if (row < rows.count) {
            load_eight(loaded[pass], rows.at(row) + column);
            change.apply(loaded[pass]);
        }
    }
#pragma unroll
    for (int pass = 0; pass < OWN_ROWS / step; pass++) {
        store_eight(own + (first + pass * step) * (D + PADDING) + column, loaded[pass]);
    }
}

// Asks for the rows `first` to `first + count`, by all warps; those beyond the last are zeros.
template <int D>
__device__ inline void ask_for(bf16 *tile, const Rows<const bf16> &rows, int first, int count) {
    const int column = threadIdx.x % (D / EIGHT) * EIGHT, step = blockDim.x / (D / EIGHT);
    for (int row = threadIdx.x / (D / EIGHT); row < count; row += step) {
        bf16 *to = tile + row * (D + PADDING) + column;
        if (first + row < rows.count) {
            copy_eight(to, rows.at(first + row) + column);
        } else {
            const unsigned zeros[4] = {0, 0, 0, 0};
            store_eight(to, zeros);
        }
    }
}

template <int D>
__device__ inline void ask_for_part(bf16 *tile, const Projection &from, Part part, const Place &at, int first, int count) {
    ask_for<D>(tile, rows_of<D>(from.packed, at, 3, part, from.tokens, from.heads), first, count);
}

// Adds the bias to the first `count` rows of a tile, and scales queries: every thread to what it has asked for, which is there.
template <int D>
__device__ inline void change_part(bf16 *tile, const Projection &from, Part part, const Place &at, int count) {
    const int column = threadIdx.x % (D / EIGHT) * EIGHT, step = blockDim.x / (D / EIGHT);
    const Change<D> change(from, part, at, column);
    if (change.is_none) {
        return;
    }
    for (int row = threadIdx.x / (D / EIGHT); row < count; row += step) {
        unsigned eight[4];
        load_eight(eight, tile + row * (D + PADDING) + column);
        change.apply(eight);
        store_eight(tile + row * (D + PADDING) + column, eight);
    }
}

// Where a lane's row of four matrices is that are 16 rows of 16 values: the upper ones first, or the left ones first.
template <int D>
__device__ inline const bf16 *upper_first(const bf16 *tile, int lane) {
    return tile + lane % 16 * (D + PADDING) + lane / 16 * 8;
}

template <int D>
__device__ inline const bf16 *left_first(const bf16 *tile, int lane) {
    return tile + (lane % 8 + lane / 16 * 8) * (D + PADDING) + lane / 8 % 2 * 8;
}

// The rows of a warp as left factors.
template <int D>
struct Factor {
    unsigned values[D / 16][4];

    __device__ inline void take(const bf16 *own, int lane) {
#pragma unroll
        for (int depth = 0; depth < D / 16; depth++) {
            load_matrices(values[depth], upper_first<D>(own, lane) + 16 * depth);
        }
    }
};

// Sums of the rows of a warp [16, 8 N]: `N` products beside each other.
template <int N>
struct Sums {
    float values[N][4];

    __device__ inline void clear() {
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                values[i][place] = 0.f;
            }
        }
    }

    // Two of the products, rounded, as a left factor [16, 16].
    __device__ inline void rounded(unsigned (&left)[4], int chunk) const {
        const float(&a)[4] = values[2 * chunk], (&b)[4] = values[2 * chunk + 1];
        left[0] = rounded_pair(a[0], a[1]), left[1] = rounded_pair(a[2], a[3]);
        left[2] = rounded_pair(b[0], b[1]), left[3] = rounded_pair(b[2], b[3]);
    }
};

// Products of the warp's rows with 16 rows a chunk of a tile: [16, D] [D, 16 CHUNKS].
template <int D, int CHUNKS>
__device__ inline void multiply_rows(Sums<2 * CHUNKS> &sums, const Factor<D> &own, const bf16 *tile, int lane) {
    sums.clear();
#pragma unroll
    for (int depth = 0; depth < D / 16; depth++) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            unsigned right[4];
            load_matrices(right, left_first<D>(tile, lane) + 16 * chunk * (D + PADDING) + 16 * depth);
            add_product(sums.values[2 * chunk], own.values[depth], right[0], right[1]);
            add_product(sums.values[2 * chunk + 1], own.values[depth], right[2], right[3]);
        }
    }
}

// Adds weighted rows of a tile: [16, 16 CHUNKS] [16 CHUNKS, D].
template <int D, int CHUNKS>
__device__ inline void add_weighted(Sums<D / 8> &sums, const Sums<2 * CHUNKS> &weights, const bf16 *tile, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        unsigned left[4];
        weights.rounded(left, chunk);
#pragma unroll
        for (int depth = 0; depth < D / 16; depth++) {
            unsigned right[4];
            load_transposed(right, upper_first<D>(tile, lane) + 16 * chunk * (D + PADDING) + 16 * depth);
            add_product(sums.values[2 * depth], left, right[0], right[1]);
            add_product(sums.values[2 * depth + 1], left, right[2], right[3]);
        }
    }
}

// Writes the rows of a warp, those of a lane times `upper` and `lower`, by way of the warp's own shared memory.
template <int D>
__device__ inline void leave(const Rows<bf16> &rows, bf16 *own, const Sums<D / 8> &sums, float upper, float lower,
                             const Place &at) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        bf16 *to = own + at.group * (D + PADDING) + 8 * i + at.pair;
        store_pair(to, rounded_pair(sums.values[i][0] * upper, sums.values[i][1] * upper));
        store_pair(to + 8 * (D + PADDING), rounded_pair(sums.values[i][2] * lower, sums.values[i][3] * lower));
    }
    __syncwarp();
    const int column = at.lane % (D / EIGHT) * EIGHT;
    for (int row = at.lane / (D / EIGHT); row < OWN_ROWS; row += WARP / (D / EIGHT)) {
        if (at.first + row < rows.count) {
            unsigned eight[4];
            load_eight(eight, own + row * (D + PADDING) + column);
            store_eight(rows.at(at.first + row) + column, eight);
        }
    }
}

// What the forward pass knows of a warp's rows so far. Logarithms are to base 2.
template <int D>
struct Softmax {
    Sums<D / 8> out;
    float largest[2], sum[2]; // of row `group` and of row `group + 8`; the sum over the keys of this lane

    __device__ inline void clear() {
        out.clear();
        largest[0] = largest[1] = -INFINITY;
        sum[0] = sum[1] = 0.f;
    }

    // Takes in the keys of a few chunks, of which the first `present` exist, at least one.
    template <int CHUNKS>
    __device__ inline void attend(const Factor<D> &query, const bf16 *keys, const bf16 *values, int present, const Place &at) {
        Sums<2 * CHUNKS> scores;
        multiply_rows<D, CHUNKS>(scores, query, keys, at.lane);
        if (present < 16 * CHUNKS) {
#pragma unroll
            for (int i = 0; i < 2 * CHUNKS; i++) {
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    if (8 * i + at.pair + place % 2 >= present) {
                        scores.values[i][place] = -INFINITY;
                    }
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            weigh<CHUNKS>(scores, half);
        }
        add_weighted<D, CHUNKS>(out, scores, values, at.lane);
    }

    // Turns the scores of a row into weights, relative to the largest score so far, and what is summed up of it as well.
    template <int CHUNKS>
    __device__ inline void weigh(Sums<2 * CHUNKS> &scores, int half) {
        float high = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++) {
            high = fmaxf(high, fmaxf(scores.values[i][2 * half], scores.values[i][2 * half + 1]));
        }
        high = fmaxf(largest[half], quad_max(high) * LOG2_E);
        const float shrink = power_of_two(largest[half] - high);
        largest[half] = high;
        sum[half] *= shrink;
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++) {
#pragma unroll
            for (int place = 2 * half; place < 2 * half + 2; place++) {
                const float weight = power_of_two(scores.values[i][place] * LOG2_E - high);
                scores.values[i][place] = weight;
                sum[half] += weight;
            }
        }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            out.values[i][2 * half] *= shrink;
            out.values[i][2 * half + 1] *= shrink;
        }
    }
};

// A number of chunks as a type.
template <int N>
struct Chunks {
    static const int count = N;
};

// Calls `work(row, chunks)` along the `count` rows of a tile: for `MOST` chunks at once while there are so many, then for one.
template <int MOST, class Work>
__device__ inline void by_chunks(int count, const Work &work) {
    int row = 0;
    for (; row + 16 * (MOST - 1) < count; row += 16 * MOST) {
        work(row, Chunks<MOST>());
    }
    for (; row < count; row += 16) {
        work(row, Chunks<1>());
    }
}

// Rows of a tile to ask for, of which `count` exist.
__device__ inline int whole_chunks(int count) { return (count + 15) / 16 * 16; }

// Where two tiles lie in shared memory, two matrices each: one is worked on while the other is copied. A warp's own rows have room where
// no tile is: before the first round in the place of the second tile, after the last round in that of the tile before it.
template <int D>
struct TwoTiles {
    // Values of a matrix, behind which the second one starts, and of a tile.
    static constexpr int SECOND = TILE_ROWS * (D + PADDING), ALL = 2 * SECOND;
    bf16 *start;

    __device__ explicit TwoTiles(float *shared) : start(reinterpret_cast<bf16 *>(shared)) {}
    __device__ bf16 *of(int number) const { return start + number * ALL; }
    __device__ bf16 *own(int number, const Place &at) const { return of(number) + at.warp * OWN_ROWS * (D + PADDING); }
    // Behind them, a few numbers of rows.
    __device__ float *numbers() const { return reinterpret_cast<float *>(of(2)); }
};

// Asks for the keys and values of a tile that begins at `first`, where there is one.
template <int D>
__device__ inline void ask_for_keys_and_values(bf16 *tile, const Projection &from, const Place &at, int first) {
    const int rows = whole_chunks(min(from.tokens - first, TILE_ROWS));
    ask_for_part<D>(tile, from, KEYS, at, first, rows);
    ask_for_part<D>(tile + TwoTiles<D>::SECOND, from, VALUES, at, first, rows);
}

// The tile, when what this thread has asked for is there.
template <int D>
__device__ inline const bf16 *finished_keys_and_values(bf16 *tile, const Projection &from, const Place &at, int count) {
    wait_for_copies();
    change_part<D>(tile, from, KEYS, at, count);
    change_part<D>(tile + TwoTiles<D>::SECOND, from, VALUES, at, count);
    return tile;
}

// Packed projection [B, T, 3, H, D] without its bias to the result [B, T, H, D] and the logarithms of the sums of every row's
// exponentials [B, H, T], to base 2. Shared: keys and values of two tiles.
template <int D>
__device__ inline void attend_all(const bf16 *__restrict__ qkv, const float *__restrict__ bias, bf16 *__restrict__ out,
                                  float *__restrict__ log_sums, float scale, int tokens, int heads) {
    SHARED_FLOATS(shared);
    const Place at = place_of(tokens, heads);
    const Projection projection = {qkv, bias, scale, tokens, heads};
    const TwoTiles<D> tiles(shared);
    ask_for_keys_and_values<D>(tiles.of(0), projection, at, 0);
    bf16 *own = tiles.own(1, at);
    stage_own<D>(own, projection, QUERIES, at);
    __syncwarp();
    Factor<D> query;
    query.take(own, at.lane);
    Softmax<D> softmax;
    softmax.clear();
    int number = 0;
    for (int tile = 0; tile < tokens; tile += TILE_ROWS, number ^= 1) {
        const int count = min(tokens - tile, TILE_ROWS);
        const bf16 *keys = finished_keys_and_values<D>(tiles.of(number), projection, at, count), *values = keys + tiles.SECOND;
        // All of the tile is there, and nobody reads the one before it any more, or its own rows in the place of the next.
        __syncthreads();
        ask_for_keys_and_values<D>(tiles.of(number ^ 1), projection, at, tile + TILE_ROWS);
        if (at.first < tokens) {
            by_chunks<4>(count, [&](int row, auto chunks) {
                const int from = row * (D + PADDING);
                softmax.template attend<decltype(chunks)::count>(query, keys + from, values + from, count - row, at);
            });
        }
    }
    if (at.first >= tokens) {
        return;
    }
    const float sums[2] = {quad_sum(softmax.sum[0]), quad_sum(softmax.sum[1])};
    // Unrolled, or the array that it indexes would not be in registers.
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = at.first + at.group + 8 * half;
        if (at.pair == 0 && row < tokens) {
            const offset_t matrix = static_cast<offset_t>(at.image) * heads + at.head;
            log_sums[matrix * tokens + row] = softmax.largest[half] + log2f(sums[half]);
        }
    }
    leave<D>(rows_of<D>(out, at, 1, 0, tokens, heads), tiles.own(number, at), softmax.out, 1.f / sums[0], 1.f / sums[1], at);
}

// Own rows of the result's gradient to `tile`, and their products with those of the result, which is what the gradient of a
// softmax subtracts, to `deltas`, by a warp.
template <int D>
__device__ inline void stage_gradient(bf16 *tile, float *deltas, const Rows<const bf16> &dout, const Rows<const bf16> &out,
                                      const Place &at) {
    const int column = at.lane % (D / EIGHT) * EIGHT, step = WARP / (D / EIGHT);
#pragma unroll
    for (int pass = 0; pass < OWN_ROWS / step; pass++) {
        const int row = pass * step + at.lane / (D / EIGHT), from = at.first + row;
        unsigned grads[4] = {0, 0, 0, 0}, results[4] = {0, 0, 0, 0};
        if (from < dout.count) {
            load_eight(grads, dout.at(from) + column);
            load_eight(results, out.at(from) + column);
        }
        store_eight(tile + row * (D + PADDING) + column, grads);
        float delta = 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            delta += first_of(grads[i]) * first_of(results[i]) + second_of(grads[i]) * second_of(results[i]);
        }
        for (int distance = 1; distance < D / EIGHT; distance *= 2) {
            delta += __shfl_xor_sync(ALL_LANES, delta, distance);
        }
        if (column == 0) {
            deltas[row] = delta;
        }
    }
}

// The gradient of the queries that are a warp's rows, from the keys of a few chunks, of which the first `present` exist.
template <int D, int CHUNKS>
__device__ inline void add_dquery(Sums<D / 8> &dquery, const Factor<D> &query, const Factor<D> &dout, const float (&log_sum)[2],
                                  const float (&delta)[2], const bf16 *keys, const bf16 *values, int present, const Place &at) {
    Sums<2 * CHUNKS> scores, dscores;
    multiply_rows<D, CHUNKS>(scores, query, keys, at.lane);
    multiply_rows<D, CHUNKS>(dscores, dout, values, at.lane);
#pragma unroll
    for (int i = 0; i < 2 * CHUNKS; i++) {
#pragma unroll
        for (int place = 0; place < 4; place++) {
            const float probability = power_of_two(scores.values[i][place] * LOG2_E - log_sum[place / 2]);
            dscores.values[i][place] = probability * (dscores.values[i][place] - delta[place / 2]);
        }
    }
    if (present < 16 * CHUNKS) {
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++) {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                if (8 * i + at.pair + place % 2 >= present) {
                    dscores.values[i][place] = 0.f;
                }
            }
        }
    }
    add_weighted<D, CHUNKS>(dquery, dscores, keys, at.lane);
}

// The gradients of the keys and values that are a warp's rows, from the queries of a few chunks. Those that do not exist have
// an infinite `log_sums`, so that nothing has a probability.
template <int D, int CHUNKS>
__device__ inline void add_dkey_dvalue(Sums<D / 8> &dkey, Sums<D / 8> &dvalue, const Factor<D> &key, const Factor<D> &value,
                                       const bf16 *queries, const bf16 *douts, const float *log_sums, const float *deltas,
                                       const Place &at) {
    Sums<2 * CHUNKS> scores, dscores;
    multiply_rows<D, CHUNKS>(scores, key, queries, at.lane);
    multiply_rows<D, CHUNKS>(dscores, value, douts, at.lane);
#pragma unroll
    for (int i = 0; i < 2 * CHUNKS; i++) {
#pragma unroll
        for (int place = 0; place < 4; place++) {
            const int query = 8 * i + at.pair + place % 2;
            const float probability = power_of_two(scores.values[i][place] * LOG2_E - log_sums[query]);
            scores.values[i][place] = probability;
            dscores.values[i][place] = probability * (dscores.values[i][place] - deltas[query]);
        }
    }
    add_weighted<D, CHUNKS>(dvalue, scores, douts, at.lane);
    add_weighted<D, CHUNKS>(dkey, dscores, queries, at.lane);
}

// The gradient of the queries' part of the packed projection, and the products of the result with its gradient, `deltas`
// [B, H, T], for `make_dkey_dvalue`. Shared: keys and values of two tiles, and deltas of the own rows of every warp.
template <int D>
__device__ inline void make_dquery(const bf16 *__restrict__ qkv, const float *__restrict__ bias, const bf16 *__restrict__ out,
                                   const float *__restrict__ log_sums, const bf16 *__restrict__ dout, bf16 *__restrict__ dqkv,
                                   float *__restrict__ deltas, float scale, int tokens, int heads) {
    SHARED_FLOATS(shared);
    const Place at = place_of(tokens, heads);
    const Projection projection = {qkv, bias, scale, tokens, heads};
    const TwoTiles<D> tiles(shared);
    ask_for_keys_and_values<D>(tiles.of(0), projection, at, 0);
    bf16 *own = tiles.own(1, at);
    float *own_deltas = tiles.numbers() + at.warp * OWN_ROWS;
    Factor<D> query, out_grad;
    stage_own<D>(own, projection, QUERIES, at);
    __syncwarp();
    query.take(own, at.lane);
    __syncwarp();
    stage_gradient<D>(own, own_deltas, rows_of<D>(dout, at, 1, 0, tokens, heads), rows_of<D>(out, at, 1, 0, tokens, heads), at);
    __syncwarp();
    out_grad.take(own, at.lane);
    const offset_t matrix = (static_cast<offset_t>(at.image) * heads + at.head) * tokens;
    float log_sum[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int own_row = at.group + 8 * half, row = at.first + own_row;
        log_sum[half] = row < tokens ? log_sums[matrix + row] : INFINITY;
        delta[half] = own_deltas[own_row];
        if (at.pair == 0 && row < tokens) {
            deltas[matrix + row] = delta[half];
        }
    }
    Sums<D / 8> dquery;
    dquery.clear();
    int number = 0;
    for (int tile = 0; tile < tokens; tile += TILE_ROWS, number ^= 1) {
        const int count = min(tokens - tile, TILE_ROWS);
        const bf16 *keys = finished_keys_and_values<D>(tiles.of(number), projection, at, count), *values = keys + tiles.SECOND;
        __syncthreads();
        ask_for_keys_and_values<D>(tiles.of(number ^ 1), projection, at, tile + TILE_ROWS);
        if (at.first < tokens) {
            by_chunks<2>(count, [&](int row, auto chunks) {
                const int from = row * (D + PADDING);
                add_dquery<D, decltype(chunks)::count>(dquery, query, out_grad, log_sum, delta, keys + from, values + from,
                                                       count - row, at);
            });
        }
    }
    if (at.first < tokens) {
        leave<D>(rows_of<D>(dqkv, at, 3, QUERIES, tokens, heads), tiles.own(number, at), dquery, scale, scale, at);
    }
}

// A tile for `make_dkey_dvalue`: queries, gradients of the result, logarithms of sums and deltas.
template <int D>
struct Queries {
    bf16 *queries, *douts;
    float *log_sums, *deltas;

    __device__ Queries(const TwoTiles<D> &tiles, int number) : queries(tiles.of(number)), douts(queries + tiles.SECOND) {
        log_sums = tiles.numbers() + 2 * number * TILE_ROWS, deltas = log_sums + TILE_ROWS;
    }

    // Asks for the rows from `first`, where there are any; those that do not exist give nothing a probability.
    __device__ inline void ask(const Projection &from, const Rows<const bf16> &all_douts, const float *all_log_sums,
                               const float *all_deltas, const Place &at, int first) const {
        const int count = min(from.tokens - first, TILE_ROWS), rows = whole_chunks(count);
        ask_for_part<D>(queries, from, QUERIES, at, first, rows);
        ask_for<D>(douts, all_douts, first, rows);
        for (int row = threadIdx.x; row < rows; row += blockDim.x) {
            if (row < count) {
                copy_one(log_sums + row, all_log_sums + first + row);
                copy_one(deltas + row, all_deltas + first + row);
            } else {
                log_sums[row] = INFINITY, deltas[row] = 0.f;
            }
        }
    }
};

// The gradients of the keys' and the values' part of the packed projection. Shared: queries, gradients of the result, logarithms of sums
// and deltas of two tiles.
template <int D>
__device__ inline void make_dkey_dvalue(const bf16 *__restrict__ qkv, const float *__restrict__ bias,
                                        const float *__restrict__ log_sums, const bf16 *__restrict__ dout,
                                        const float *__restrict__ deltas, bf16 *__restrict__ dqkv, float scale, int tokens,
                                        int heads) {
    SHARED_FLOATS(shared);
    const Place at = place_of(tokens, heads);
    const Projection projection = {qkv, bias, scale, tokens, heads};
    const TwoTiles<D> tiles(shared);
    const Rows<const bf16> douts = rows_of<D>(dout, at, 1, 0, tokens, heads);
    const offset_t matrix = (static_cast<offset_t>(at.image) * heads + at.head) * tokens;
    Queries<D>(tiles, 0).ask(projection, douts, log_sums + matrix, deltas + matrix, at, 0);
    bf16 *own = tiles.own(1, at);
    Factor<D> key, value;
    stage_own<D>(own, projection, KEYS, at);
    __syncwarp();
    key.take(own, at.lane);
    __syncwarp();
    stage_own<D>(own, projection, VALUES, at);
    __syncwarp();
    value.take(own, at.lane);
    Sums<D / 8> dkey, dvalue;
    dkey.clear();
    dvalue.clear();
    int number = 0;
    for (int tile = 0; tile < tokens; tile += TILE_ROWS, number ^= 1) {
        const int count = min(tokens - tile, TILE_ROWS);
        const Queries<D> now(tiles, number);
        wait_for_copies();
        change_part<D>(now.queries, projection, QUERIES, at, count);
        __syncthreads();
        Queries<D>(tiles, number ^ 1).ask(projection, douts, log_sums + matrix, deltas + matrix, at, tile + TILE_ROWS);
        if (at.first < tokens) {
            by_chunks<1>(count, [&](int row, auto chunks) {
                const int from = row * (D + PADDING);
                add_dkey_dvalue<D, decltype(chunks)::count>(dkey, dvalue, key, value, now.queries + from, now.douts + from,
                                                            now.log_sums + row, now.deltas + row, at);
            });
        }
    }
    if (at.first < tokens) {
        leave<D>(rows_of<D>(dqkv, at, 3, KEYS, tokens, heads), tiles.own(number, at), dkey, 1.f, 1.f, at);
        leave<D>(rows_of<D>(dqkv, at, 3, VALUES, tokens, heads), tiles.own(number, at), dvalue, 1.f, 1.f, at);
    }
}

// All of the packed projection's gradient, of no more rows than a block has. Shared: queries, keys, values, gradients of the
// result and room for what is written, all rows of each; logarithms of sums and deltas.
template <int D>
__device__ inline void make_all_gradients(const bf16 *__restrict__ qkv, const float *__restrict__ bias,
                                          const bf16 *__restrict__ out, const float *__restrict__ log_sums,
                                          const bf16 *__restrict__ dout, bf16 *__restrict__ dqkv, float scale, int tokens,
                                          int heads) {
    SHARED_FLOATS(shared);
    const Place at = place_of(tokens, heads);
    const Projection projection = {qkv, bias, scale, tokens, heads};
    const int rows = at.warps * OWN_ROWS, tile = rows * (D + PADDING);
    const int own_row = at.warp * OWN_ROWS, own = own_row * (D + PADDING);
    bf16 *queries = reinterpret_cast<bf16 *>(shared), *keys = queries + tile, *values = keys + tile, *douts = values + tile;
    bf16 *written = douts + tile + own;
    float *all_log_sums = reinterpret_cast<float *>(douts + 2 * tile), *deltas = all_log_sums + rows;
    stage_own<D>(queries + own, projection, QUERIES, at);
    stage_own<D>(keys + own, projection, KEYS, at);
    stage_own<D>(values + own, projection, VALUES, at);
    stage_gradient<D>(douts + own, deltas + own_row, rows_of<D>(dout, at, 1, 0, tokens, heads),
                      rows_of<D>(out, at, 1, 0, tokens, heads), at);
    if (at.lane < OWN_ROWS) {
        const int row = at.first + at.lane;
        const offset_t matrix = static_cast<offset_t>(at.image) * heads + at.head;
        all_log_sums[row] = row < tokens ? log_sums[matrix * tokens + row] : INFINITY;
    }
    __syncthreads();
    {
        Factor<D> query, out_grad;
        query.take(queries + own, at.lane);
        out_grad.take(douts + own, at.lane);
        const int upper = own_row + at.group, lower = upper + 8;
        const float log_sum[2] = {all_log_sums[upper], all_log_sums[lower]}, delta[2] = {deltas[upper], deltas[lower]};
        Sums<D / 8> dquery;
        dquery.clear();
        by_chunks<2>(tokens, [&](int row, auto chunks) {
            const int from = row * (D + PADDING);
            add_dquery<D, decltype(chunks)::count>(dquery, query, out_grad, log_sum, delta, keys + from, values + from,
                                                   tokens - row, at);
        });
        leave<D>(rows_of<D>(dqkv, at, 3, QUERIES, tokens, heads), written, dquery, scale, scale, at);
    }
    Factor<D> key, value;
    key.take(keys + own, at.lane);
    value.take(values + own, at.lane);
    Sums<D / 8> dkey, dvalue;
    dkey.clear();
    dvalue.clear();
    by_chunks<1>(tokens, [&](int row, auto chunks) {
        const int from = row * (D + PADDING);
        add_dkey_dvalue<D, decltype(chunks)::count>(dkey, dvalue, key, value, queries + from, douts + from, all_log_sums + row,
                                                    deltas + row, at);
    });
    leave<D>(rows_of<D>(dqkv, at, 3, KEYS, tokens, heads), written, dkey, 1.f, 1.f, at);
    leave<D>(rows_of<D>(dqkv, at, 3, VALUES, tokens, heads), written, dvalue, 1.f, 1.f, at);
}

// Threads of a block at most, and blocks that a multiprocessor is to hold: of registers there are enough for twelve warps.
#define MOST_OWN 6 * WARP, 2
#define MOST_ALL 4 * WARP, 3

#define FUSED_ATTENTION(D)                                                                                                   \
    BOUNDED_KERNEL(MOST_OWN, fused_attention_##D, const bf16 *qkv, const float *bias, bf16 *out, float *log_sums,            \
                   float scale, int tokens, int heads) {                                                                     \
        attend_all<D>(qkv, bias, out, log_sums, scale, tokens, heads);                                                       \
    }                                                                                                                        \
    BOUNDED_KERNEL(MOST_OWN, fused_attention_dquery_##D, const bf16 *qkv, const float *bias, const bf16 *out,                \
                   const float *log_sums, const bf16 *dout, bf16 *dqkv, float *deltas, float scale, int tokens, int heads) { \
        make_dquery<D>(qkv, bias, out, log_sums, dout, dqkv, deltas, scale, tokens, heads);                                  \
    }                                                                                                                        \
    BOUNDED_KERNEL(MOST_OWN, fused_attention_dkey_dvalue_##D, const bf16 *qkv, const float *bias,                            \
                   const float *log_sums, const bf16 *dout, const float *deltas, bf16 *dqkv, float scale, int tokens,        \
                   int heads) {                                                                                              \
        make_dkey_dvalue<D>(qkv, bias, log_sums, dout, deltas, dqkv, scale, tokens, heads);                                  \
    }                                                                                                                        \
    BOUNDED_KERNEL(MOST_ALL, fused_attention_backward_##D, const bf16 *qkv, const float *bias, const bf16 *out,              \
                   const float *log_sums, const bf16 *dout, bf16 *dqkv, float scale, int tokens, int heads) {                \
        make_all_gradients<D>(qkv, bias, out, log_sums, dout, dqkv, scale, tokens, heads);                                   \
    }

FUSED_ATTENTION(64)
