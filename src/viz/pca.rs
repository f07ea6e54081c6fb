//! The figure of the DINOv2 paper (section 7.5): patch tokens of several images in one PCA, the first component tells
//! foreground from background, and a second PCA of the foreground alone gives the three colours, so that equal parts of
//! different objects look alike.

use std::path::Path;

use macula_eval::linalg::pca::Pca;
use macula_eval::{Matrix, MatrixView};

use super::images::{Choice, ModelInputs};
use crate::data::{DecodeOptions, RgbImage, Source};
use crate::draw::sheet::enlarged;
use crate::draw::{Sheet, Tile};
use crate::extract::model::{self, ModelOptions, OpenModel, OutputChoice};
use crate::{Error, Result};

/// Fewer foreground patches than this cannot be told apart by three colours.
const MIN_FOREGROUND: usize = 8;
/// Share of foreground patches at each end of a component that may saturate.
const TAIL: f64 = 0.01;
/// Bins of the histogram that the threshold is searched in.
const BINS: usize = 256;
/// Of background patches.
const BACKGROUND: [u8; 3] = [0x16, 0x19, 0x1e];

/// Which side of the threshold is foreground.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Foreground {
    /// The side that the borders of the images have less of.
    #[default]
    Auto,
    /// Above the threshold.
    High,
    /// Below it.
    Low,
    /// Every patch.
    All,
}

/// How the picture is made.
#[derive(Debug, Clone)]
pub struct PcaOptions {
    /// Which side of the first component is foreground.
    pub foreground: Foreground,
    /// Threshold on the first component, 0 its least value and 1 its greatest; Otsu's where there is none.
    pub threshold: Option<f32>,
    /// Pairs of image and components side by side, at least 1.
    pub columns: usize,
    /// Side of a tile in pixels.
    pub side: u32,
}

/// Colours of patches, and how they came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Colours {
    /// One a patch; none for background.
    pub patches: Vec<Option<[u8; 3]>>,
    /// Share of the foreground's variance along each of its components, up to three.
    pub explained: Vec<f64>,
}

/// Draws the patches of chosen images of `source` by their principal components into `out`. Returns the share of patches
/// that are foreground.
///
/// # Errors
/// A model without an output `patch`, images that cannot be read, or options out of range.
pub fn pca(
    spec: &str,
    source: &dyn Source,
    choice: &Choice,
    model: &ModelOptions,
    decode: &DecodeOptions,
    options: &PcaOptions,
    out: &Path,
) -> Result<f64> {
    if options.columns == 0 {
        return Err(Error::setting("columns", "expected at least 1, found 0"));
    }
    if options
        .threshold
        .is_some_and(|threshold| !(0.0..=1.0).contains(&threshold))
    {
        let found = options.threshold.unwrap_or_default();
        return Err(Error::setting(
            "threshold",
            format!("expected 0 to 1, found {found}"),
        ));
    }
    let rows = choice.rows_in(source.len(), "the source")?;
    let model_options = ModelOptions {
        outputs: OutputChoice::Named(vec!["patch".to_owned()]),
        ..model.clone()
    };
    let OpenModel {
        mut model,
        preprocess,
    } = model::open(spec, source, &model_options)?;
    let inputs = ModelInputs::read(source, &rows, &preprocess, decode)?;
    let shape = model.outputs()[0].shape.clone();
    let [n, dim] = shape[..] else {
        return Err(Error::input(
            spec,
            format!("output `patch`: expected [patches, width], found {shape:?}"),
        ));
    };
    let grid = grid(spec, n, inputs.size)?;
    let tokens = inputs.first_output(model.as_mut())?.into_data();
    let tokens = Matrix::new(tokens, rows.len() * n, dim)?;
    let colours = colours(tokens.view(), grid, options)?;
    let foreground = colours.patches.iter().flatten().count() as f64 / colours.patches.len() as f64;
    sheet(spec, &inputs, grid, &colours, foreground, options).save(out)?;
    Ok(foreground)
}

/// Rows and columns of `n` patches of images of `size` (height, width): the grid of square patches.
fn grid(spec: &str, n: usize, (height, width): (usize, usize)) -> Result<(usize, usize)> {
    let fits = |rows: &usize| {
        n.is_multiple_of(*rows)
            && height.is_multiple_of(*rows)
            && width.is_multiple_of(n / rows)
            && height / rows == width / (n / rows)
    };
    (1..=n).find(fits).map(|rows| (rows, n / rows)).ok_or_else(|| {
        Error::input(
            spec,
            format!(
                "output `patch`: expected square patches that fill {height}x{width} pixels, found {n} patches"
            ),
        )
    })
}

