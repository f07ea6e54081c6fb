//! The crops of a batch out of its decoded images, bit for bit those that the processor makes: one launch a stage, however many
//! crops there are. What is done to each crop is words of a table, which a [`CropTable`] puts together.

use candle_core::{DType, Result, Tensor, bail};

use super::geometry;
use super::launch::{Argument, Source, launch, uninitialised};

const NAME: &str = "crops";
/// Words of a crop, and of its changes of colour (`augment.cu`).
const WORDS: usize = 28;
const CHANGES: usize = 4;
/// Weights of a blur, a middle one and four on each side.
pub const BLUR_TAPS: usize = 9;
/// Above every level.
const NO_THRESHOLD: u32 = 256;

/// One crop: a window of an image, resized to a square, and what is then done to it, in the order of the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Crop {
    /// First pixel of the window among the pixels of all images.
    pub start: usize,
    /// Pixels from the beginning of a row of the image to that of the next.
    pub stride: u32,
    /// Columns of the window.
    pub width: u32,
    /// Rows of the window.
    pub height: u32,
    /// Whether the rows are filtered before the columns.
    pub vertical_first: bool,
    /// Weights of the resize along rows.
    pub columns: Weights,
    /// Weights of the resize along columns.
    pub rows: Weights,
    /// Whether left and right are exchanged.
    pub mirrored: bool,
    /// Changes of colour, in their order.
    pub changes: [Option<Change>; CHANGES],
    /// Whether only luma stays.
    pub grey: bool,
    /// Weights of a blur along rows and columns.
    pub blur: Option<[f32; BLUR_TAPS]>,
    /// Samples at or above this level are inverted.
    pub threshold: Option<u8>,
}

/// Where the weights of one direction of a resize lie in a list of words: a row for each output sample, of the first source
/// sample, how many it is a sum of, and their weights with 22 fractional bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// First word.
    pub start: usize,
    /// Words of a row.
    pub words: usize,
}

/// A change of colour: towards or beyond an image without it by a factor, or hue turned by 256ths of the circle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// From black.
    Brightness(f32),
    /// From the mean luma.
    Contrast(f32),
    /// From each pixel's luma.
    Saturation(f32),
    /// Turned.
    Hue(u8),
}

impl Change {
    /// Kind and factor.
    fn words(self) -> [u32; 2] {
        match self {
            Self::Brightness(factor) => [1, factor.to_bits()],
            Self::Contrast(factor) => [2, factor.to_bits()],
            Self::Saturation(factor) => [3, factor.to_bits()],
            Self::Hue(shift) => [4, u32::from(shift)],
        }
    }
}

/// Crops of one size as the kernels read them.
#[derive(Debug, Clone, Default)]
pub struct CropTable {
    words: Vec<u32>, // [count, WORDS]
    shape: CropShape,
}

/// What of a [`CropTable`] must be known beside its words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CropShape {
    /// Side of a crop.
    size: usize,
    /// Crops.
    count: usize,
    /// Pixels of all images between the two passes of the resize, and of the largest of them.
    middle: usize,
    largest: usize,
}

impl CropTable {
    /// No crops yet, of `size` x `size` pixels.
    pub fn new(size: usize) -> Self {
        Self {
            words: Vec::new(),
            shape: CropShape {
                size,
                ..CropShape::default()
            },
        }
    }

    /// Enters a crop.
    ///
    /// # Errors
    /// A place beyond what a word can say: a batch of more than 2^32 pixels.
    pub fn push(&mut self, crop: &Crop) -> Result<()> {
        let CropShape {
            size,
            count,
            middle,
            largest,
        } = &mut self.shape;
        let own = match crop.vertical_first {
            true => *size * crop.width as usize,
            false => *size * crop.height as usize,
        };
        let flags = [crop.vertical_first, crop.mirrored, crop.grey, crop.blur.is_some()];
        let flags = flags
            .iter()
            .rev()
            .fold(0, |bits, &flag| bits << 1 | u32::from(flag));
        let places = [
            crop.start,
            *middle,
            crop.columns.start,
            crop.columns.words,
            crop.rows.start,
            crop.rows.words,
            *middle + own,
        ];
        let mut words = [0; 7];
        for (word, place) in words.iter_mut().zip(places) {
            let Ok(place) = u32::try_from(place) else {
                bail!(
                    "{NAME}: expected less than 2^32 pixels and weights a batch, found {place}; try a smaller batch"
                )
            };
            *word = place;
        }
        let [start, middle_start, columns, column_words, rows, row_words, _] = words;
        self.words.extend([
            start,
            crop.stride,
            crop.width,
            crop.height,
            middle_start,
            columns,
            column_words,
            rows,
            row_words,
            flags,
            crop.threshold.map_or(NO_THRESHOLD, u32::from),
        ]);
        for change in crop.changes {
            self.words.extend(change.map_or([0; 2], Change::words));
        }
        let blur = crop.blur.unwrap_or_default();
        self.words.extend(blur.map(f32::to_bits));
        *count += 1;
        *middle += own;
        *largest = own.max(*largest);
        Ok(())
    }

