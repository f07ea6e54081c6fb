//! Resizing as Pillow does it, bit for bit (python-pillow/Pillow: src/libImaging/Resample.c): antialiased bilinear and
//! bicubic (A = -0.5) with weights rounded to 22 fractional bits, and 8-bit pixels between the passes. Features depend on
//! these roundings: a floating-point resize differs by a level here and there. The horizontal pass comes first, except
//! where Pillow 13 turns the order around (see `vertical_first`); earlier versions never did.

use serde::{Deserialize, Serialize};

use super::image::{ImageView, RgbImage};

/// Fractional bits of a weight: 32 less the 8 of a sample less 2 for overshoot.
const FRACTION_BITS: u32 = 22;
/// Rows that the horizontal pass takes at once: 8 rows x 3 channels are three vectors of eight 32-bit sums.
const ROWS: usize = 8;
/// Sums that the vertical pass keeps in registers.
const LANES: usize = 32;

/// The filter of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter, Pillow's `BILINEAR`.
    Bilinear,
    /// Cubic convolution with A = -0.5, Pillow's `BICUBIC`.
    Bicubic,
}

impl Interpolation {
    /// Half the filter's width, in output pixels when shrinking and in input pixels when enlarging.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter's value at `x`. The order of the operations is Pillow's, so that the roundings are.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// The part of a resized image that is wanted: the rest is never computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// The source samples that one output sample is a weighted sum of.
struct Taps {
    first: usize,
    count: usize,
}

/// The weights of one direction: for each wanted output sample its [`Taps`] and as many weights, in fixed point for 8-bit pixels.
pub(super) struct Coefficients<W = i32> {
    taps: Vec<Taps>,
    weights: Vec<W>, // [outputs, width]
    width: usize,
}

impl Coefficients {
    /// The weights for output samples `first..first + count` of `output`, made from `input` samples.
    fn new(input: u32, output: u32, first: u32, count: u32, filter: Interpolation) -> Self {
        Self::rounded(input, output, (first, count), filter, to_fixed)
    }
}

impl<W: Copy + Default> Coefficients<W> {
    /// As [`Coefficients::new`], each weight as `round` makes it.
    pub(super) fn rounded(
        input: u32,
        output: u32,
        (first, count): (u32, u32),
        filter: Interpolation,
        round: impl Fn(f64) -> W,
    ) -> Self {
        let scale = f64::from(input) / f64::from(output);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let width = support.ceil() as usize * 2 + 1;
        let mut taps = Vec::with_capacity(count as usize);
        let mut weights = vec![W::default(); count as usize * width];
        let mut exact = vec![0.0_f64; width];
        for (place, out) in (first..first + count).zip(weights.chunks_exact_mut(width)) {
            let centre = (f64::from(place) + 0.5) * scale;
            let begin = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input as usize);
            let exact = &mut exact[..end - begin];
            let mut total = 0.0;
            for (tap, weight) in exact.iter_mut().enumerate() {
                *weight = filter.weight(((tap + begin) as f64 - centre + 0.5) * (1.0 / stretch));
                total += *weight;
            }
            for (rounded, weight) in out.iter_mut().zip(exact.iter()) {
                *rounded = round(if total == 0.0 { *weight } else { weight / total });
            }
            taps.push(Taps {
                first: begin,
                count: end - begin,
            });
        }
        Self { taps, weights, width }
    }

    /// How many output samples are wanted.
    pub(super) fn outputs(&self) -> usize {
        self.taps.len()
    }

    /// The taps and weights of wanted output sample `place`.
    pub(super) fn at(&self, place: usize) -> (usize, &[W]) {
        let taps = &self.taps[place];
        let start = place * self.width;
        (taps.first, &self.weights[start..start + taps.count])
    }
}

/// Where [`append_weights`] has put the weights of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightRows {
    /// The first word.
    pub start: usize,
    /// Words of a row.
    pub words: usize,
}