/// The colour of every patch of some images, `tokens` `[images * rows * columns, D]`.
///
/// # Errors
/// Fewer than two tokens, tokens that are all equal, NaN or infinity.
pub fn colours(tokens: MatrixView<'_>, grid: (usize, usize), options: &PcaOptions) -> Result<Colours> {
    let foreground: Vec<usize> = match options.foreground {
        Foreground::All => (0..tokens.rows()).collect(),
        _ => {
            let first = Pca::fit(tokens, 1)?.project(tokens)?.into_data();
            let inside = side(&first, grid, options);
            (0..tokens.rows()).filter(|&patch| inside[patch]).collect()
        }
    };
    if foreground.len() < MIN_FOREGROUND.min(tokens.rows()) {
        return Err(Error::setting(
            "foreground",
            format!(
                "expected at least {MIN_FOREGROUND} foreground patches, found {} of {}; give another --threshold, or --foreground all",
                foreground.len(),
                tokens.rows()
            ),
        ));
    }
    let chosen = tokens.select(&foreground);
    let pca = Pca::fit(chosen.view(), 3)?;
    let projected = pca.project(chosen.view())?;
    let components = projected.view().dim();
    let ranges: Vec<(f32, f32)> = (0..components)
        .map(|component| range(projected.view(), component))
        .collect();
    let mut patches = vec![None; tokens.rows()];
    for (row, &patch) in foreground.iter().enumerate() {
        let values = projected.view().row(row);
        // A component that the patches do not span is grey.
        patches[patch] = Some(std::array::from_fn(|channel| match ranges.get(channel) {
            Some(&(low, high)) => (255.0
                * ((values[channel] - low) / (high - low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0))
            .round() as u8,
            None => 128,
        }));
    }
    Ok(Colours {
        patches,
        explained: pca.explained().to_vec(),
    })
}

/// Which patches are foreground by their first component.
fn side(first: &[f32], grid: (usize, usize), options: &PcaOptions) -> Vec<bool> {
    let (low, high) = first
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| {
            (low.min(v), high.max(v))
        });
    let threshold = match options.threshold {
        Some(share) => low + share * (high - low),
        None => otsu(first, low, high),
    };
    let above: Vec<bool> = first.iter().map(|&value| value > threshold).collect();
    let high_side = match options.foreground {
        Foreground::High | Foreground::All => true,
        Foreground::Low => false,
        Foreground::Auto => !border_is_above(&above, grid),
    };
    above.into_iter().map(|above| above == high_side).collect()
}

/// Whether patches at the borders of the images lie above more often than the others.
fn border_is_above(above: &[bool], (rows, columns): (usize, usize)) -> bool {
    let mut counts = [[0usize; 2]; 2]; // [inner, border] x [below, above]
    for (patch, &above) in above.iter().enumerate() {
        let (row, column) = (patch / columns % rows, patch % columns);
        let border = row == 0 || column == 0 || row + 1 == rows || column + 1 == columns;
        counts[usize::from(border)][usize::from(above)] += 1;
    }
    // Cross-multiplied, so that grids without inner patches decide by nothing.
    let [inner, border] = counts;
    border[1] * (inner[0] + inner[1]) > inner[1] * (border[0] + border[1])
}

