//! From one network's geometry to another's: crops of the student as pixels of the teacher, and the teacher's patch grid
//! on the student's.

use candle_core::{DType, Device, Result, Tensor};
use macula_models::vit::{PositionRule, resize_matrix};

use crate::data::mask::Grid;

/// How the student's crops become the teacher's pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelFit {
    /// Factor on each channel.
    scale: [f32; 3],
    /// What is then added to each channel.
    shift: [f32; 3],
    /// Side that the teacher sees.
    side: usize,
}

impl PixelFit {
    /// From crops normalised by the `student`'s mean and standard deviation to those of the `teacher` at `side` pixels.
    pub fn new(student: ([f32; 3], [f32; 3]), teacher: ([f32; 3], [f32; 3]), side: usize) -> Self {
        let (mean, std) = student;
        let (teacher_mean, teacher_std) = teacher;
        Self {
            scale: std::array::from_fn(|c| std[c] / teacher_std[c]),
            shift: std::array::from_fn(|c| (mean[c] - teacher_mean[c]) / teacher_std[c]),
            side,
        }
    }

    /// Side that the teacher sees.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Crops [n, 3, S, S] as the teacher's pixels [n, 3, side, side]: bicubic, with a filter as wide as the reduction.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn apply(&self, crops: &Tensor) -> Result<Tensor> {
        let (n, _, height, width) = crops.dims4()?;
        let resized = if (height, width) == (self.side, self.side) {
            crops.clone()
        } else {
            let matrix = |source: usize| -> Result<Tensor> {
                let weights = resize_matrix(source, self.side, PositionRule::Registers);
                Tensor::from_vec(weights, (self.side, source), crops.device())
            };
            let planes = crops.reshape((n * 3, height, width))?.contiguous()?;
            resample(&planes, &matrix(height)?, &matrix(width)?)?.reshape((n, 3, self.side, self.side))?
        };
        if self.scale == [1.; 3] && self.shift == [0.; 3] {
            return Ok(resized);
        }
        let channels = |values: [f32; 3]| {
            Tensor::from_slice(&values, (1, 3, 1, 1), &Device::Cpu)?.to_device(crops.device())
        };
        resized
            .broadcast_mul(&channels(self.scale)?)?
            .broadcast_add(&channels(self.shift)?)
    }
}

/// Planes [P, h, w] through a matrix [H, h] along their rows and one [W, w] along their columns: [P, H, W].
fn resample(planes: &Tensor, rows: &Tensor, columns: &Tensor) -> Result<Tensor> {
    let (count, height, width) = planes.dims3()?;
    let (to_height, to_width) = (rows.dim(0)?, columns.dim(0)?);
    let wide = planes
        .reshape((count * height, width))?
        .matmul(&columns.t()?.contiguous()?)? // [P h, W]
        .reshape((count, height, to_width))?
        .transpose(1, 2)?
        .contiguous()?; // [P, W, h]
    wide.reshape((count * to_width, height))?
        .matmul(&rows.t()?.contiguous()?)? // [P W, H]
        .reshape((count, to_width, to_height))?
        .transpose(1, 2)?
        .contiguous()
}

/// Patch tokens [n, h w, D] of a grid `from` on the grid `to`, [n, H W, D], by bilinear interpolation between the centres of
/// patches (PyTorch `interpolate`, `align_corners=False`): both grids lie over the same crop, so that a place in one is the
/// same share of the crop in the other. Not recorded for gradients of more than the tokens.
///
/// # Errors
/// Tokens of another number.
pub fn resample_grid(tokens: &Tensor, from: Grid, to: Grid) -> Result<Tensor> {
    if from == to {
        return Ok(tokens.clone());
    }
    let (n, _, width) = tokens.dims3()?;
    let matrix = |source: usize, target: usize| {
        let weights = bilinear_matrix(source, target);
        Tensor::from_vec(weights, (target, source), tokens.device())?.to_dtype(DType::F32)
    };
    let planes = tokens
        .transpose(1, 2)?
        .contiguous()?
        .reshape((n * width, from.rows, from.columns))?;
    resample(
        &planes,
        &matrix(from.rows, to.rows)?,
        &matrix(from.columns, to.columns)?,
    )?
    .reshape((n, width, to.rows * to.columns))?
    .transpose(1, 2)?
    .contiguous()
}