/// Appends the weights of a resize of `input` samples to `output`, for a device that is to do it: a row of words for each output
/// sample, with the first source sample, how many it is a sum of, and their weights in fixed point of [`FRACTION_BITS`]. Rows are
/// filled up with zeros to one length. Both counts are at least 1.
pub fn append_weights(input: u32, output: u32, filter: Interpolation, words: &mut Vec<u32>) -> WeightRows {
    let start = words.len();
    let coefficients = Coefficients::new(input, output, 0, output, filter);
    let rows = coefficients.weights.chunks_exact(coefficients.width);
    words.reserve(output as usize * (coefficients.width + 2));
    for (taps, weights) in coefficients.taps.iter().zip(rows) {
        words.extend([taps.first as u32, taps.count as u32]);
        words.extend(weights.iter().map(|weight| weight.cast_unsigned()));
    }
    WeightRows {
        start,
        words: coefficients.width + 2,
    }
}

/// Rounds a weight half away from zero to [`FRACTION_BITS`], as C's cast of `0.5 + w` and `-0.5 + w` does.
fn to_fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << FRACTION_BITS);
    (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
}

/// The fixed-point sum as a sample.
#[inline(always)]
fn to_sample(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Resizes `source` to `width` x `height`, as `Image.resize((width, height), filter)`; `None` when a side is 0 or the
/// result does not fit memory's address range. Of a crop only the crop is read: `img.crop(box).resize(..)`.
pub fn resize(source: &ImageView, width: u32, height: u32, filter: Interpolation) -> Option<RgbImage> {
    let whole = Window {
        left: 0,
        top: 0,
        width,
        height,
    };
    resize_window(source, width, height, whole, filter)
}

/// The `window` of [`resize`]'s result, computed alone: `img.resize((width, height), filter).crop(window)`. `None` also
/// when the window is empty or reaches outside.
pub fn resize_window(
    source: &ImageView,
    width: u32,
    height: u32,
    window: Window,
    filter: Interpolation,
) -> Option<RgbImage> {
    let inside =
        window.left.checked_add(window.width)? <= width && window.top.checked_add(window.height)? <= height;
    if !inside || window.width == 0 || window.height == 0 {
        return None;
    }
    super::image::byte_len(window.width, window.height)?;
    // A pass that would change nothing is left out, as in Pillow.
    let columns = (width != source.width())
        .then(|| Coefficients::new(source.width(), width, window.left, window.width, filter));
    let rows = (height != source.height())
        .then(|| Coefficients::new(source.height(), height, window.top, window.height, filter));
    let (left, right) = span(columns.as_ref(), window.left, window.width);
    let (top, bottom) = span(rows.as_ref(), window.top, window.height);
    let needed = source.crop(left, top, right - left, bottom - top)?;
    match (columns, rows) {
        (None, None) => Some(needed.to_image()),
        (Some(columns), None) => horizontal(&needed, left, &columns),
        (None, Some(rows)) => vertical(&needed, top, &rows),
        (Some(columns), Some(rows)) if vertical_first((source.width(), source.height()), (width, height)) => {
            horizontal(&vertical(&needed, top, &rows)?.view(), left, &columns)
        }
        (Some(columns), Some(rows)) => vertical(&horizontal(&needed, left, &columns)?.view(), top, &rows),
    }
}

/// Whether Pillow 13 filters the columns first, of a resize from one width and height to another: where the height loses more
/// than twice as many pixels as the width (`ImagingResampleInner`). The order shows in the result, because pixels are rounded
/// between the passes.
pub fn vertical_first((source_width, source_height): (u32, u32), (width, height): (u32, u32)) -> bool {
    let lost_rows = i64::from(source_height) - i64::from(height);
    let lost_columns = i64::from(source_width) - i64::from(width);
    lost_rows > 0 && lost_rows > 2 * lost_columns
}

/// The first source sample that the wanted outputs need, and the one after the last.
pub(super) fn span<W>(coefficients: Option<&Coefficients<W>>, first: u32, count: u32) -> (u32, u32) {
    match coefficients.map(|coefficients| &coefficients.taps[..]) {
        Some([start, .., end]) => (start.first as u32, (end.first + end.count) as u32),
        Some([only]) => (only.first as u32, (only.first + only.count) as u32),
        _ => (first, first + count),
    }
}

/// Filters each row of `source`, whose first column is column `left` of the image: `[h, w, 3]` to `[h, outputs, 3]`.
fn horizontal(source: &ImageView, left: u32, columns: &Coefficients) -> Option<RgbImage> {
    let outputs = columns.taps.len();
    let mut out = vec![0_u8; source.height() as usize * outputs * 3];
    let mut packed = vec![[0_u8; ROWS * 3]; source.width() as usize];
    for (block, out) in out.chunks_mut(ROWS * outputs * 3).enumerate() {
        let rows = out.len() / (outputs * 3);
        for row in 0..rows {
            let samples = source.row((block * ROWS + row) as u32);
            for (column, pixel) in packed.iter_mut().zip(samples.chunks_exact(3)) {
                column[row * 3..row * 3 + 3].copy_from_slice(pixel);
            }
        }
        horizontal_block(&packed, left as usize, columns, out);
    }
    RgbImage::new(outputs as u32, source.height(), out)
}

/// Filters up to [`ROWS`] rows that lie side by side: `packed` is `[columns, ROWS, 3]`, `out` `[rows, outputs, 3]`.
fn horizontal_block(packed: &[[u8; ROWS * 3]], first: usize, columns: &Coefficients, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the one thing this function asks for.
        #[allow(unsafe_code)]
        return unsafe { horizontal_block_avx2(packed, first, columns, out) };
    }
    horizontal_block_any(packed, first, columns, out);
}

