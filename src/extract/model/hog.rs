//! Histograms of oriented gradients (Dalal and Triggs 2005): edges without any network, the strongest floor that is made by
//! hand. The descriptor is scikit-image's `hog` of 9 orientations, blocks of 2 x 2 cells and `L2-Hys`.

use rayon::prelude::*;
use serde_json::json;

use super::pixels::as_they_are;
use super::{FeatureModel, ModelOptions, OpenModel};
use crate::data::Source;
use crate::extract::OutputSpec;
use crate::{Error, Result};

/// Orientations between 0 and 180 degrees: an edge from dark to bright is one from bright to dark.
const ORIENTATIONS: usize = 9;
/// Cells along a side of a block.
const BLOCK: usize = 2;
/// Cells along the shorter side, about, where the side of a cell is not given: 4 pixels at 28, 28 at 224.
const CELLS: usize = 8;
const EPSILON: f64 = 1e-5;
/// Largest value of a normalised block before it is normalised again.
const MOST: f64 = 0.2;

/// Reads `hog` or `hog:CELL`; `None` when `spec` is no such model at all.
pub(super) fn parse(spec: &str) -> Option<Result<Option<usize>>> {
    let cell = spec.strip_prefix("hog")?;
    if cell.is_empty() {
        return Some(Ok(None));
    }
    let cell = cell.strip_prefix(':')?;
    Some(match cell.parse() {
        Ok(cell) if cell > 0 => Ok(Some(cell)),
        _ => Err(Error::setting(
            "model",
            format!("expected hog or hog:CELL with the side of a cell in pixels, found `{spec}`"),
        )),
    })
}

/// The descriptor for images of one size.
pub struct HogModel {
    output: OutputSpec,
    hog: Hog,
}

/// Opens the model for the images of `source`, at the size that the options or its first image say.
pub(super) fn open(cell: Option<usize>, source: &dyn Source, options: &ModelOptions) -> Result<OpenModel> {
    options.outputs.choose("hog", &["hog".to_owned()])?;
    let preprocess = as_they_are(source, options)?;
    let (height, width) = preprocess.crop.unwrap_or((1, 1));
    let (height, width) = (height as usize, width as usize);
    let hog = Hog {
        height,
        width,
        cell: cell.unwrap_or_else(|| height.min(width).div_ceil(CELLS)),
    };
    if hog.blocks().is_none() {
        let found = format!("{height}x{width} pixels and cells of {}", hog.cell);
        let reason = format!("expected images of at least {BLOCK} cells a side, found {found}");
        return Err(Error::setting("model hog", reason));
    }
    let model = HogModel {
        output: OutputSpec {
            name: "hog".to_owned(),
            shape: vec![hog.len()],
        },
        hog,
    };
    Ok(OpenModel {
        model: Box::new(model),
        preprocess,
    })
}

impl FeatureModel for HogModel {
    fn outputs(&self) -> &[OutputSpec] {
        std::slice::from_ref(&self.output)
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "hog",
            "orientations": ORIENTATIONS,
            "cell": self.hog.cell,
            "block": BLOCK,
            "norm": "L2-Hys",
        })
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let image = 3 * self.hog.height * self.hog.width;
        let found: Vec<Vec<f32>> = pixels
            .par_chunks_exact(image)
            .take(n)
            .map(|pixels| self.hog.describe(pixels))
            .collect();
        found.iter().for_each(|of_image| outputs[0].extend(of_image));
        Ok(())
    }
}

/// Sizes in pixels.
#[derive(Debug, Clone, Copy)]
struct Hog {
    height: usize,
    width: usize,
    cell: usize,
}

impl Hog {
    /// Whole cells in rows and columns; what is left over at the right and below is not looked at.
    fn cells(&self) -> (usize, usize) {
        (self.height / self.cell, self.width / self.cell)
    }

    /// Blocks in rows and columns, one cell apart; none where there is not even one.
    fn blocks(&self) -> Option<(usize, usize)> {
        let (rows, columns) = self.cells();
        let blocks = |cells: usize| (cells + 1).checked_sub(BLOCK).filter(|&blocks| blocks > 0);
        Some((blocks(rows)?, blocks(columns)?))
    }

    fn len(&self) -> usize {
        let (rows, columns) = self.blocks().unwrap_or((0, 0));
        rows * columns * BLOCK * BLOCK * ORIENTATIONS
    }

    /// The descriptor `[block rows, block columns, 2, 2, 9]` of pixels `[3, height, width]`.
    fn describe(&self, pixels: &[f32]) -> Vec<f32> {
        let histograms = self.histograms(pixels);
        let columns = self.cells().1;
        let (block_rows, block_columns) = self.blocks().unwrap_or((0, 0));
        let mut out = Vec::with_capacity(self.len());
        for (top, left) in (0..block_rows).flat_map(|y| (0..block_columns).map(move |x| (y, x))) {
            let mut block = [0.0; BLOCK * BLOCK * ORIENTATIONS];
            for (row, block) in block.chunks_exact_mut(BLOCK * ORIENTATIONS).enumerate() {
                let first = ((top + row) * columns + left) * ORIENTATIONS;
                block.copy_from_slice(&histograms[first..first + BLOCK * ORIENTATIONS]);
            }
            normalise(&mut block);
            block.iter_mut().for_each(|value| *value = value.min(MOST));
            normalise(&mut block);
            out.extend(block.map(|value| value as f32));
        }
        out
    }

