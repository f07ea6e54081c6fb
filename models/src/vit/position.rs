//! The position table on another patch grid: one matrix per axis for each of the four rules in use.

use candle_core::Tensor;

use super::PositionRule;
use crate::{Error, Result};

/// Weights of the one-dimensional interpolation from `source` to `target` samples, `[target, source]` row-major.
///
/// The resize is separable: a table on a grid is resized by this matrix along its rows and along its columns. Sources:
/// PyTorch `aten/src/ATen/native/UpSample.h`; DINOv2 `interpolate_pos_encoding` for the 0.1 in the scale.
/// Every row sums to one. Empty if either size is 0.
pub fn resize_matrix(source: usize, target: usize, rule: PositionRule) -> Vec<f32> {
    if source == 0 {
        return Vec::new();
    }
    let weights: Vec<f64> = match rule {
        PositionRule::Official => bicubic(source, target, source as f64 / (target as f64 + 0.1)),
        PositionRule::HuggingFace => bicubic(source, target, source as f64 / target as f64),
        PositionRule::Registers => antialiased(source, target, 2., |x| cubic(x, -0.5)),
        PositionRule::Bilinear => antialiased(source, target, 1., |x| (1. - x.abs()).max(0.)),
    };
    weights.into_iter().map(|weight| weight as f32).collect()
}

/// The cubic convolution kernel with parameter `a`, at distance `x`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1. {
        ((a + 2.) * x - (a + 3.)) * x * x + 1.
    } else if x < 2. {
        (((x - 5.) * x + 8.) * x - 4.) * a
    } else {
        0.
    }
}

/// Four taps around `step (i + 0.5) - 0.5`, A = -0.75; taps beyond an edge fall on the edge.
fn bicubic(source: usize, target: usize, step: f64) -> Vec<f64> {
    let mut weights = vec![0.; target * source];
    for (i, row) in weights.chunks_exact_mut(source).enumerate() {
        let at = step * (i as f64 + 0.5) - 0.5;
        for tap in -1..=2 {
            let index = at.floor() + f64::from(tap);
            let edge = index.clamp(0., (source - 1) as f64) as usize;
            row[edge] += cubic(at - index, -0.75);
        }
    }
    weights
}

/// A kernel that reaches `reach` samples each way, widened by the reduction; the window is cut at the edges and its weights
/// brought to sum to one.
fn antialiased(source: usize, target: usize, reach: f64, kernel: impl Fn(f64) -> f64) -> Vec<f64> {
    let step = source as f64 / target as f64;
    let widening = step.max(1.);
    let support = reach * widening;
    let mut weights = vec![0.; target * source];
    for (i, row) in weights.chunks_exact_mut(source).enumerate() {
        let centre = step * (i as f64 + 0.5);
        let start = (centre - support + 0.5).max(0.) as usize;
        let end = ((centre + support + 0.5) as usize).min(source);
        for (j, weight) in row.iter_mut().enumerate().take(end).skip(start) {
            *weight = kernel((j as f64 - centre + 0.5) / widening);
        }
        let total: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= total);
    }
    weights
}

/// The position table `[1, 1 + M M, D]` for a grid of `rows` x `columns`: `[1, 1 + rows columns, D]`, f32, differentiable.
///
/// The entry of the class token is never interpolated. The table itself is returned for its own grid, which is the square
/// one of as many patches (DINOv2 `interpolate_pos_encoding`).
///
/// # Errors
/// A table of another shape, or an empty grid.
pub fn interpolate_table(table: &Tensor, rule: PositionRule, rows: usize, columns: usize) -> Result<Tensor> {
    let wrong = || wrong_table(table, "1 + M * M");
    let &[1, entries, _] = table.dims() else {
        return Err(wrong());
    };
    let patches = entries.saturating_sub(1);
    let side = side_of(patches).ok_or_else(wrong)?;
    if rows == side && columns == side {
        return Ok(table.clone());
    }
    let grid = interpolate_grid(&table.narrow(1, 1, patches)?, rule, rows, columns)?;
    Ok(Tensor::cat(&[&table.narrow(1, 0, 1)?, &grid], 1)?)
}

