//! The one place that converts pixels to network input: resize of the shorter side, centre crop, scaling to 0..1 and
//! normalisation, as torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize` do on a Pillow image.

use serde::{Deserialize, Serialize};

use super::bands::{self, BandImage, Bands};
use super::decode::{DEFAULT_MAX_PIXELS, DecodeOptions, SampleRange};
use super::image::{Image, ImageView, RgbImage};
use super::resize::{Interpolation, Window, resize_window};
use crate::{Error, Result};

/// ImageNet's channel means, of pixels from 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel standard deviations, of pixels from 0 to 1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// The largest side that `resize` and `crop` may ask for.
const MAX_SIDE: u32 = 1 << 16;

/// How an image becomes network input. As JSON it is the `macula.preprocess` entry of an ONNX file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// What an image is resized to; `None` leaves the size alone.
    pub resize: Option<Resize>,
    /// Height and width of the centre crop; what lies outside the image is black. JSON also takes one number for both.
    #[serde(default, deserialize_with = "crop_size")]
    pub crop: Option<(u32, u32)>,
    /// Where a crop begins when what is left over is odd; JSON leaves the usual out.
    #[serde(default, skip_serializing_if = "CropStart::is_usual")]
    pub crop_start: CropStart,
    /// The filter of the resize.
    pub interpolation: Interpolation,
    /// Means that are subtracted, red, green and blue or of each band, of pixels from 0 to 1.
    pub mean: Vec<f32>,
    /// Standard deviations that are divided by, likewise.
    pub std: Vec<f32>,
    /// What samples of more than 8 bits become before all this; JSON leaves Pillow's way out.
    #[serde(default, skip_serializing_if = "SampleRange::is_clip")]
    pub sample_range: SampleRange,
    /// The bands that images are read as in place of RGB, their values from 0 to 1 over `sample_range`; JSON leaves none out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bands: Option<Bands>,
}

/// What an image is resized to. As JSON one number is the shorter side, and `[height, width]` both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected resize as one number, [height, width] or null"
)]
pub enum Resize {
    /// The shorter side to so many pixels, the longer in proportion (torchvision's `Resize(n)`).
    Shorter(u32),
    /// Height and width, whatever the proportions were (torchvision's `Resize((h, w))`).
    Exact(u32, u32),
}

impl Resize {
    /// The least shorter side of an image of which nothing is enlarged.
    pub fn longest_needed(self) -> u32 {
        match self {
            Self::Shorter(side) => side,
            Self::Exact(height, width) => height.max(width),
        }
    }
}

/// Which sample a centre crop begins at when an odd number is left over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropStart {
    /// The even one of the two, as torchvision's `CenterCrop`, whose `round` takes halves to even. The usual.
    #[default]
    Even,
    /// The first of the two, as the image processors of transformers.
    Down,
}

impl CropStart {
    fn is_usual(&self) -> bool {
        *self == Self::Even
    }
}

/// Reads a crop written as `[height, width]`, as one number for both, or as null.
fn crop_size<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<(u32, u32)>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected crop as [height, width], one number or null")]
    enum Crop {
        Square(u32),
        Sides(u32, u32),
    }
    let crop = Option::<Crop>::deserialize(deserializer)?;
    Ok(crop.map(|crop| match crop {
        Crop::Square(side) => (side, side),
        Crop::Sides(height, width) => (height, width),
    }))
}

/// What the geometry of a [`Preprocess`] comes to for one image.
struct Plan {
    resized: (u32, u32), // width, height
    /// The part of the resized image that is seen.
    window: Window,
    /// Columns and rows of black before that part.
    offset: (u32, u32), // left, top
    output: (u32, u32), // width, height
}

impl Preprocess {
    /// Bicubic resize of the shorter side to `resize`, square centre crop of `crop`, ImageNet's mean and deviation: 256 and
    /// 224 are DINOv2's classification evaluation (dinov2/data/transforms.py).
    pub fn imagenet(resize: u32, crop: u32) -> Self {
        Self {
            resize: Some(Resize::Shorter(resize)),
            crop: Some((crop, crop)),
            crop_start: CropStart::Even,
            interpolation: Interpolation::Bicubic,
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
            sample_range: SampleRange::Clip,
            bands: None,
        }
    }

