// Crops out of decoded images, level for level as the processor makes them (`resize.rs`, `photometric.rs`, `blur.rs` and
// `transform.rs` of macula's `src/data`): two passes of a resize with 8-bit pixels in between, then colours, then blur,
// solarisation and normalisation. A product that something is added to is rounded first, as there: what ends in `_rn` is never
// fused. Images are [height, width, 3] levels, and places of pixels count from the first of a buffer.
#include "common.cuh"

typedef unsigned char level_t;

// Words of a crop in the table (`augment.rs`): its window, where the image between the passes lies, where the weights of columns
// and rows begin and how many words each row of them has, what is done, the changes of colour (kind and factor) and the blur's
// weights.
static const int START = 0, STRIDE = 1, WIDTH = 2, HEIGHT = 3, MIDDLE = 4, COLUMNS = 5, COLUMN_WORDS = 6, ROWS = 7, ROW_WORDS = 8,
                 FLAGS = 9, THRESHOLD = 10, CHANGES = 11, BLUR = 19, WORDS = 28;
static const int MOST_CHANGES = 4;
// Of its flags.
static const unsigned VERTICAL_FIRST = 1, MIRRORED = 2, GREY = 4, BLURRED = 8;
// Kinds of changes.
static const unsigned BRIGHTNESS = 1, CONTRAST = 2, SATURATION = 3, HUE = 4;

// Fractional bits of a weight.
static const int FRACTION_BITS = 22;
// Pixels on each side of a blurred one, its weights, and the pixels that a block of `crop_values` makes (`geometry.rs`).
static const int RADIUS = 4, TAPS = 2 * RADIUS + 1, TILE_WIDTH = 32, TILE_HEIGHT = 8, PADDED = TILE_WIDTH + 2 * RADIUS;

struct Pixel {
    int red, green, blue;
};

__device__ inline Pixel pixel_at(const level_t *image, offset_t place) {
    const level_t *levels = image + 3 * place;
    return {levels[0], levels[1], levels[2]};
}

__device__ inline void put_pixel(level_t *image, offset_t place, Pixel pixel) {
    level_t *levels = image + 3 * place;
    levels[0] = static_cast<level_t>(pixel.red);
    levels[1] = static_cast<level_t>(pixel.green);
    levels[2] = static_cast<level_t>(pixel.blue);
}

// A weighted sum of pixels that lie `step` apart. `row` is the first of them, how many they are, and their weights.
__device__ inline Pixel filtered(const level_t *image, offset_t place, offset_t step, const unsigned *row) {
    const int half = 1 << (FRACTION_BITS - 1);
    int red = half, green = half, blue = half;
    place += row[0] * step;
    for (unsigned tap = 0; tap < row[1]; tap++, place += step) {
        const Pixel pixel = pixel_at(image, place);
        const int weight = static_cast<int>(row[2 + tap]);
        red += weight * pixel.red;
        green += weight * pixel.green;
        blue += weight * pixel.blue;
    }
    return {min(max(red >> FRACTION_BITS, 0), 255), min(max(green >> FRACTION_BITS, 0), 255),
            min(max(blue >> FRACTION_BITS, 0), 255)};
}

// The first pass of every crop's resize, along rows unless columns come first: from its window of `pixels` to its part of
// `middle`, [HEIGHT, size] or [size, WIDTH]. The blocks of an x share the pixels of a crop.
KERNEL(crop_first_pass, const level_t *pixels, const unsigned *crops, const unsigned *weights, level_t *middle, int size) {
    const unsigned *crop = crops + static_cast<offset_t>(blockIdx.x) * WORDS;
    const bool vertical = (crop[FLAGS] & VERTICAL_FIRST) != 0;
    const unsigned width = vertical ? crop[WIDTH] : static_cast<unsigned>(size);
    const unsigned height = vertical ? static_cast<unsigned>(size) : crop[HEIGHT];
    const offset_t stride = crop[STRIDE], count = static_cast<offset_t>(width) * height;
    const offset_t step = static_cast<offset_t>(gridDim.y) * blockDim.x;
    for (offset_t place = static_cast<offset_t>(blockIdx.y) * blockDim.x + threadIdx.x; place < count; place += step) {
        const offset_t x = place % width, y = place / width;
        Pixel pixel;
        if (vertical) {
            pixel = filtered(pixels, crop[START] + x, stride, weights + crop[ROWS] + y * crop[ROW_WORDS]);
        } else {
            pixel = filtered(pixels, crop[START] + y * stride, 1, weights + crop[COLUMNS] + x * crop[COLUMN_WORDS]);
        }
        put_pixel(middle, crop[MIDDLE] + place, pixel);
    }
}