/// Weights of a linear interpolation from `source` to `target` samples, [target, source] row-major; beyond the outermost
/// centres the edge sample counts alone.
fn bilinear_matrix(source: usize, target: usize) -> Vec<f32> {
    let mut weights = vec![0f32; target * source];
    let last = source.saturating_sub(1);
    for (i, row) in weights.chunks_exact_mut(source).enumerate() {
        let at = ((i as f64 + 0.5) * source as f64 / target as f64 - 0.5).clamp(0., last as f64);
        let below = at.floor() as usize;
        let share = (at - at.floor()) as f32;
        row[below] += 1. - share;
        row[(below + 1).min(last)] += share;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::transform::{IMAGENET_MEAN, IMAGENET_STD};
    use crate::train::testing::{assert_close, values};

    fn grid(rows: usize, columns: usize) -> Grid {
        Grid { rows, columns }
    }

    /// Values of PyTorch's `interpolate(torch.arange(4.).view(1, 1, 2, 2), (4, 4), mode="bilinear")`, first and second row.
    #[test]
    fn the_grid_is_interpolated_as_pytorch_does() {
        let tokens = Tensor::new(&[[[0f32], [1.], [2.], [3.]]], &Device::Cpu).unwrap();
        let found = resample_grid(&tokens, grid(2, 2), grid(4, 4)).unwrap();
        assert_eq!(found.dims(), [1, 16, 1]);
        assert_eq!(values(&found)[..8], [0., 0.25, 0.75, 1., 0.5, 0.75, 1.25, 1.5]);
        let back = resample_grid(&found, grid(4, 4), grid(2, 2)).unwrap();
        assert_eq!(values(&back), [0.375, 1.125, 1.875, 2.625]);
        let same = resample_grid(&tokens, grid(2, 2), grid(2, 2)).unwrap();
        assert_eq!(values(&same), values(&tokens));
    }

    /// A function linear in both directions stays what it is at inner places, in every channel, on any grid.
    #[test]
    fn odd_grids_and_many_channels_keep_their_places() {
        let plane = |rows: usize, columns: usize| {
            let mut all = Vec::new();
            for row in 0..rows {
                for column in 0..columns {
                    let (y, x) = (
                        (row as f32 + 0.5) / rows as f32,
                        (column as f32 + 0.5) / columns as f32,
                    );
                    all.extend([x, 2. * y, x - y]);
                }
            }
            Tensor::from_vec(all, (1, rows * columns, 3), &Device::Cpu).unwrap()
        };
        let found = resample_grid(&plane(5, 7), grid(5, 7), grid(3, 4)).unwrap();
        assert_close("tokens", &found, &plane(3, 4), 1e-6);
    }

    #[test]
    fn pixels_take_the_teachers_normalisation_and_size() {
        let (mean, std) = ([0.5; 3], [0.25; 3]);
        // A crop of one colour, 0.6 in [0, 1].
        let crop = Tensor::full(0.4f32, (2, 3, 6, 6), &Device::Cpu).unwrap();
        let fit = PixelFit::new((mean, std), (IMAGENET_MEAN, IMAGENET_STD), 8);
        let found = fit.apply(&crop).unwrap();
        assert_eq!(found.dims(), [2, 3, 8, 8]);
        for (place, value) in values(&found).into_iter().enumerate() {
            let channel = place / 64 % 3;
            let expected = f64::from((0.6 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]);
            assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        }
        let same = PixelFit::new((mean, std), (mean, std), 6);
        assert_eq!(values(&same.apply(&crop).unwrap()), values(&crop));
    }

    #[test]
    fn rows_and_columns_are_not_exchanged() {
        let mut pixels = vec![0f32; 3 * 4 * 4];
        pixels[..4].fill(1.); // the top row of the first channel
        let crop = Tensor::from_vec(pixels, (1, 3, 4, 4), &Device::Cpu).unwrap();
        let fit = PixelFit::new(([0.; 3], [1.; 3]), ([0.; 3], [1.; 3]), 2);
        let found = values(&fit.apply(&crop).unwrap());
        assert!(
            found[0] > 0.2 && (found[0] - found[1]).abs() < 1e-6 && found[2] < 0.2,
            "{found:?}"
        );
        assert!(found[4..].iter().all(|value| value.abs() < 1e-6));
    }
}