    /// Reads and checks the JSON that [`Preprocess::to_json`] writes; `what` names where it came from.
    pub fn from_json(what: &str, json: &str) -> Result<Self> {
        let read: Self = serde_json::from_str(json).map_err(|error| Error::input(what, error.to_string()))?;
        read.validate().map_err(|error| match error {
            Error::Input { what: field, reason } => Error::input(format!("{what}: {field}"), reason),
            other => other,
        })?;
        Ok(read)
    }

    /// The JSON form: `resize`, `crop`, `interpolation`, `mean`, `std`, and where they are not the usual `crop_start`,
    /// `sample_range` and `bands`.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::failed("preprocess", error.to_string()))
    }

    /// Checks that sides lie in 1..=65536, that there is a mean and a deviation for every channel, that means are finite and that
    /// deviations are finite and above 0.
    pub fn validate(&self) -> Result<()> {
        let side = |name: &str, value: u32| match value {
            1..=MAX_SIDE => Ok(()),
            _ => Err(Error::input(
                name,
                format!("expected 1 to {MAX_SIDE} pixels, found {value}"),
            )),
        };
        match self.resize {
            None => {}
            Some(Resize::Shorter(length)) => side("resize", length)?,
            Some(Resize::Exact(height, width)) => {
                side("resize", height)?;
                side("resize", width)?;
            }
        }
        if let Some((height, width)) = self.crop {
            side("crop", height)?;
            side("crop", width)?;
        }
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            check_count(field, values.len(), self.bands)?;
        }
        if self.mean.iter().any(|value| !value.is_finite()) {
            return Err(Error::input(
                "mean",
                format!("expected finite numbers, found {:?}", self.mean),
            ));
        }
        if self.std.iter().any(|&value| !(value.is_finite() && value > 0.0)) {
            return Err(Error::input(
                "std",
                format!("expected finite numbers above 0, found {:?}", self.std),
            ));
        }
        Ok(())
    }

    /// Channels of the network input: 3, or the bands.
    pub fn channels(&self) -> usize {
        bands::channels(self.bands)
    }

    /// Refuses bands, for `what` sees pictures alone.
    ///
    /// # Errors
    /// Names the part that cannot have them.
    pub fn need_rgb(&self, what: &str) -> Result<()> {
        match self.bands {
            None => Ok(()),
            Some(bands) => Err(Error::input(
                what,
                format!(
                    "expected a model of RGB images, found one of {} bands",
                    bands.count()
                ),
            )),
        }
    }

    /// Height and width of what comes out, where that does not depend on the image: where there is a crop.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        self.crop.map(|(height, width)| (height as usize, width as usize))
    }

    /// Height and width of what comes out for an image of `height` x `width` pixels, at least one each.
    pub fn output_size_for(&self, height: u32, width: u32) -> (usize, usize) {
        let (width, height) = self.plan(width, height).output;
        (height as usize, width as usize)
    }

    /// The 8-bit stage: resized and cropped, before scaling and normalisation. Fails when the result would exceed
    /// [`DEFAULT_MAX_PIXELS`], which needs an image of extreme proportions and no crop.
    pub fn pixels(&self, image: &RgbImage) -> Result<RgbImage> {
        self.validate()?;
        self.need_rgb("image")?;
        let plan = self.plan(image.width(), image.height());
        let cropped = self.window(&image.view(), &plan)?;
        if plan.output == (cropped.width(), cropped.height()) {
            return Ok(cropped);
        }
        let (width, height) = plan.output;
        let view = cropped.view();
        let data = plan.padded(3, (0..cropped.height()).map(|y| view.row(y)));
        RgbImage::new(width, height, data)
            .ok_or_else(|| Error::failed("crop", "the padded image has no pixels"))
    }

    /// Writes the network input, `[3, height, width]` of [`Preprocess::output_size_for`], over all of `out`:
    /// `(pixel / 255 - mean) / std` in f32. Fails like [`Preprocess::pixels`], or when `out` has another length.
    pub fn write_tensor(&self, image: &RgbImage, out: &mut [f32]) -> Result<()> {
        let pixels = self.pixels(image)?;
        let area = pixels.width() as usize * pixels.height() as usize;
        if out.len() != area * 3 {
            let (width, height) = (pixels.width(), pixels.height());
            let reason = format!(
                "expected 3 x {height} x {width} values, found room for {}",
                out.len()
            );
            return Err(Error::input("network input", reason));
        }
        let tables = [0, 1, 2].map(|channel| self.table(channel));
        let (red, rest) = out.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in planes.zip(pixels.data().chunks_exact(3)) {
            *red = tables[0][usize::from(pixel[0])];
            *green = tables[1][usize::from(pixel[1])];
            *blue = tables[2][usize::from(pixel[2])];
        }
        Ok(())
    }

    /// Writes the network input, `[C, height, width]` of [`Preprocess::output_size_for`], over all of `out`: a picture as
    /// [`Preprocess::write_tensor`], bands in f32 all the way. Fails likewise, and for an image of another kind.
    pub fn write_image(&self, image: &Image, out: &mut [f32]) -> Result<()> {
        match image {
            Image::Rgb(image) => self.write_tensor(image, out),
            Image::Bands(image) => write_bands(&self.band_pixels(image)?, &self.mean, &self.std, out),
        }
    }

    /// Bands resized and cropped, before normalisation; what lies outside the image is 0. Fails as [`Preprocess::pixels`].
    fn band_pixels(&self, image: &BandImage) -> Result<BandImage> {
        self.validate()?;
        let plan = self.plan(image.width(), image.height());
        self.check_area((image.width(), image.height()), &plan)?;
        let (width, height) = plan.resized;
        let cropped = bands::resize_window(image, width, height, plan.window, self.interpolation)
            .ok_or_else(|| no_window(&plan))?;
        if plan.output == (cropped.width(), cropped.height()) {
            return Ok(cropped);
        }
        let (width, height) = plan.output;
        let rows = (0..cropped.height() as usize).map(|y| cropped.row(y));
        let data = plan.padded(image.bands(), rows);
        BandImage::new(width, height, image.bands(), data)
            .ok_or_else(|| Error::failed("crop", "the padded image has no pixels"))
    }

    /// `options` for images that are prepared so: samples of more than 8 bits become what is said here, and so do bands.
    pub fn decode_options(&self, options: &DecodeOptions) -> DecodeOptions {
        DecodeOptions {
            sample_range: self.sample_range,
            bands: self.bands,
            ..*options
        }
    }

    /// What each of the 256 levels of red, green and blue becomes, `[3, 256]`.
    pub fn values(&self) -> Vec<f32> {
        (0..self.mean.len())
            .flat_map(|channel| self.table(channel))
            .collect()
    }

    /// What each of the 256 levels of a channel becomes.
    fn table(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|level| (level as f32 / 255.0 - self.mean[channel]) / self.std[channel])
    }

    /// The part of the image that is seen, resized.
    fn window(&self, image: &ImageView, plan: &Plan) -> Result<RgbImage> {
        let (width, height) = plan.resized;
        self.check_area((image.width(), image.height()), plan)?;
        resize_window(image, width, height, plan.window, self.interpolation).ok_or_else(|| no_window(plan))
    }

    /// Refuses a result of too many pixels. A crop bounds the work whatever the proportions are; without one the whole resized image
    /// is made.
    fn check_area(&self, (from_width, from_height): (u32, u32), plan: &Plan) -> Result<()> {
        let (width, height) = plan.resized;
        let area = u64::from(plan.window.width) * u64::from(plan.window.height);
        if self.crop.is_some() || area <= DEFAULT_MAX_PIXELS {
            return Ok(());
        }
        let found = format!("{from_width}x{from_height}");
        let reason =
            format!("a {found} image would become {width}x{height}, above {DEFAULT_MAX_PIXELS} pixels");
        Err(Error::input("resize", reason))
    }

    fn plan(&self, width: u32, height: u32) -> Plan {
        let resized = match self.resize {
            Some(Resize::Shorter(side)) => resized(width, height, side),
            Some(Resize::Exact(height, width)) => (width, height),
            None => (width, height),
        };
        let (crop_height, crop_width) = self.crop.unwrap_or((resized.1, resized.0));
        let (left, columns, before) = centre(resized.0, crop_width, self.crop_start);
        let (top, rows, above) = centre(resized.1, crop_height, self.crop_start);
        Plan {
            resized,
            window: Window {
                left,
                top,
                width: columns,
                height: rows,
            },
            offset: (before, above),
            output: (crop_width, crop_height),
        }
    }
}