// The second pass, and the mirroring: from `middle` to `images`, [crops, size, size].
KERNEL(crop_second_pass, const level_t *middle, const unsigned *crops, const unsigned *weights, level_t *images, int size) {
    const unsigned *crop = crops + static_cast<offset_t>(blockIdx.x) * WORDS;
    const bool vertical_first = (crop[FLAGS] & VERTICAL_FIRST) != 0, mirrored = (crop[FLAGS] & MIRRORED) != 0;
    const offset_t width = crop[WIDTH], count = static_cast<offset_t>(size) * size;
    const offset_t step = static_cast<offset_t>(gridDim.y) * blockDim.x;
    for (offset_t place = static_cast<offset_t>(blockIdx.y) * blockDim.x + threadIdx.x; place < count; place += step) {
        const offset_t x = place % size, y = place / size;
        Pixel pixel;
        if (vertical_first) {
            pixel = filtered(middle, crop[MIDDLE] + y * width, 1, weights + crop[COLUMNS] + x * crop[COLUMN_WORDS]);
        } else {
            pixel = filtered(middle, crop[MIDDLE] + x, size, weights + crop[ROWS] + y * crop[ROW_WORDS]);
        }
        put_pixel(images, blockIdx.x * count + (mirrored ? y * size + size - 1 - x : place), pixel);
    }
}

// Cut off to a level and clipped. NaN is 0.
template <class V>
__device__ inline int cut_off(V value) {
    return value >= V(255) ? 255 : value > V(0) ? static_cast<int>(value) : 0;
}

__device__ inline int luma_of(Pixel pixel) {
    return static_cast<int>((pixel.red * 19595u + pixel.green * 38470u + pixel.blue * 7471u + 0x8000u) >> 16);
}

// `from + factor * (to - from)` in f32.
__device__ inline int blended(int from, int to, float factor) {
    return cut_off(__fadd_rn(static_cast<float>(from), __fmul_rn(factor, static_cast<float>(to - from))));
}

__device__ inline Pixel blended(int from, Pixel to, float factor) {
    return {blended(from, to.red, factor), blended(from, to.green, factor), blended(from, to.blue, factor)};
}

// How far `level` lies below the largest one, as a part of the whole span.
__device__ inline double distance_of(int value, int level, float chroma) {
    return static_cast<double>(__fdiv_rn(static_cast<float>(value - level), chroma));
}

__device__ inline int level_of(int value, double part) {
    return cut_off(__dadd_rn(__dmul_rn(static_cast<double>(value), part), 0.5));
}