    /// Of every cell, the mean over its pixels of the gradients' lengths by orientation: `[rows, columns, 9]`.
    fn histograms(&self, pixels: &[f32]) -> Vec<f64> {
        let (rows, columns) = self.cells();
        let mut out = vec![0.0; rows * columns * ORIENTATIONS];
        let share = 1.0 / (self.cell * self.cell) as f64;
        for y in 0..rows * self.cell {
            for x in 0..columns * self.cell {
                let (down, across) = self.gradient(pixels, y, x);
                let degrees = down.atan2(across).to_degrees().rem_euclid(180.0);
                let orientation = (degrees / (180.0 / ORIENTATIONS as f64)) as usize;
                // A tiny negative angle is rounded to 180 and falls out, as it does there.
                if orientation < ORIENTATIONS {
                    let cell = y / self.cell * columns + x / self.cell;
                    out[cell * ORIENTATIONS + orientation] += share * down.hypot(across);
                }
            }
        }
        out
    }

    /// The gradient at a pixel, down and across: of the channels the longest one, the first of equals; 0 across the border.
    fn gradient(&self, pixels: &[f32], y: usize, x: usize) -> (f64, f64) {
        let at = |plane: &[f32], y: usize, x: usize| f64::from(plane[y * self.width + x]);
        let inside = |place: usize, length: usize| place > 0 && place + 1 < length;
        let mut longest = (0.0, 0.0);
        for plane in pixels.chunks_exact(self.height * self.width) {
            let down = match inside(y, self.height) {
                true => at(plane, y + 1, x) - at(plane, y - 1, x),
                false => 0.0,
            };
            let across = match inside(x, self.width) {
                true => at(plane, y, x + 1) - at(plane, y, x - 1),
                false => 0.0,
            };
            if down.hypot(across) > f64::hypot(longest.0, longest.1) {
                longest = (down, across);
            }
        }
        longest
    }
}

/// Divides a block by its length.
fn normalise(block: &mut [f64]) {
    let square: f64 = block.iter().map(|value| value * value).sum();
    let length = (square + EPSILON * EPSILON).sqrt();
    block.iter_mut().for_each(|value| *value /= length);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/fixtures/make_hog.py`: values of scikit-image for pixels that a formula gives.
    #[test]
    fn values_are_scikit_images() {
        let text = include_str!("../../../tests/fixtures/hog.expected.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let whole = |name: &str| case[name].as_u64().unwrap() as usize;
            let (height, width, channels) = (whole("height"), whole("width"), whole("channels"));
            let hog = Hog {
                height,
                width,
                cell: whole("cell"),
            };
            let pixels: Vec<f32> = (0..3 * height * width)
                .map(|place| {
                    let (plane, y, x) = (
                        if channels == 1 {
                            0
                        } else {
                            place / (height * width)
                        },
                        place / width % height,
                        place % width,
                    );
                    let value = (y * y * 7 + x * x * 3 + y * x * (5 + plane) + plane * 31 + y * 13) % 256;
                    value as f32 / 255.0
                })
                .collect();
            let found = hog.describe(&pixels);
            assert_eq!(found.len(), whole("length"));
            assert_eq!(hog.len(), found.len());
            for (place, expected) in case["values"].as_object().unwrap() {
                let (found, expected) = (found[place.parse::<usize>().unwrap()], expected.as_f64().unwrap());
                assert!(
                    (f64::from(found) - expected).abs() < 2e-6,
                    "{height}x{width}, {place}: {found} {expected}"
                );
            }
            let sum: f64 = found.iter().map(|value| f64::from(*value)).sum();
            assert!((sum / case["sum"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{sum}");
        }
    }

    #[test]
    fn cells_are_given_or_chosen() {
        assert!(matches!(parse("hog"), Some(Ok(None))) && matches!(parse("hog:7"), Some(Ok(Some(7)))));
        assert!(parse("hogs").is_none() && parse("pixels").is_none());
        for wrong in ["hog:", "hog:0", "hog:x", "hog:-1"] {
            let error = parse(wrong).unwrap().unwrap_err().to_string();
            assert!(error.contains("hog:CELL"), "{error}");
        }
        let hog = |side: usize, cell| Hog {
            height: side,
            width: side,
            cell,
        };
        assert_eq!((hog(28, 4).len(), hog(224, 28).len()), (36 * 36, 49 * 36));
        assert_eq!(hog(7, 4).blocks(), None);
    }

    #[test]
    fn an_image_of_one_colour_has_no_gradients_and_no_nan() {
        let hog = Hog {
            height: 28,
            width: 28,
            cell: 4,
        };
        let found = hog.describe(&vec![0.5; 3 * 28 * 28]);
        assert_eq!(found, vec![0.0; hog.len()]);
    }
}
