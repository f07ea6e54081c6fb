//! The in-memory image of pictures: 8-bit RGB, rows from the top, channels interleaved. Where bands may be in its place, there is
//! [`Image`].

use std::sync::Arc;

use super::bands::BandImage;

/// Samples that are no further apart than this share of their range count as the same: what compression makes of a plain ground.
const SAME_SHARE: f32 = 16.5 / 255.;

/// An image as it was decoded, shared.
#[derive(Clone, Debug, PartialEq)]
pub enum Image {
    /// A picture.
    Rgb(Arc<RgbImage>),
    /// Bands, where a model or a run asks for them.
    Bands(Arc<BandImage>),
}

impl Image {
    /// Width and height in pixels.
    pub fn sides(&self) -> (u32, u32) {
        match self {
            Self::Rgb(image) => (image.width(), image.height()),
            Self::Bands(image) => (image.width(), image.height()),
        }
    }

    /// Bytes of its samples.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rgb(image) => image.data().len(),
            Self::Bands(image) => size_of_val(image.data()),
        }
    }

    /// Whether red, green and blue are equal everywhere; bands have no colour.
    pub fn is_grey(&self) -> bool {
        let is_grey = |pixel: &[u8; 3]| pixel[0] == pixel[1] && pixel[1] == pixel[2];
        match self {
            Self::Rgb(image) => image.data().as_chunks::<3>().0.iter().all(is_grey),
            Self::Bands(_) => true,
        }
    }

    /// Whether its four corners have about one colour, as where one thing stands before a plain ground.
    pub fn is_framed(&self) -> bool {
        match self {
            Self::Rgb(image) => {
                let sample = |place: usize| f32::from(image.data[place]) / 255.;
                corners_alike(self.sides(), 3, sample, |_| 1.)
            }
            Self::Bands(image) => {
                let range = |band: usize| {
                    let (low, high) = image
                        .band(band)
                        .fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
                    high - low
                };
                corners_alike(self.sides(), image.bands(), |place| image.data()[place], range)
            }
        }
    }
}

/// Whether in no channel the samples of the four corners are further apart than [`SAME_SHARE`] of its range. `sample` gives what stands
/// at a place of `[height, width, channels]`.
fn corners_alike(
    (width, height): (u32, u32),
    channels: usize,
    sample: impl Fn(usize) -> f32,
    range: impl Fn(usize) -> f32,
) -> bool {
    let (right, below) = (width as usize - 1, (height as usize - 1) * width as usize);
    (0..channels).all(|channel| {
        let samples = [0, right, below, below + right].map(|pixel| sample(pixel * channels + channel));
        let (low, high) = samples
            .iter()
            .fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
        high - low <= SAME_SHARE * range(channel)
    })
}

impl From<RgbImage> for Image {
    fn from(image: RgbImage) -> Self {
        Self::Rgb(Arc::new(image))
    }
}

impl From<BandImage> for Image {
    fn from(image: BandImage) -> Self {
        Self::Bands(Arc::new(image))
    }
}

/// An owned 8-bit RGB image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>, // [height, width, 3]
}

impl RgbImage {
    /// Wraps `data` (`[height, width, 3]`, at least one pixel); `None` when its length does not fit the size.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let expected = byte_len(width, height)?;
        (width > 0 && height > 0 && data.len() == expected).then_some(Self { width, height, data })
    }

    /// A `width` x `height` image of one grey value a pixel (`[height, width]`), each repeated in the three channels.
    pub fn from_grey(width: u32, height: u32, grey: &[u8]) -> Option<Self> {
        Self::new(width, height, grey.iter().flat_map(|&value| [value; 3]).collect())
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The samples, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Gives the samples away, `[height, width, 3]`.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The red, green and blue of the pixel in column `x`, row `y`; `None` outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        Some([self.data[at], self.data[at + 1], self.data[at + 2]])
    }

    /// The whole image, borrowed.
    pub fn view(&self) -> ImageView<'_> {
        ImageView {
            width: self.width,
            height: self.height,
            stride: self.width as usize * 3,
            data: &self.data,
        }
    }
}

/// A rectangle of an [`RgbImage`], borrowed: cropping moves no pixel.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a> {
    width: u32,
    height: u32,
    stride: usize,
    data: &'a [u8], // from the first sample of the rectangle to the last
}