/// [`horizontal_block_any`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn horizontal_block_avx2(packed: &[[u8; ROWS * 3]], first: usize, columns: &Coefficients, out: &mut [u8]) {
    horizontal_block_any(packed, first, columns, out);
}

#[inline(always)]
fn horizontal_block_any(packed: &[[u8; ROWS * 3]], first: usize, columns: &Coefficients, out: &mut [u8]) {
    let outputs = columns.taps.len();
    for place in 0..outputs {
        let (start, weights) = columns.at(place);
        let mut sums = [1_i32 << (FRACTION_BITS - 1); ROWS * 3];
        for (samples, &weight) in packed[start - first..].iter().zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(samples) {
                *sum += weight * i32::from(sample);
            }
        }
        let samples = sums.map(to_sample);
        for (row, pixel) in out.chunks_exact_mut(outputs * 3).zip(samples.chunks_exact(3)) {
            row[place * 3..place * 3 + 3].copy_from_slice(pixel);
        }
    }
}

/// Filters each column of `source`, whose first row is row `top` of the image: `[h, w, 3]` to `[outputs, w, 3]`.
fn vertical(source: &ImageView, top: u32, rows: &Coefficients) -> Option<RgbImage> {
    let width = source.width() as usize * 3;
    let mut out = vec![0_u8; rows.taps.len() * width];
    for (place, out) in out.chunks_exact_mut(width).enumerate() {
        let (start, weights) = rows.at(place);
        vertical_row(
            source.rows_from(start as u32 - top),
            source.stride(),
            weights,
            out,
        );
    }
    RgbImage::new(source.width(), rows.taps.len() as u32, out)
}

/// One output row: the weighted sum of as many rows of `source` as there are weights.
fn vertical_row(source: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the one thing this function asks for.
        #[allow(unsafe_code)]
        return unsafe { vertical_row_avx2(source, stride, weights, out) };
    }
    vertical_row_any(source, stride, weights, out);
}

/// [`vertical_row_any`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn vertical_row_avx2(source: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    vertical_row_any(source, stride, weights, out);
}