/// The threshold between `low` and `high` that leaves the greatest variance between its two sides (Otsu 1979).
fn otsu(values: &[f32], low: f32, high: f32) -> f32 {
    let width = f64::from(high - low).max(f64::MIN_POSITIVE) / BINS as f64;
    let mut counts = [0.0f64; BINS];
    for &value in values {
        let bin = (f64::from(value - low) / width) as usize;
        counts[bin.min(BINS - 1)] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let sum: f64 = counts
        .iter()
        .enumerate()
        .map(|(bin, count)| bin as f64 * count)
        .sum();
    let (mut below, mut sum_below) = (0.0, 0.0);
    let mut best = (0.0, 0);
    for (bin, count) in counts.iter().enumerate() {
        below += count;
        sum_below += bin as f64 * count;
        if below == 0.0 || below == total {
            continue;
        }
        let difference = sum_below / below - (sum - sum_below) / (total - below);
        let between = below * (total - below) * difference * difference;
        if between > best.0 {
            best = (between, bin);
        }
    }
    (f64::from(low) + width * (best.1 + 1) as f64) as f32
}

/// The values between which a component's colours run: all but the tails.
fn range(projected: MatrixView<'_>, component: usize) -> (f32, f32) {
    let mut values: Vec<f32> = (0..projected.rows())
        .map(|row| projected.row(row)[component])
        .collect();
    values.sort_unstable_by(f32::total_cmp);
    let tail = (TAIL * values.len() as f64) as usize;
    (values[tail], values[values.len() - 1 - tail])
}

fn sheet(
    spec: &str,
    inputs: &ModelInputs,
    grid: (usize, usize),
    colours: &Colours,
    foreground: f64,
    options: &PcaOptions,
) -> Sheet {
    let n = grid.0 * grid.1;
    let pairs = inputs
        .pictures
        .iter()
        .zip(&inputs.captions)
        .zip(colours.patches.chunks(n));
    let tiles: Vec<[Tile; 2]> = pairs
        .map(|((picture, caption), patches)| {
            let components = painted(patches, grid, inputs.size);
            [Tile::new(picture.clone(), caption), Tile::new(components, "")]
        })
        .collect();
    let explained: Vec<String> = colours
        .explained
        .iter()
        .map(|share| format!("{:.0} %", 100.0 * share))
        .collect();
    let file = Path::new(spec).file_name().unwrap_or_default().to_string_lossy();
    Sheet {
        title: format!("Principal components of patch tokens · {file}"),
        notes: vec![
            format!(
                "{} images in one PCA, {} x {} patches each; {:.0} % of the patches are foreground",
                inputs.pictures.len(),
                grid.0,
                grid.1,
                100.0 * foreground
            ),
            format!(
                "red, green, blue: components 1 to {} of the foreground, {} of its variance",
                explained.len(),
                explained.join(", ")
            ),
        ],
        rows: tiles
            .chunks(options.columns)
            .map(|pairs| pairs.concat())
            .collect(),
        side: options.side,
        ..Sheet::default()
    }
}

/// Patches as squares, as large as the image they belong to.
fn painted(
    patches: &[Option<[u8; 3]>],
    (rows, columns): (usize, usize),
    (height, _): (usize, usize),
) -> RgbImage {
    let data: Vec<u8> = patches
        .iter()
        .flat_map(|patch| patch.unwrap_or(BACKGROUND))
        .collect();
    let small = RgbImage::new(columns as u32, rows as u32, data).expect("one colour a patch");
    enlarged(&small, (height / rows) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(foreground: Foreground) -> PcaOptions {
        PcaOptions {
            foreground,
            threshold: None,
            columns: 2,
            side: 64,
        }
    }

    /// Two images of 4 x 4 patches: a border around four inner patches, which differ by the second value.
    fn tokens(border: f32) -> Matrix {
        let mut data = Vec::new();
        for image in 0..2 {
            for patch in 0..16 {
                let (row, column) = (patch / 4, patch % 4);
                let inner = (1..3).contains(&row) && (1..3).contains(&column);
                let along = if inner { -border } else { border };
                let across = if inner {
                    row as f32 + 0.3 * column as f32
                } else {
                    0.01 * patch as f32
                };
                data.extend([along, across, 0.001 * image as f32 * column as f32]);
            }
        }
        Matrix::new(data, 32, 3).unwrap()
    }

    #[test]
    fn the_side_that_borders_lack_is_foreground() {
        for border in [10.0, -10.0] {
            let rows = tokens(border);
            let found = colours(rows.view(), (4, 4), &options(Foreground::Auto)).unwrap();
            let inner: Vec<usize> = (0..32).filter(|&patch| found.patches[patch].is_some()).collect();
            assert_eq!(inner, [5, 6, 9, 10, 21, 22, 25, 26], "border {border}");
            // The same part of both images has the same colour, up to the third component, which tells them apart.
            let colour = |patch: usize| found.patches[patch].unwrap();
            assert_eq!(colour(5)[0], colour(21)[0]);
            assert_ne!(colour(5)[0], colour(9)[0]);
        }
        let all = colours(tokens(10.0).view(), (4, 4), &options(Foreground::All)).unwrap();
        assert!(all.patches.iter().all(Option::is_some));
        let high = colours(tokens(10.0).view(), (4, 4), &options(Foreground::High)).unwrap();
        let low = colours(tokens(10.0).view(), (4, 4), &options(Foreground::Low)).unwrap();
        for (high, low) in high.patches.iter().zip(&low.patches) {
            assert_ne!(high.is_some(), low.is_some());
        }
    }

    #[test]
    fn too_little_foreground_is_told() {
        let options = PcaOptions {
            threshold: Some(1.0),
            ..options(Foreground::High)
        };
        let error = colours(tokens(10.0).view(), (4, 4), &options).unwrap_err();
        assert!(error.to_string().contains("threshold"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn the_threshold_lies_between_two_groups() {
        let values: Vec<f32> = (0..100)
            .map(|i| {
                if i < 70 {
                    0.001 * i as f32
                } else {
                    1.0 - 0.001 * i as f32
                }
            })
            .collect();
        let threshold = otsu(&values, 0.0, 0.93);
        assert!((0.069..0.9).contains(&threshold), "{threshold}");
    }

    #[test]
    fn grids_have_square_patches() {
        assert_eq!(grid("m", 16, (28, 28)).unwrap(), (4, 4));
        assert_eq!(grid("m", 6, (28, 42)).unwrap(), (2, 3));
        let error = grid("m", 17, (28, 28)).unwrap_err().to_string();
        assert!(error.contains("17 patches"), "{error}");
    }
}