// Hue turned by `shift` of 256 through 8-bit HSV. Which operations are in f32 and which in f64 decides the level.
__device__ inline Pixel turned(Pixel pixel, int shift) {
    const int value = max(pixel.red, max(pixel.green, pixel.blue)), low = min(pixel.red, min(pixel.green, pixel.blue));
    int hue = 0, saturation = 0;
    if (value != low) {
        const float chroma = static_cast<float>(value - low);
        saturation = cut_off(static_cast<double>(__fdiv_rn(chroma, static_cast<float>(value))) * 255.);
        double base = 4.;
        int after = pixel.green, before = pixel.red;
        if (pixel.green == value) {
            base = 2., after = pixel.red, before = pixel.blue;
        }
        if (pixel.red == value) {
            base = 0., after = pixel.blue, before = pixel.green;
        }
        const float sector =
            static_cast<float>(base + distance_of(value, after, chroma) - distance_of(value, before, chroma));
        const double turns = static_cast<double>(sector) / 6. + 1.;
        hue = cut_off(static_cast<double>(static_cast<float>(turns < 1. ? turns : turns - 1.)) * 255.);
    }
    const double position = static_cast<double>((hue + shift) & 255) * 6. / 255.;
    const int sector = static_cast<int>(position);
    const double rest = static_cast<double>(static_cast<float>(position - sector));
    const double strength = static_cast<double>(static_cast<float>(static_cast<double>(saturation) / 255.));
    const int lowest = level_of(value, 1. - strength);
    const int falling = level_of(value, __dsub_rn(1., __dmul_rn(strength, rest)));
    const int rising = level_of(value, __dsub_rn(1., __dmul_rn(strength, 1. - rest)));
    switch (sector % 6) {
    case 0:
        return {value, rising, lowest};
    case 1:
        return {falling, value, lowest};
    case 2:
        return {lowest, value, rising};
    case 3:
        return {lowest, falling, value};
    case 4:
        return {rising, lowest, value};
    default:
        return {value, lowest, falling};
    }
}

// The pixel after the first `count` changes of a crop, whose mean luma before the change of contrast is `mean`.
__device__ inline Pixel changed(Pixel pixel, const unsigned *changes, int count, int mean) {
    for (int change = 0; change < count; change++) {
        const unsigned kind = changes[2 * change], word = changes[2 * change + 1];
        if (kind == BRIGHTNESS) {
            pixel = blended(0, pixel, __uint_as_float(word));
        } else if (kind == CONTRAST) {
            pixel = blended(mean, pixel, __uint_as_float(word));
        } else if (kind == SATURATION) {
            pixel = blended(luma_of(pixel), pixel, __uint_as_float(word));
        } else if (kind == HUE) {
            pixel = turned(pixel, static_cast<int>(word));
        }
    }
    return pixel;
}

// The sum of whole numbers over a block, in each of its threads. `scratch` holds a word a warp.
__device__ inline unsigned block_total(unsigned value, unsigned *scratch) {
    const unsigned warps = blockDim.x / WARP;
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    unsigned total = 0;
    for (unsigned warp = 0; warp < warps; warp++) {
        total += scratch[warp];
    }
    return total;
}

// The changes of colour, in their order, and grey. A block a crop, in place.
KERNEL(crop_colours, const unsigned *crops, level_t *images, int size) {
    SHARED_FLOATS(shared);
    const unsigned *crop = crops + static_cast<offset_t>(blockIdx.x) * WORDS, *changes = crop + CHANGES;
    const unsigned area = static_cast<unsigned>(size) * static_cast<unsigned>(size);
    level_t *image = images + static_cast<offset_t>(blockIdx.x) * area * 3;
    int before_contrast = -1;
    bool unchanged = (crop[FLAGS] & GREY) == 0;
    for (int change = 0; change < MOST_CHANGES; change++) {
        before_contrast = changes[2 * change] == CONTRAST ? change : before_contrast;
        unchanged = unchanged && changes[2 * change] == 0;
    }
    if (unchanged) {
        return;
    }
    int mean = 0;
    if (before_contrast >= 0) {
        unsigned sum = 0;
        for (unsigned place = threadIdx.x; place < area; place += blockDim.x) {
            sum += static_cast<unsigned>(luma_of(changed(pixel_at(image, place), changes, before_contrast, 0)));
        }
        // Halves are rounded up. Twice the sum over 2048 x 2048 pixels is less than 2^32.
        const unsigned total = block_total(sum, reinterpret_cast<unsigned *>(shared));
        mean = static_cast<int>((2 * total + area) / (2 * area));
    }
    for (unsigned place = threadIdx.x; place < area; place += blockDim.x) {
        Pixel pixel = changed(pixel_at(image, place), changes, MOST_CHANGES, mean);
        if (crop[FLAGS] & GREY) {
            const int luma = luma_of(pixel);
            pixel = {luma, luma, luma};
        }
        put_pixel(image, place, pixel);
    }
}

