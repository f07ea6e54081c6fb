//! An image as floats: one channel where all pixels are grey, so that nothing can colour them, else three.

use super::super::image::RgbImage;
use super::PUBLISHED_SIDE;

/// Values around 0 to 1, rows from the top, channels interleaved.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raster {
    pub width: usize,
    pub height: usize,
    /// 1 or 3.
    pub channels: usize,
    /// `[height, width, channels]`.
    pub data: Vec<f32>,
}

impl Raster {
    /// The levels of `image` over 255.
    pub fn from_image(image: &RgbImage) -> Self {
        let pixels = image.data().as_chunks::<3>().0;
        let grey = pixels.iter().all(|[r, g, b]| r == g && g == b);
        let float = |&level: &u8| f32::from(level) / 255.0;
        Self {
            width: image.width() as usize,
            height: image.height() as usize,
            channels: if grey { 1 } else { 3 },
            data: image
                .data()
                .iter()
                .step_by(if grey { 3 } else { 1 })
                .map(float)
                .collect(),
        }
    }

    /// A raster of one channel, filled in reading order.
    pub fn plane(width: usize, height: usize, mut value: impl FnMut() -> f32) -> Self {
        Self {
            width,
            height,
            channels: 1,
            data: (0..width * height).map(|_| value()).collect(),
        }
    }

    /// Rounded to 8 bits and clipped; grey in all three channels.
    pub fn to_image(&self) -> RgbImage {
        let levels = self.data.iter().map(|&value| level(value));
        let data = if self.channels == 1 {
            levels.flat_map(|level| [level; 3]).collect()
        } else {
            levels.collect()
        };
        RgbImage::new(self.width as u32, self.height as u32, data).expect("as many samples as before")
    }

    /// What a length of one pixel at 224 pixels is here.
    pub fn unit(&self) -> f32 {
        self.width.min(self.height) as f32 / PUBLISHED_SIDE
    }

    /// Every value changed.
    pub fn map(mut self, change: impl FnMut(f32) -> f32) -> Self {
        let mut change = change;
        self.data.iter_mut().for_each(|value| *value = change(*value));
        self
    }

    /// A raster of the same shape whose pixel in column x, row y is `pixel(x, y, out)`; `out` holds its channels, zero.
    pub fn redrawn(&self, mut pixel: impl FnMut(usize, usize, &mut [f32])) -> Self {
        let mut out = Self {
            data: vec![0.0; self.data.len()],
            ..*self
        };
        for (place, values) in out.data.chunks_exact_mut(self.channels).enumerate() {
            pixel(place % self.width, place / self.width, values);
        }
        out
    }

    /// The channels of a pixel.
    pub fn pixel(&self, x: usize, y: usize) -> &[f32] {
        let at = (y * self.width + x) * self.channels;
        &self.data[at..at + self.channels]
    }

    /// Adds `weight` times the value between pixels at (`x`, `y`), linear in both directions, to `out`.
    pub fn add_sample(&self, x: f32, y: f32, weight: f32, out: &mut [f32]) {
        let (left, top) = (x.floor(), y.floor());
        let (right_share, lower_share) = (x - left, y - top);
        let columns = [left as isize, left as isize + 1].map(|x| mirrored(x, self.width));
        let rows = [top as isize, top as isize + 1].map(|y| mirrored(y, self.height));
        for (row, row_weight) in rows.into_iter().zip([1.0 - lower_share, lower_share]) {
            for (column, column_weight) in columns.into_iter().zip([1.0 - right_share, right_share]) {
                let weight = weight * row_weight * column_weight;
                if weight == 0.0 {
                    continue;
                }
                for (out, value) in out.iter_mut().zip(self.pixel(column, row)) {
                    *out += weight * value;
                }
            }
        }
    }
}

/// 0 to 1 as 0 to 255.
pub(super) fn level(value: f32) -> u8 {
    // The cast saturates.
    (value * 255.0 + 0.5) as u8
}

/// Where place `at` lies among `length` samples that are mirrored again and again beyond both ends, end samples repeated.
pub(super) fn mirrored(at: isize, length: usize) -> usize {
    let period = 2 * length as isize;
    let at = at.rem_euclid(period);
    at.min(period - 1 - at) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_mirrored_with_the_last_sample_repeated() {
        let places: Vec<usize> = (-4..8).map(|at| mirrored(at, 3)).collect();
        assert_eq!(places, [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]);
        assert_eq!(mirrored(-5, 1), 0);
    }

    #[test]
    fn levels_survive_and_grey_is_one_channel() {
        let grey = RgbImage::from_grey(16, 16, &std::array::from_fn::<u8, 256, _>(|i| i as u8)).unwrap();
        let raster = Raster::from_image(&grey);
        assert_eq!((raster.channels, raster.to_image()), (1, grey));
        let colour = RgbImage::new(1, 1, vec![1, 2, 255]).unwrap();
        let raster = Raster::from_image(&colour);
        assert_eq!((raster.channels, raster.to_image()), (3, colour));
        assert_eq!(
            [-3.0, f32::NAN, 0.5, 7.0].map(level),
            [0, 0, 128, 255],
            "clipped and rounded"
        );
    }

    #[test]
    fn samples_between_pixels_are_linear() {
        let raster = Raster {
            width: 2,
            height: 2,
            channels: 1,
            data: vec![0.0, 1.0, 2.0, 3.0],
        };
        let at = |x, y| {
            let mut out = [0.0];
            raster.add_sample(x, y, 1.0, &mut out);
            out[0]
        };
        assert_eq!(
            [at(0.0, 0.0), at(0.5, 0.0), at(0.5, 0.5), at(1.0, 1.0)],
            [0.0, 0.5, 1.5, 3.0]
        );
        assert_eq!([at(-0.5, 0.0), at(1.75, 1.0), at(0.0, 2.0)], [0.0, 3.0, 2.0]);
    }
}