impl Plan {
    /// The output `[height, width, channels]`: the `rows` of what was cropped in their place, zeros around them.
    fn padded<'r, T: Copy + Default + 'r>(
        &self,
        channels: usize,
        rows: impl Iterator<Item = &'r [T]>,
    ) -> Vec<T> {
        let (width, height) = self.output;
        let row_len = width as usize * channels;
        let mut data = vec![T::default(); row_len * height as usize];
        let left = self.offset.0 as usize * channels;
        let out = data.chunks_exact_mut(row_len).skip(self.offset.1 as usize);
        for (out, row) in out.zip(rows) {
            out[left..left + row.len()].copy_from_slice(row);
        }
        data
    }
}

fn no_window(plan: &Plan) -> Error {
    let (width, height) = plan.resized;
    Error::failed(
        "resize",
        format!("no {:?} in {width}x{height} pixels", plan.window),
    )
}

/// Checks that `field` has a value for red, green and blue, or for each of `bands`.
///
/// # Errors
/// Names the field.
pub fn check_count(field: &str, found: usize, bands: Option<Bands>) -> Result<()> {
    let expected = bands::channels(bands);
    if found == expected {
        return Ok(());
    }
    let each = if bands.is_some() { "band" } else { "colour" };
    let reason = format!("expected {expected} numbers, one a {each}, found {found}");
    Err(Error::input(field, reason))
}