/// The positions of patches alone, `[1, M M, D]`, for a grid of `rows` x `columns`: `[1, rows columns, D]`, f32, differentiable.
///
/// # Errors
/// As [`interpolate_table`].
pub fn interpolate_grid(table: &Tensor, rule: PositionRule, rows: usize, columns: usize) -> Result<Tensor> {
    let wrong = || wrong_table(table, "M * M");
    let &[1, patches, _] = table.dims() else {
        return Err(wrong());
    };
    let side = side_of(patches).ok_or_else(wrong)?;
    if rows == 0 || columns == 0 {
        let found = format!("expected at least one patch each way, found {rows} x {columns}");
        return Err(Error::config("grid", found));
    }
    if rows == side && columns == side {
        return Ok(table.clone());
    }
    let matrix = |target: usize| resize_matrix(side, target, rule);
    resize_grid(table, [matrix(rows), matrix(columns)], [rows, columns])
}

fn wrong_table(table: &Tensor, rows: &str) -> Error {
    let found = format!("found {:?}", table.dims());
    Error::config("pos_embed", format!("expected [1, {rows}, width], {found}"))
}

/// The side of a square of so many patches, at least one.
fn side_of(patches: usize) -> Option<usize> {
    let side = patches.isqrt();
    (side > 0 && side * side == patches).then_some(side)
}