    /// The words, for the device that makes the crops.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The rest.
    pub fn shape(&self) -> CropShape {
        self.shape
    }
}

/// The crops of a table, [count, 3, size, size]: from `pixels`, all images one after the other as levels of red, green and blue
/// [P, 3], by the `words` of the table and the words that its [`Weights`] speak of. `values` [3, 256] has what each level of a
/// channel becomes.
///
/// # Errors
/// Tensors of another type or length, not contiguous, or not on one device with kernels.
pub fn crops(
    pixels: &Tensor,
    words: &Tensor,
    weights: &Tensor,
    values: &Tensor,
    shape: CropShape,
) -> Result<Tensor> {
    let CropShape {
        size,
        count,
        middle,
        largest,
    } = shape;
    for (what, tensor, dtype, length) in [
        ("pixels", pixels, DType::U8, pixels.elem_count()),
        ("words", words, DType::U32, count * WORDS),
        ("weights", weights, DType::U32, weights.elem_count()),
        ("values", values, DType::F32, 3 * 256),
    ] {
        if tensor.dtype() != dtype || tensor.elem_count() != length {
            bail!(
                "{NAME}: expected {length} {what} of {dtype:?}, found {:?} of {:?}",
                tensor.dims(),
                tensor.dtype()
            )
        }
    }
    let device = pixels.device();
    let between = uninitialised((middle, 3), DType::U8, device)?;
    let images = uninitialised((count, size, size, 3), DType::U8, device)?;
    let out = uninitialised((count, 3, size, size), DType::F32, device)?;
    let run = |kernel: &str, geometry: &geometry::Launch, arguments: &[Argument]| {
        launch(device, Source::Augment, kernel, geometry, arguments)
    };
    run(
        "crop_first_pass",
        &geometry::crop_pixels(count, largest),
        &[
            Argument::Read(pixels),
            Argument::Read(words),
            Argument::Read(weights),
            Argument::Write(&between),
            Argument::Count(size),
        ],
    )?;
    run(
        "crop_second_pass",
        &geometry::crop_pixels(count, size * size),
        &[
            Argument::Read(&between),
            Argument::Read(words),
            Argument::Read(weights),
            Argument::Write(&images),
            Argument::Count(size),
        ],
    )?;
    run(
        "crop_colours",
        &geometry::crops(count),
        &[
            Argument::Read(words),
            Argument::Change(&images),
            Argument::Count(size),
        ],
    )?;
    run(
        "crop_values",
        &geometry::crop_tiles(count, size),
        &[
            Argument::Read(words),
            Argument::Read(&images),
            Argument::Read(values),
            Argument::Write(&out),
            Argument::Count(size),
        ],
    )?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crop() -> Crop {
        let weights = Weights { start: 0, words: 7 };
        Crop {
            start: 5,
            stride: 9,
            width: 4,
            height: 3,
            vertical_first: false,
            columns: weights,
            rows: weights,
            mirrored: true,
            changes: [Some(Change::Hue(250)), None, None, Some(Change::Brightness(0.5))],
            grey: false,
            blur: Some([0.1; BLUR_TAPS]),
            threshold: Some(128),
        }
    }

    #[test]
    fn a_crop_is_as_many_words_as_the_kernels_read() {
        let mut table = CropTable::new(2);
        table.push(&crop()).unwrap();
        table
            .push(&Crop {
                vertical_first: true,
                mirrored: false,
                blur: None,
                threshold: None,
                ..crop()
            })
            .unwrap();
        let words = table.words();
        assert_eq!(words.len(), 2 * WORDS);
        assert_eq!(words[..11], [5, 9, 4, 3, 0, 0, 7, 0, 7, 2 | 8, 128]);
        assert_eq!(words[11..19], [4, 250, 0, 0, 0, 0, 1, 0.5_f32.to_bits()]);
        assert_eq!(words[19..28], [0.1_f32.to_bits(); 9]);
        // The image between the passes lies behind that of the crop before, [3, 2].
        assert_eq!(
            (words[28 + 4], words[28 + 9], words[28 + 10]),
            (6, 1, NO_THRESHOLD)
        );
        let shape = table.shape();
        assert_eq!((shape.count, shape.middle, shape.largest), (2, 6 + 8, 8));
    }

    #[test]
    fn places_that_no_word_holds_are_refused() {
        let far = Crop {
            start: 1 << 32,
            ..crop()
        };
        let error = CropTable::new(2).push(&far).unwrap_err().to_string();
        assert!(error.contains("smaller batch"), "{error}");
    }
}