/// `values` of red, green and blue, for what bands cannot be.
///
/// # Errors
/// Names the field where they are of bands.
pub fn of_colours(field: &str, values: &[f32]) -> Result<[f32; 3]> {
    check_count(field, values.len(), None)?;
    Ok([values[0], values[1], values[2]])
}

/// Writes `(value - mean) / std` of each band over all of `out`, `[bands, height, width]`.
///
/// # Errors
/// An image of another number of bands, `out` of another length.
pub fn write_bands(image: &BandImage, mean: &[f32], std: &[f32], out: &mut [f32]) -> Result<()> {
    let area = image.width() as usize * image.height() as usize;
    let bands = image.bands();
    if bands != mean.len() || bands != std.len() || out.len() != area * bands {
        let reason = format!(
            "expected {} bands and room for {} values, found {bands} bands and room for {}",
            mean.len(),
            area * mean.len(),
            out.len()
        );
        return Err(Error::input("network input", reason));
    }
    for (band, plane) in out.chunks_exact_mut(area).enumerate() {
        for (out, value) in plane.iter_mut().zip(image.band(band)) {
            *out = (value - mean[band]) / std[band];
        }
    }
    Ok(())
}

/// Width and height after the shorter side has become `side`: the longer one is rounded down (torchvision
/// `_compute_resized_output_size`).
fn resized(width: u32, height: u32, side: u32) -> (u32, u32) {
    let long = |long: u32, short: u32| {
        let length = u64::from(side) * u64::from(long) / u64::from(short.max(1));
        u32::try_from(length).unwrap_or(u32::MAX)
    };
    if width <= height {
        (side, long(height, width))
    } else {
        (long(width, height), side)
    }
}