#[inline(always)]
fn vertical_row_any(source: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    let mut chunks = out.chunks_exact_mut(LANES);
    let mut at = 0;
    for chunk in &mut chunks {
        let mut sums = [1_i32 << (FRACTION_BITS - 1); LANES];
        for (row, &weight) in weights.iter().enumerate() {
            let start = row * stride + at;
            for (sum, &sample) in sums.iter_mut().zip(&source[start..start + LANES]) {
                *sum += weight * i32::from(sample);
            }
        }
        for (sample, sum) in chunk.iter_mut().zip(sums) {
            *sample = to_sample(sum);
        }
        at += LANES;
    }
    for (place, sample) in chunks.into_remainder().iter_mut().enumerate() {
        let column = at + place;
        let sum = weights.iter().zip(source[column..].iter().step_by(stride));
        let sum: i32 = sum.map(|(&weight, &sample)| weight * i32::from(sample)).sum();
        *sample = to_sample(sum + (1 << (FRACTION_BITS - 1)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One sample at a time, straight from the description: sums in i64, no blocks, no windows.
    fn slow(source: &RgbImage, width: u32, height: u32, filter: Interpolation) -> RgbImage {
        let line = |input: &[u8], output: u32| -> Vec<u8> {
            if input.len() == output as usize {
                return input.to_vec();
            }
            let scale = input.len() as f64 / f64::from(output);
            let stretch = if scale < 1.0 { 1.0 } else { scale };
            let reach = filter.support() * stretch;
            let one = |place: u32| {
                let centre = (f64::from(place) + 0.5) * scale;
                let begin = ((centre - reach + 0.5) as i64).max(0);
                let end = ((centre + reach + 0.5) as i64).min(input.len() as i64);
                let weights: Vec<f64> = (begin..end)
                    .map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
                    .collect();
                let total: f64 = weights.iter().sum();
                let mut sum = 1_i64 << 21;
                for (x, weight) in (begin..end).zip(weights) {
                    let scaled = weight / total * f64::from(1 << 22);
                    sum +=
                        i64::from(input[x as usize]) * (scaled.abs() + 0.5).floor().copysign(scaled) as i64;
                }
                (sum >> 22).clamp(0, 255) as u8
            };
            (0..output).map(one).collect()
        };
        let rows = |image: &RgbImage, width: u32| {
            let mut out = vec![0; (width * image.height()) as usize * 3];
            for (y, row) in image.data().chunks(image.width() as usize * 3).enumerate() {
                for channel in 0..3 {
                    let samples: Vec<u8> = row.iter().skip(channel).step_by(3).copied().collect();
                    for (x, sample) in line(&samples, width).into_iter().enumerate() {
                        out[(y * width as usize + x) * 3 + channel] = sample;
                    }
                }
            }
            RgbImage::new(width, image.height(), out).unwrap()
        };
        let turn = |image: &RgbImage| {
            let (w, h) = (image.width(), image.height());
            let pixels = (0..w).flat_map(|x| (0..h).flat_map(move |y| image.pixel(x, y).unwrap()));
            RgbImage::new(h, w, pixels.collect()).unwrap()
        };
        let columns = |image: &RgbImage, height: u32| turn(&rows(&turn(image), height));
        let lost = |before: u32, after: u32| i64::from(before) - i64::from(after);
        if lost(source.height(), height) > (2 * lost(source.width(), width)).max(0) {
            rows(&columns(source, height), width)
        } else {
            columns(&rows(source, width), height)
        }
    }

    fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
        let mut state = seed | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Half of the samples are extreme, so that the overshoot of the cubic is clipped.
            match state >> 62 {
                0 => 0,
                1 => 255,
                _ => (state >> 40) as u8,
            }
        };
        RgbImage::new(width, height, (0..width * height * 3).map(|_| next()).collect()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn fast_is_slow(w in 1_u32..70, h in 1_u32..40, width in 1_u32..90, height in 1_u32..50, seed: u64, cubic: bool) {
            let filter = if cubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let image = noise(w, h, seed);
            let expected = slow(&image, width, height, filter);
            prop_assert_eq!(&resize(&image.view(), width, height, filter).unwrap(), &expected);
            // A window is a part of the whole.
            let (left, top) = (seed as u32 % width, (seed >> 32) as u32 % height);
            let window = Window { left, top, width: width - left, height: (height - top).div_ceil(2) };
            let part = resize_window(&image.view(), width, height, window, filter).unwrap();
            let crop = expected.view().crop(left, top, window.width, window.height).unwrap().to_image();
            prop_assert_eq!(part, crop);
        }
    }

    #[test]
    fn kernels_agree_whatever_the_processor() {
        let image = noise(50, 33, 9);
        let filter = Interpolation::Bicubic;
        let columns = Coefficients::new(50, 21, 0, 21, filter);
        let packed: Vec<[u8; ROWS * 3]> = image.data().as_chunks().0.to_vec();
        let (mut chosen, mut plain) = (vec![0; ROWS * 21 * 3], vec![1; ROWS * 21 * 3]);
        horizontal_block(&packed[..50], 0, &columns, &mut chosen);
        horizontal_block_any(&packed[..50], 0, &columns, &mut plain);
        assert_eq!(chosen, plain);
        let rows = Coefficients::new(33, 5, 0, 5, filter);
        let (first, weights) = rows.at(2);
        let (mut chosen, mut plain) = (vec![0; 150], vec![1; 150]);
        vertical_row(&image.data()[first * 150..], 150, weights, &mut chosen);
        vertical_row_any(&image.data()[first * 150..], 150, weights, &mut plain);
        assert_eq!(chosen, plain);
    }

    #[test]
    fn weights_for_a_device_are_those_of_the_resize() {
        let mut words = vec![7];
        let WeightRows { start, words: row } = append_weights(30, 4, Interpolation::Bicubic, &mut words);
        let own = Coefficients::new(30, 4, 0, 4, Interpolation::Bicubic);
        assert_eq!((words.len(), words[0], start), (1 + 4 * row, 7, 1));
        for (place, row) in words[1..].chunks_exact(row).enumerate() {
            let (first, weights) = own.at(place);
            assert_eq!((row[0] as usize, row[1] as usize), (first, weights.len()));
            let found: Vec<i32> = row[2..].iter().map(|word| word.cast_signed()).collect();
            assert_eq!(&found[..weights.len()], weights);
            assert!(found[weights.len()..].iter().all(|&weight| weight == 0));
        }
        // A pass that `resize` leaves out changes nothing.
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            let mut words = Vec::new();
            let row = append_weights(5, 5, filter, &mut words).words;
            for (place, row) in words.chunks_exact(row).enumerate() {
                let first = row[0] as usize;
                for (tap, &weight) in row[2..2 + row[1] as usize].iter().enumerate() {
                    let expected = if first + tap == place {
                        1 << FRACTION_BITS
                    } else {
                        0
                    };
                    assert_eq!(weight, expected);
                }
            }
        }
    }

    #[test]
    fn a_crop_reads_nothing_outside_itself() {
        let image = noise(30, 20, 5);
        let crop = image.view().crop(4, 3, 11, 9).unwrap();
        let alone = crop.to_image();
        for (width, height) in [(5, 5), (22, 18), (11, 4)] {
            let filter = Interpolation::Bicubic;
            assert_eq!(
                resize(&crop, width, height, filter),
                resize(&alone.view(), width, height, filter)
            );
        }
    }

    #[test]
    fn a_side_of_zero_has_no_pixels() {
        let image = noise(3, 3, 1);
        assert!(resize(&image.view(), 0, 3, Interpolation::Bilinear).is_none());
        let outside = Window {
            left: 2,
            top: 0,
            width: 2,
            height: 1,
        };
        assert!(resize_window(&image.view(), 3, 3, outside, Interpolation::Bilinear).is_none());
    }
}
