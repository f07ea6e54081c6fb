//! `curate quality`: images that are too small, too long, too dark or bright, nearly of one colour, or blurred, with the
//! measures behind each flag. No file is ever deleted, and no row dropped unless `--drop` names its flag.

use clap::{Args, ValueEnum};
use macula_eval::Error as EvalError;
use polars::prelude::{DataFrame, df};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::{InputOptions, judged};
use super::ledger::{Earlier, Ledger};
use super::origin::Origin;
use super::pixels::luma;
use super::{Judged, Step, setting_name};
use crate::data::{DecodeOptions, Interpolation, RgbImage, SampleRange, resize};
use crate::{Error, Result, data};

/// Sharpness is measured on images of at most this side: pixels of a large image are always soft.
const MEASURED_SIDE: u32 = 256;

/// What may be wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// It cannot be read.
    Unreadable,
    /// Its shorter side is below `min_side`.
    Small,
    /// Its longer side is more than `max_aspect` times its shorter.
    Aspect,
    /// Its mean luminance is below `dark`.
    Dark,
    /// Its mean luminance is above `bright`.
    Bright,
    /// The standard deviation of its luminance is below `flat`.
    Flat,
    /// The variance of its Laplacian is below `blur`.
    Blurred,
}

/// Settings of `curate quality`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QualityOptions {
    /// small: shorter side below this, in pixels
    #[arg(long, default_value_t = Self::default().min_side)]
    pub min_side: u32,
    /// aspect: longer side over shorter above this
    #[arg(long, default_value_t = Self::default().max_aspect)]
    pub max_aspect: f64,
    /// dark: mean luminance below this, 0 to 1
    #[arg(long, default_value_t = Self::default().dark)]
    pub dark: f64,
    /// bright: mean luminance above this, 0 to 1
    #[arg(long, default_value_t = Self::default().bright)]
    pub bright: f64,
    /// flat: standard deviation of the luminance below this, 0 to 1
    #[arg(long, default_value_t = Self::default().flat)]
    pub flat: f64,
    /// blurred: variance of the Laplacian of the luminance (0 to 1, at 256 pixels at most) below this
    #[arg(long, default_value_t = Self::default().blur)]
    pub blur: f64,
    /// Leave images with these flags out of the list [default: none]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FLAGS")]
    pub drop: Vec<Flag>,
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does
    #[arg(
        long,
        value_name = "auto|LOW,HIGH",
        default_value = "clip",
        allow_hyphen_values = true
    )]
    #[serde(skip_serializing_if = "SampleRange::is_clip")]
    pub sample_range: SampleRange,
}

impl Default for QualityOptions {
    fn default() -> Self {
        Self {
            min_side: 64,
            max_aspect: 4.0,
            dark: 0.04,
            bright: 0.97,
            flat: 0.02,
            blur: 0.0003,
            drop: Vec::new(),
            sample_range: SampleRange::Clip,
        }
    }
}

/// What is measured of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measures {
    width: u32,
    height: u32,
    mean: f64,
    deviation: f64,
    sharpness: f64,
}

impl Step for QualityOptions {
    fn name(&self) -> &'static str {
        "quality"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn judge(&self, input: &InputOptions, _seed: u64) -> Result<Judged> {
        let Some(spec) = &input.data else {
            return Err(Error::setting(
                "data",
                "expected the images to look at, found none",
            ));
        };
        let source = data::open(spec)?;
        let records: Vec<_> = (0..source.len()).map(|row| source.record(row)).collect();
        let rows: Vec<u64> = records.iter().map(|record| record.row).collect();
        let (paths, labels): (Vec<_>, Vec<_>) = records.into_iter().map(|r| (r.path, r.label)).unzip();
        let earlier = input.list.as_deref().map(Earlier::read).transpose()?;
        let places = judged(&rows, &paths, input.list.as_deref(), earlier.as_ref())?;
        let decode = DecodeOptions {
            sample_range: self.sample_range,
            ..DecodeOptions::default()
        };
        let measured: Vec<std::result::Result<Measures, String>> = places
            .par_iter()
            .map(|&place| {
                let image = source.load(rows[place], &decode);
                image
                    .map(|image| measure(&image))
                    .map_err(|error| error.to_string())
            })
            .collect();
        let flags: Vec<Vec<Flag>> = measured.iter().map(|m| self.flags(m.as_ref().ok())).collect();

        let mut ledger = Ledger::new(rows, paths, labels, "component");
        ledger.narrow(&places, earlier.as_ref());
        for (&place, flags) in places.iter().zip(&flags) {
            let names = names(flags);
            if flags.iter().any(|flag| self.drop.contains(flag)) {
                ledger.drop_row(place, names);
            } else if !flags.is_empty() {
                ledger.reasons[place] = format!("kept, though {names}").into();
            }
        }
        let table = table(&ledger, &places, &measured, &flags)?;
        let mut judged = Judged::new(ledger, Origin::new(spec, source));
        for flag in Flag::value_variants() {
            let count = flags.iter().filter(|flags| flags.contains(flag)).count();
            judged.count(&setting_name(flag), count);
        }
        judged.tables.push(("quality".to_owned(), table));
        Ok(judged)
    }
}