/// How a centre crop of `crop` lies on `length` samples: the first sample seen, how many are seen, and how many black ones
/// come before them. An odd rest goes after when padding, and to the side that `start` says when cropping.
fn centre(length: u32, crop: u32, start: CropStart) -> (u32, u32, u32) {
    if crop > length {
        return (0, length, (crop - length) / 2);
    }
    let rest = length - crop;
    let half = rest / 2;
    let first = match start {
        CropStart::Even if rest % 2 == 1 => half + half % 2,
        _ => half,
    };
    (first, crop, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_rounded_down() {
        assert_eq!(resized(131, 97, 256), (345, 256)); // 345.7
        assert_eq!(resized(97, 131, 256), (256, 345));
        assert_eq!(resized(300, 256, 256), (300, 256));
        assert_eq!(resized(1, u32::MAX, 65536), (65536, u32::MAX));
    }

    #[test]
    fn half_offsets_go_to_even() {
        let even = |length, crop| centre(length, crop, CropStart::Even);
        assert_eq!(even(41, 24), (8, 24, 0)); // 8.5
        assert_eq!(even(43, 24), (10, 24, 0)); // 9.5
        assert_eq!(even(24, 24), (0, 24, 0));
        assert_eq!(even(5, 8), (0, 5, 1)); // 1 before, 2 after
        assert_eq!(centre(43, 24, CropStart::Down), (9, 24, 0));
    }

    #[test]
    fn a_crop_beyond_the_image_is_black_around_it() {
        let image = RgbImage::from_grey(1, 2, &[10, 20]).unwrap();
        let preprocess = Preprocess {
            resize: None,
            crop: Some((3, 4)),
            ..Preprocess::imagenet(1, 1)
        };
        let out = preprocess.pixels(&image).unwrap();
        let red: Vec<u8> = out.data().iter().step_by(3).copied().collect();
        assert_eq!(red, [0, 10, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_tensor_is_planar_and_normalised() {
        let image = RgbImage::new(2, 1, vec![0, 51, 255, 255, 102, 0]).unwrap();
        let preprocess = Preprocess {
            resize: None,
            crop: None,
            mean: vec![0.5, 0.2, 0.0],
            std: vec![0.5, 1.0, 2.0],
            ..Preprocess::imagenet(1, 1)
        };
        assert_eq!(preprocess.output_size(), None);
        assert_eq!(preprocess.output_size_for(1, 2), (1, 2));
        let mut out = [f32::NAN; 6];
        preprocess.write_tensor(&image, &mut out).unwrap();
        assert_eq!(out, [-1.0, 1.0, 0.0, 0.2, 0.5, 0.0]);
        let error = preprocess
            .write_tensor(&image, &mut out[..5])
            .unwrap_err()
            .to_string();
        assert!(error.contains("3 x 1 x 2") && error.contains('5'), "{error}");
    }

    #[test]
    fn json_keeps_the_contracts_keys_and_refuses_others() {
        let preprocess = Preprocess::imagenet(256, 224);
        let json = preprocess.to_json().unwrap();
        let expected = r#"{"resize":256,"crop":[224,224],"interpolation":"bicubic","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}"#;
        assert_eq!(json, expected);
        assert_eq!(Preprocess::from_json("test", &json).unwrap(), preprocess);
        let square = json.replace("[224,224]", "224");
        assert_eq!(Preprocess::from_json("test", &square).unwrap(), preprocess);
        let whole = json.replace("[224,224]", "null").replace("256", "null");
        assert_eq!(Preprocess::from_json("test", &whole).unwrap().output_size(), None);
        let other = Preprocess {
            resize: Some(Resize::Exact(30, 40)),
            crop_start: CropStart::Down,
            sample_range: SampleRange::Auto,
            ..preprocess
        };
        let json_of_other = other.to_json().unwrap();
        for part in [
            r#""resize":[30,40]"#,
            r#""crop_start":"down""#,
            r#""sample_range":"auto""#,
        ] {
            assert!(json_of_other.contains(part), "{json_of_other}");
        }
        assert_eq!(Preprocess::from_json("test", &json_of_other).unwrap(), other);
        let unknown = json.replace("resize", "size");
        let error = Preprocess::from_json("m.onnx", &unknown).unwrap_err().to_string();
        assert!(error.starts_with("m.onnx: ") && error.contains("size"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (find, replace, field) in [
            ("256", "0", "resize"),
            ("256", "[0,8]", "resize"),
            ("256", "[8,65537]", "resize"),
            ("[224,224]", "[224,0]", "crop"),
            ("0.229", "0", "std"),
            ("0.485", "1e39", "mean"),
        ] {
            let json = Preprocess::imagenet(256, 224)
                .to_json()
                .unwrap()
                .replace(find, replace);
            let error = Preprocess::from_json("m.onnx", &json).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn extreme_proportions_cost_only_what_is_seen() {
        let image = RgbImage::from_grey(1, 60_000, &vec![7; 60_000]).unwrap();
        let out = Preprocess::imagenet(256, 224).pixels(&image).unwrap();
        assert!(out.data().iter().all(|&sample| sample == 7));
        let whole = Preprocess {
            crop: None,
            ..Preprocess::imagenet(256, 224)
        };
        let error = whole.pixels(&image).unwrap_err().to_string();
        assert!(error.contains("1x60000"), "{error}");
    }
}
