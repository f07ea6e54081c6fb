//! Histograms of oriented gradients (Dalal & Triggs 2005), as targets that a student tells (Wei et al. 2021, MaskFeat): where
//! edges are and how they run, whatever the brightness and contrast.

use candle_core::{Result, Tensor};

use super::reconstruction::{reconstruction_side, reduced};

/// Directions of gradients, all around: a bright edge differs from a dark one.
const DIRECTIONS: usize = 8;
/// Side of a cell in pixels.
const CELL: usize = 2;
/// Cells to each side of one that its contrast is measured by.
const NEIGHBOURS: usize = 1;
/// Contrast, in standard deviations of pixels, under which cells stay flat: noise is no edge.
const MIN_CONTRAST: f64 = 0.1;
/// Keeps the direction of no gradient finite.
const EPS: f64 = 1e-6;

/// Number of values of the histograms of a crop of `side` pixels.
pub fn hog_size(side: usize) -> usize {
    let side = reconstruction_side(side);
    DIRECTIONS * (side / cell(side)).pow(2)
}

fn cell(side: usize) -> usize {
    if side.is_multiple_of(CELL) { CELL } else { 1 }
}

/// Histograms of `crops` [B, C, S, S], averaged over channels and to s x s pixels with s of [`reconstruction_side`]: [B, 8, c, c]
/// for cells of 2 pixels; f32, without a gradient.
///
/// A gradient g counts for direction u by `(g u)^4 / |g|^3` where `g u` is above 0, which shares it among the directions beside it. Cells
/// are divided by the root of the mean square of the cells around them.
///
/// # Errors
/// Crops that are not square.
pub fn hog_targets(crops: &Tensor) -> Result<Tensor> {
    let pixels = reduced(crops)?.mean_keepdim(1)?; // [B, 1, s, s]
    let side = pixels.dim(3)?;
    let slope = |dim: usize| -> Result<Tensor> {
        let padded = pixels.pad_with_same(dim, 1, 1)?;
        padded.narrow(dim, 2, side)? - padded.narrow(dim, 0, side)?
    };
    let (dx, dy) = (slope(3)?, slope(2)?);
    let cubed = ((dx.sqr()? + dy.sqr()?)? + EPS)?.powf(1.5)?; // |g|^3
    let along = |direction: usize| -> Result<Tensor> {
        let angle = direction as f64 * std::f64::consts::TAU / DIRECTIONS as f64;
        let component = ((&dx * angle.cos())? + (&dy * angle.sin())?)?.relu()?;
        component.sqr()?.sqr()? / &cubed
    };
    let maps = (0..DIRECTIONS).map(along).collect::<Result<Vec<_>>>()?;
    let cells = Tensor::cat(&maps, 1)?.avg_pool2d(cell(side))?; // [B, 8, c, c]
    let energy = cells.sqr()?.sum_keepdim(1)?;
    let around = energy
        .pad_with_same(2, NEIGHBOURS, NEIGHBOURS)?
        .pad_with_same(3, NEIGHBOURS, NEIGHBOURS)?
        .avg_pool2d_with_stride(2 * NEIGHBOURS + 1, 1)?;
    cells.broadcast_div(&(around + MIN_CONTRAST.powi(2))?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, fixture};
    use candle_core::{DType, Device};

    fn image(side: usize, of: impl Fn(usize, usize) -> f32) -> Tensor {
        let plane: Vec<f32> = (0..side * side).map(|i| of(i / side, i % side)).collect();
        Tensor::from_vec(plane.repeat(3), (1, 3, side, side), &Device::Cpu).unwrap()
    }

    fn by_direction(crops: &Tensor) -> Vec<f32> {
        hog_targets(crops)
            .unwrap()
            .sum((0, 2, 3))
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    /// What numpy makes of the same crops in f64 (`tests/fixtures/make_terms.py`): as they are with cells of two pixels, averaged down
    /// with cells of two, averaged down with cells of one.
    #[test]
    fn histograms_are_numpys() {
        let golden = fixture("terms.safetensors");
        for side in [12, 44, 33] {
            let found = hog_targets(&golden[&format!("hog.crops.{side}")]).unwrap();
            let expected = &golden[&format!("hog.{side}")];
            assert_eq!(expected.elem_count() / expected.dim(0).unwrap(), hog_size(side));
            assert_close(&format!("side {side}"), &found, expected, 2e-6);
        }
    }

    #[test]
    fn an_edge_counts_for_its_direction_and_those_beside_it() {
        // Dark above, bright below: gradients run along +y, direction 2 of 8.
        let found = by_direction(&image(8, |row, _| if row < 4 { 0. } else { 1. }));
        assert!(found[2] > 1. && found[6] == 0., "{found:?}");
        assert!(
            (found[1] - found[2] / 4.).abs() < 1e-3 && (found[3] - found[1]).abs() < 1e-4,
            "{found:?}"
        );
        let turned = by_direction(&image(8, |row, _| if row < 4 { 1. } else { 0. }));
        assert!(
            (turned[6] - found[2]).abs() < 1e-4 && turned[2] == 0.,
            "{turned:?}"
        );
    }

    #[test]
    fn brightness_changes_nothing_and_contrast_little() {
        let wave = |row: usize, column: usize| ((row * 3 + column * 2) as f32 * 0.4).sin() * 3.;
        let before = hog_targets(&image(12, wave)).unwrap();
        let after = hog_targets(&image(12, |row, column| 2. * wave(row, column) + 1.)).unwrap();
        let largest = (before - after).unwrap().abs().unwrap().max_all().unwrap();
        assert!(largest.to_scalar::<f32>().unwrap() < 0.02);
    }

    #[test]
    fn flat_images_have_none_and_sizes_are_as_announced() {
        for side in [1, 7, 28, 64, 98] {
            let found = hog_targets(&image(side, |_, _| 0.3)).unwrap();
            assert_eq!(found.elem_count(), hog_size(side), "{side}");
            assert_eq!(found.dtype(), DType::F32);
            let largest = found
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            assert_eq!(largest, 0., "{side}");
        }
    }
}
