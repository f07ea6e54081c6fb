//! The one in-memory image of bands: f32, rows from the top, the bands of a pixel side by side.

use ::image::metadata::Orientation;

use crate::data::image::RgbImage;
use crate::data::resize::Window;

/// An owned image of bands, its values from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct BandImage {
    width: u32,
    height: u32,
    bands: usize,
    data: Vec<f32>, // [height, width, bands]
}

impl BandImage {
    /// Wraps `data` (`[height, width, bands]`, at least one value); `None` when its length does not fit the size.
    pub fn new(width: u32, height: u32, bands: usize, data: Vec<f32>) -> Option<Self> {
        let expected = values(width, height, bands)?;
        (expected > 0 && data.len() == expected).then_some(Self {
            width,
            height,
            bands,
            data,
        })
    }

    /// The channels of `image` as bands, from 0 to 1: red, green, blue, red again, as many as are asked for.
    pub fn from_rgb(image: &RgbImage, bands: usize) -> Option<Self> {
        let pixels = image.data().as_chunks::<3>().0;
        let value = |pixel: &[u8; 3], band: usize| f32::from(pixel[band % 3]) / 255.0;
        let data = pixels
            .iter()
            .flat_map(|pixel| (0..bands).map(move |band| value(pixel, band)));
        Self::new(image.width(), image.height(), bands, data.collect())
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bands of a pixel.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// The values, `[height, width, bands]`.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values of one band, row after row. Panics when `band` is not below [`BandImage::bands`].
    pub fn band(&self, band: usize) -> impl Iterator<Item = f32> {
        self.data[band..].iter().step_by(self.bands).copied()
    }

    /// The values, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values of row `y`, `[width, bands]`. Panics when `y` is not below the height.
    pub fn row(&self, y: usize) -> &[f32] {
        let len = self.width as usize * self.bands;
        &self.data[y * len..(y + 1) * len]
    }

    /// A copy of a rectangle; `None` when it is empty or reaches outside.
    pub fn crop(&self, window: Window) -> Option<Self> {
        let right = window.left.checked_add(window.width)?;
        let bottom = window.top.checked_add(window.height)?;
        if right > self.width || bottom > self.height {
            return None;
        }
        let columns = window.left as usize * self.bands..right as usize * self.bands;
        let rows = window.top as usize..bottom as usize;
        let data = rows
            .flat_map(|y| &self.row(y)[columns.clone()])
            .copied()
            .collect();
        Self::new(window.width, window.height, self.bands, data)
    }

    /// Turned and mirrored as `orientation` asks.
    pub fn oriented(self, orientation: Orientation) -> Self {
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let (right, bottom) = (self.width as usize - 1, self.height as usize - 1);
        // Column and row of the pixel that comes to column `x`, row `y`.
        let from = |x: usize, y: usize| match orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (right - x, y),
            Orientation::Rotate180 => (right - x, bottom - y),
            Orientation::FlipVertical => (x, bottom - y),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate90 => (y, bottom - x),
            Orientation::Rotate270FlipH => (right - y, bottom - x),
            Orientation::Rotate270 => (right - y, x),
        };
        // From the fifth on, rows become columns.
        let (width, height) = match orientation.to_exif() {
            5.. => (self.height, self.width),
            _ => (self.width, self.height),
        };
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..height as usize {
            for x in 0..width as usize {
                let (column, row) = from(x, y);
                let start = column * self.bands;
                data.extend_from_slice(&self.row(row)[start..start + self.bands]);
            }
        }
        Self {
            width,
            height,
            data,
            ..self
        }
    }
}

/// Values of an image; `None` when they do not fit memory's address range.
pub(super) fn values(width: u32, height: u32, bands: usize) -> Option<usize> {
    (width as usize).checked_mul(height as usize)?.checked_mul(bands)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bands: ten times the row plus the column, and the negative of it.
    fn numbered(width: u32, height: u32) -> BandImage {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (10 * y + x) as f32));
        let data = pixels.flat_map(|value| [value, -value]).collect();
        BandImage::new(width, height, 2, data).unwrap()
    }

    fn first_band(image: &BandImage) -> Vec<f32> {
        image.data().iter().step_by(2).copied().collect()
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        assert!(BandImage::new(2, 1, 2, vec![0.0; 3]).is_none());
        assert!(BandImage::new(0, 1, 2, vec![]).is_none());
        assert!(BandImage::new(1, 1, 0, vec![]).is_none());
        assert!(BandImage::new(u32::MAX, u32::MAX, 1024, vec![]).is_none());
    }

    #[test]
    fn a_crop_is_its_rectangle() {
        let window = |left, width| Window {
            left,
            top: 1,
            width,
            height: 2,
        };
        let crop = numbered(4, 3).crop(window(1, 2)).unwrap();
        assert_eq!(first_band(&crop), [11.0, 12.0, 21.0, 22.0]);
        assert!(numbered(4, 3).crop(window(3, 2)).is_none());
        assert!(numbered(4, 3).crop(window(0, 0)).is_none());
    }

    #[test]
    fn turns_are_those_of_eight_bit_images() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            let grey: Vec<u8> = (0..6).collect();
            let mut expected =
                ::image::DynamicImage::ImageLuma8(::image::GrayImage::from_raw(3, 2, grey).unwrap());
            expected.apply_orientation(orientation);
            let image = BandImage::new(3, 2, 1, (0..6_u8).map(f32::from).collect()).unwrap();
            let turned = image.oriented(orientation);
            assert_eq!(
                (turned.width(), turned.height()),
                (expected.width(), expected.height())
            );
            let expected: Vec<f32> = expected.into_luma8().iter().map(|&v| f32::from(v)).collect();
            assert_eq!(turned.data(), expected, "{exif}");
        }
    }
}