fn names(flags: &[Flag]) -> String {
    flags.iter().map(setting_name).collect::<Vec<_>>().join(" ")
}

impl QualityOptions {
    /// What is wrong with an image; one without measures could not be read.
    fn flags(&self, measured: Option<&Measures>) -> Vec<Flag> {
        let Some(m) = measured else {
            return vec![Flag::Unreadable];
        };
        let (shorter, longer) = (m.width.min(m.height), m.width.max(m.height));
        [
            (Flag::Small, shorter < self.min_side),
            (
                Flag::Aspect,
                f64::from(longer) / f64::from(shorter) > self.max_aspect,
            ),
            (Flag::Dark, m.mean < self.dark),
            (Flag::Bright, m.mean > self.bright),
            (Flag::Flat, m.deviation < self.flat),
            (Flag::Blurred, m.sharpness < self.blur),
        ]
        .into_iter()
        .filter_map(|(flag, holds)| holds.then_some(flag))
        .collect()
    }
}

fn measure(image: &RgbImage) -> Measures {
    let longest = image.width().max(image.height());
    let scaled = |side: u32| (u64::from(side) * u64::from(MEASURED_SIDE) / u64::from(longest)).max(1) as u32;
    let small = (longest > MEASURED_SIDE)
        .then(|| {
            resize(
                &image.view(),
                scaled(image.width()),
                scaled(image.height()),
                Interpolation::Bilinear,
            )
        })
        .flatten();
    let sampled = small.as_ref().unwrap_or(image);
    let grey: Vec<f64> = sampled
        .data()
        .chunks_exact(3)
        .map(|pixel| f64::from(luma(pixel)) / 255.0)
        .collect();
    let (mean, variance) = moments(&grey);
    let (width, height) = (sampled.width() as usize, sampled.height() as usize);
    let mut laplacian = Vec::with_capacity(grey.len());
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let at = y * width + x;
            let around = grey[at - 1] + grey[at + 1] + grey[at - width] + grey[at + width];
            laplacian.push(around - 4.0 * grey[at]);
        }
    }
    Measures {
        width: image.width(),
        height: image.height(),
        mean,
        deviation: variance.sqrt(),
        sharpness: moments(&laplacian).1,
    }
}

/// Mean and variance; 0 of nothing.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    (mean, variance)
}

/// `row`, `path`, `width`, `height`, `luminance`, `deviation`, `sharpness`, `flags`, `error`.
fn table(
    ledger: &Ledger,
    places: &[usize],
    measured: &[std::result::Result<Measures, String>],
    flags: &[Vec<Flag>],
) -> Result<DataFrame> {
    fn value<T>(
        measured: &[std::result::Result<Measures, String>],
        read: fn(&Measures) -> T,
    ) -> Vec<Option<T>> {
        measured.iter().map(|m| m.as_ref().ok().map(read)).collect()
    }
    let table = df!(
        "row" => places.iter().map(|&place| ledger.rows[place]).collect::<Vec<u64>>(),
        "path" => places.iter().map(|&place| ledger.paths[place].as_str()).collect::<Vec<_>>(),
        "width" => value(measured, |m| m.width),
        "height" => value(measured, |m| m.height),
        "luminance" => value(measured, |m| m.mean),
        "deviation" => value(measured, |m| m.deviation),
        "sharpness" => value(measured, |m| m.sharpness),
        "flags" => flags.iter().map(|flags| names(flags)).collect::<Vec<_>>(),
        "error" => measured.iter().map(|m| m.as_ref().err().cloned()).collect::<Vec<_>>(),
    );
    Ok(table.map_err(EvalError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(width: u32, height: u32, shade: impl Fn(u32, u32) -> u8) -> Vec<Flag> {
        let grey: Vec<u8> = (0..width * height).map(|i| shade(i % width, i / width)).collect();
        let image = RgbImage::from_grey(width, height, &grey).unwrap();
        QualityOptions::default().flags(Some(&measure(&image)))
    }

    #[test]
    fn each_flag_has_its_picture() {
        let chequered = |x: u32, y: u32| {
            if (x / 4 + y / 4).is_multiple_of(2) {
                40
            } else {
                220
            }
        };
        assert_eq!(flags(80, 70, chequered), []);
        assert_eq!(flags(80, 20, chequered), [Flag::Small]);
        assert_eq!(flags(500, 100, chequered), [Flag::Aspect]);
        assert_eq!(
            flags(90, 90, |x, y| chequered(x, y) / 30),
            [Flag::Dark, Flag::Flat]
        );
        assert_eq!(
            flags(90, 90, |_, _| 255),
            [Flag::Bright, Flag::Flat, Flag::Blurred]
        );
        // A slow wave has contrast and no edges.
        let wave = |x: u32, _: u32| (128.0 + 100.0 * (x as f32 / 20.0).sin()) as u8;
        assert_eq!(flags(128, 128, wave), [Flag::Blurred]);
        assert_eq!(QualityOptions::default().flags(None), [Flag::Unreadable]);
    }
}