impl<'a> ImageView<'a> {
    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The samples of row `y`, `[width, 3]`. Panics when `y` is not below the height.
    pub fn row(&self, y: u32) -> &'a [u8] {
        let start = y as usize * self.stride;
        &self.data[start..start + self.width as usize * 3]
    }

    /// The samples from the first of row `y` to the last of the image; rows begin [`ImageView::stride`] apart. Panics when
    /// `y` is not below the height.
    pub(super) fn rows_from(&self, y: u32) -> &'a [u8] {
        &self.data[y as usize * self.stride..]
    }

    /// Samples from the beginning of a row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The rectangle of `width` x `height` pixels whose top left corner is at (`left`, `top`); `None` when it is empty or
    /// reaches outside.
    pub fn crop(&self, left: u32, top: u32, width: u32, height: u32) -> Option<Self> {
        let inside = left.checked_add(width)? <= self.width && top.checked_add(height)? <= self.height;
        if !inside || width == 0 || height == 0 {
            return None;
        }
        let start = top as usize * self.stride + left as usize * 3;
        let end = start + (height as usize - 1) * self.stride + width as usize * 3;
        Some(Self {
            width,
            height,
            stride: self.stride,
            data: &self.data[start..end],
        })
    }

    /// A copy of these pixels.
    pub fn to_image(&self) -> RgbImage {
        let mut data = Vec::with_capacity(self.height as usize * self.width as usize * 3);
        for y in 0..self.height {
            data.extend_from_slice(self.row(y));
        }
        RgbImage {
            width: self.width,
            height: self.height,
            data,
        }
    }
}

/// Bytes of a `width` x `height` RGB image; `None` when that does not fit memory's address range.
pub(crate) fn byte_len(width: u32, height: u32) -> Option<usize> {
    (width as usize).checked_mul(height as usize)?.checked_mul(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        assert!(RgbImage::new(2, 1, vec![0; 5]).is_none());
        assert!(RgbImage::new(0, 1, vec![]).is_none());
        assert!(RgbImage::new(u32::MAX, u32::MAX, vec![]).is_none());
    }

    #[test]
    fn a_plain_ground_is_told_by_its_corners() {
        let framed = |grey: &[u8]| Image::from(RgbImage::from_grey(3, 2, grey).unwrap()).is_framed();
        assert!(
            framed(&[240, 0, 255, 255, 0, 250]),
            "what is between them does not count"
        );
        assert!(framed(&[100, 0, 116, 100, 0, 100]));
        for corner in [0, 2, 3, 5] {
            let mut grey = [100; 6];
            grey[corner] = 117;
            assert!(!framed(&grey), "corner {corner}");
        }
        let coloured = RgbImage::new(1, 2, vec![9, 9, 9, 9, 9, 99]).unwrap();
        assert!(!Image::from(coloured).is_framed(), "every channel counts");
        let one = RgbImage::from_grey(1, 1, &[7]).unwrap();
        assert!(Image::from(one).is_framed());
        // Of bands the range is the image's own: 12 bits of 16 are a sixteenth.
        let bands = |second: f32| {
            let data = vec![0.01, 0.5, 0.06, 0.9, 0.011, second]; // [1, 3, 2]
            Image::from(BandImage::new(3, 1, 2, data).unwrap()).is_framed()
        };
        assert!(bands(0.51) && !bands(0.6));
    }

    #[test]
    fn a_crop_sees_its_rectangle_and_no_more() {
        let image = RgbImage::from_grey(3, 3, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let crop = image.view().crop(1, 1, 2, 2).unwrap();
        assert_eq!(crop.to_image().data(), &[4, 4, 4, 5, 5, 5, 7, 7, 7, 8, 8, 8]);
        assert_eq!(crop.crop(1, 1, 1, 1).unwrap().to_image().data(), &[8, 8, 8]);
        assert!(image.view().crop(2, 0, 2, 1).is_none());
        assert!(image.view().crop(0, 0, 0, 1).is_none());
        assert!(image.view().crop(u32::MAX, 0, 2, 1).is_none());
        assert_eq!(image.pixel(2, 1), Some([5; 3]));
        assert_eq!(image.pixel(3, 0), None);
    }
}