/// A square grid `[1, M M, D]` through the matrices `[n, M]` of its two axes: `[1, rows columns, D]`.
pub(super) fn resize_grid(
    grid: &Tensor,
    matrices: [Vec<f32>; 2],
    [rows, columns]: [usize; 2],
) -> Result<Tensor> {
    let (_, patches, width) = grid.dims3()?;
    let side = patches.isqrt();
    let [of_rows, of_columns] = matrices;
    let matrix = |values: Vec<f32>, target: usize| {
        Tensor::from_vec(values, (target, side), grid.device())?.to_dtype(grid.dtype())
    };
    let grid = grid.contiguous()?.reshape((side, side * width))?; // [M, M D]
    let grid = matrix(of_rows, rows)?
        .matmul(&grid)? // [rows, M D]
        .reshape((rows, side, width))?
        .transpose(0, 1)?
        .reshape((side, rows * width))?; // [M, rows D]
    Ok(matrix(of_columns, columns)?
        .matmul(&grid)? // [columns, rows D]
        .reshape((columns, rows, width))?
        .transpose(0, 1)?
        .reshape((1, rows * columns, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random, values};
    use candle_core::{Device, Var};

    const RULES: [PositionRule; 4] = [
        PositionRule::Official,
        PositionRule::HuggingFace,
        PositionRule::Registers,
        PositionRule::Bilinear,
    ];

    fn resized(source: usize, target: usize, rule: PositionRule) -> Vec<f64> {
        resize_matrix(source, target, rule)
            .chunks(source)
            .map(|row| {
                row.iter()
                    .enumerate()
                    .map(|(i, w)| f64::from(*w) * (0.3 * i as f64).sin())
                    .sum()
            })
            .collect()
    }

    #[test]
    fn rules_give_the_reference_values() {
        let expected = [
            [0.166989, 0.769477, -0.959904, -0.398053, -0.902534],
            [0.169263, 0.774965, -0.948269, -0.469491, -0.932679],
            [0.213551, 0.762819, -0.940796, -0.471709, -0.908031],
        ];
        for (rule, expected) in RULES.into_iter().zip(expected) {
            let all = resized(37, 16, rule);
            let found = [0, 1, 7, 14, 15].map(|i| all[i]);
            assert_close(&format!("{rule:?}"), &found, &expected, 1.5e-6);
        }
        let local = [
            0.160008, 0.753728, 1.001048, 0.798038, 0.256973, -0.404439, -0.899698,
        ];
        assert_close(
            "local crop",
            &resized(16, 7, PositionRule::Official),
            &local,
            1.5e-6,
        );
    }

    #[test]
    fn every_row_sums_to_one_at_any_sizes() {
        for rule in RULES {
            for (source, target) in [
                (1, 1),
                (1, 5),
                (5, 1),
                (2, 9),
                (16, 7),
                (7, 16),
                (37, 37),
                (3, 100),
            ] {
                let weights = resize_matrix(source, target, rule);
                assert_eq!(weights.len(), source * target);
                for row in weights.chunks(source) {
                    assert!(
                        (row.iter().sum::<f32>() - 1.).abs() < 1e-5,
                        "{rule:?} {source} to {target}: {row:?}"
                    );
                }
            }
            assert!(resize_matrix(0, 3, rule).is_empty());
            assert!(resize_matrix(3, 0, rule).is_empty());
        }
    }

    #[test]
    fn only_the_native_grid_returns_the_table() {
        let table = random(1, &[1, 17, 3]);
        for rule in RULES {
            let same = interpolate_table(&table, rule, 4, 4).unwrap();
            assert_eq!(values(&same), values(&table));
            for (rows, columns) in [(2, 8), (8, 2), (1, 16), (4, 5), (7, 7)] {
                let other = interpolate_table(&table, rule, rows, columns).unwrap();
                assert_eq!(other.dims(), [1, 1 + rows * columns, 3]);
                assert_eq!(
                    values(&other)[..3],
                    values(&table)[..3],
                    "the class token's entry"
                );
            }
        }
    }

    #[test]
    fn rows_and_columns_are_not_exchanged() {
        // A table that varies along the rows only stays so.
        let ramp: Vec<f32> = std::iter::once(0.)
            .chain((0..9).map(|i| (i / 3) as f32))
            .collect();
        let table = Tensor::from_vec(ramp, (1, 10, 1), &Device::Cpu).unwrap();
        let out = values(&interpolate_table(&table, PositionRule::HuggingFace, 5, 2).unwrap());
        for row in out[1..].chunks(2) {
            assert!((row[0] - row[1]).abs() < 1e-6, "{out:?}");
        }
        assert!(out[1] < 0.2 && out[9] > 1.8, "{out:?}");
    }

    #[test]
    fn gradients_reach_the_table() {
        let table = Var::from_tensor(&random(2, &[1, 10, 2])).unwrap();
        for rule in RULES {
            let out = interpolate_table(&table, rule, 2, 4).unwrap();
            let store = out.sum_all().unwrap().backward().unwrap();
            let grad = values(store.get(&table).unwrap());
            // The weights of every target sum to one, so the gradient of the sum has as many parts as there are targets.
            assert!(
                (grad.iter().sum::<f64>() - 18.).abs() < 1e-4,
                "{rule:?}: {grad:?}"
            );
            assert!(grad.iter().all(|value| value.abs() > 1e-3), "{rule:?}: {grad:?}");
        }
    }

    #[test]
    fn tables_that_are_no_square_are_refused() {
        for shape in [&[1, 16, 3][..], &[2, 17, 3], &[17, 3], &[1, 1, 3], &[1, 0, 3]] {
            let error = interpolate_table(&random(1, shape), PositionRule::Official, 2, 2).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("pos_embed: expected [1, 1 + M * M, width]"),
                "{error}"
            );
        }
        assert!(interpolate_table(&random(1, &[1, 5, 3]), PositionRule::Official, 0, 2).is_err());
        assert!(interpolate_grid(&random(1, &[1, 5, 3]), PositionRule::Official, 2, 2).is_err());
    }

    #[test]
    fn patches_are_resized_as_beside_a_class_token() {
        let table = random(1, &[1, 17, 3]);
        let patches = table.narrow(1, 1, 16).unwrap();
        for (rows, columns) in [(4, 4), (3, 6)] {
            let whole = interpolate_table(&table, PositionRule::Registers, rows, columns).unwrap();
            let grid = interpolate_grid(&patches, PositionRule::Registers, rows, columns).unwrap();
            assert_eq!(values(&whole)[3..], values(&grid));
        }
    }
}