// Which of `length` samples lies at `place` of those with [`RADIUS`] mirrored ones before the first and after the last.
__device__ inline int mirrored_place(int place, int length) {
    const int period = 2 * (length - 1);
    if (period == 0) {
        return 0;
    }
    const int offset = (place + period * RADIUS - RADIUS) % period;
    return min(offset, period - offset);
}

// Blur, solarisation and normalisation: `images` [crops, size, size, 3] to `out` [crops, 3, size, size]. `values` [3, 256] has
// what each level of a channel becomes. A block makes 32 x 8 pixels, of whose columns it first leaves the sums in shared memory.
KERNEL(crop_values, const unsigned *crops, const level_t *images, const float *values, float *out, int size) {
    SHARED_FLOATS(sums); // [TILE_HEIGHT, PADDED, 3]
    const unsigned *crop = crops + static_cast<offset_t>(blockIdx.x) * WORDS;
    const float *weights = reinterpret_cast<const float *>(crop + BLUR);
    const int across = (size + TILE_WIDTH - 1) / TILE_WIDTH;
    const int left = static_cast<int>(blockIdx.y) % across * TILE_WIDTH, top = static_cast<int>(blockIdx.y) / across * TILE_HEIGHT;
    const offset_t area = static_cast<offset_t>(size) * size;
    const level_t *image = images + blockIdx.x * area * 3;
    const bool blurred = (crop[FLAGS] & BLURRED) != 0;
    if (blurred) {
        for (int place = static_cast<int>(threadIdx.x); place < TILE_HEIGHT * PADDED; place += static_cast<int>(blockDim.x)) {
            const int y = top + place / PADDED, padded = left + place % PADDED;
            if (y >= size || padded >= size + 2 * RADIUS) {
                continue;
            }
            const int x = mirrored_place(padded, size);
            float red = 0.f, green = 0.f, blue = 0.f;
            for (int tap = 0; tap < TAPS; tap++) {
                const Pixel pixel = pixel_at(image, static_cast<offset_t>(mirrored_place(y + tap, size)) * size + x);
                red = __fadd_rn(red, __fmul_rn(weights[tap], static_cast<float>(pixel.red)));
                green = __fadd_rn(green, __fmul_rn(weights[tap], static_cast<float>(pixel.green)));
                blue = __fadd_rn(blue, __fmul_rn(weights[tap], static_cast<float>(pixel.blue)));
            }
            sums[3 * place] = red;
            sums[3 * place + 1] = green;
            sums[3 * place + 2] = blue;
        }
        __syncthreads();
    }
    const int column = static_cast<int>(threadIdx.x) % TILE_WIDTH, row = static_cast<int>(threadIdx.x) / TILE_WIDTH;
    const int x = left + column, y = top + row;
    if (x >= size || y >= size) {
        return;
    }
    const offset_t place = static_cast<offset_t>(y) * size + x;
    for (int channel = 0; channel < 3; channel++) {
        int level;
        if (blurred) {
            float sum = 0.f;
            for (int tap = 0; tap < TAPS; tap++) {
                sum = __fadd_rn(sum, __fmul_rn(weights[tap], sums[3 * (row * PADDED + column + tap) + channel]));
            }
            level = cut_off(__fadd_rn(sum, 0.5f));
        } else {
            level = image[3 * place + channel];
        }
        if (static_cast<unsigned>(level) >= crop[THRESHOLD]) {
            level = 255 - level;
        }
        out[(blockIdx.x * 3 + channel) * area + place] = values[256 * channel + level];
    }
}
