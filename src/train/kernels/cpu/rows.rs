//! Sweeps over the rows of a matrix of logits, parallel over fixed groups of rows: what the teacher's targets are made of.

use macula_models::ops::vectors::{beside, exp, filled_with, max, wide};
use rayon::prelude::*;

/// Rows of a group, whose column sums are added up before those of other groups: fixed, so that results do not depend on the
/// number of threads.
const ROWS: usize = 16;

/// Elements whose sum is kept in f32 before it is added up in f64.
const BLOCK: usize = 1024;

/// `softmax((logits - centre) inverse)` of every row, and the sums of the logits' columns.
pub(super) fn softmax(logits: &[f32], centre: &[f32], inverse: f32) -> (Vec<f32>, Vec<f32>) {
    let width = centre.len();
    let (targets, partials) = filled_with(
        logits.len(),
        ROWS * width,
        #[inline(always)]
        |group, out| {
            let logits = beside(logits, group, ROWS * width, out.len());
            let mut sums = vec![0.; width];
            for (out, row) in out.chunks_exact_mut(width).zip(logits.chunks_exact(width)) {
                for ((out, sum), (z, c)) in out.iter_mut().zip(&mut sums).zip(row.iter().zip(centre)) {
                    *sum += z;
                    *out = (z - c) * inverse;
                }
                let largest = max(out);
                for value in out.iter_mut() {
                    *value = exp(*value - largest);
                }
                let scale = 1. / sum(out);
                for value in out.iter_mut() {
                    *value *= scale;
                }
            }
            sums
        },
    );
    (targets, added(width, &partials))
}

/// `exp((logits - row maximum) inverse)`, and the row maxima.
pub(super) fn exponentials(logits: &[f32], width: usize, inverse: f32) -> (Vec<f32>, Vec<f32>) {
    let (values, maxima) = filled_with(
        logits.len(),
        width,
        #[inline(always)]
        |row, out| {
            let logits = beside(logits, row, width, out.len());
            let largest = max(logits);
            for (out, z) in out.iter_mut().zip(logits) {
                *out = exp((z - largest) * inverse);
            }
            largest
        },
    );
    (values, maxima)
}

/// The sums of the columns of `matrix`, each row weighted by `weight(its number, itself)`.
pub(super) fn weighted_sums(
    matrix: &[f32],
    width: usize,
    weight: impl Fn(usize, &[f32]) -> f32 + Sync,
) -> Vec<f32> {
    let partials: Vec<Vec<f32>> = matrix
        .par_chunks(ROWS * width.max(1))
        .enumerate()
        .map(|(group, rows)| {
            let mut sums = vec![0.; width];
            for (row, values) in rows.chunks_exact(width).enumerate() {
                let weight = weight(group * ROWS + row, values);
                wide(
                    #[inline(always)]
                    || {
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum += weight * value;
                        }
                    },
                );
            }
            sums
        })
        .collect();
    added(width, &partials)
}

/// `diag(of_row) matrix diag(of_column)` in place; without `of_row` every row is brought to the sum 1.
pub(super) fn scale(matrix: &mut [f32], of_column: &[f32], of_row: Option<&[f32]>) {
    let width = of_column.len();
    matrix
        .par_chunks_exact_mut(width.max(1))
        .enumerate()
        .for_each(|(row, values)| {
            let of_row = of_row.map_or_else(|| 1. / dot(values, of_column), |of_row| of_row[row]);
            wide(
                #[inline(always)]
                || {
                    for (value, of_column) in values.iter_mut().zip(of_column) {
                        *value *= of_column * of_row;
                    }
                },
            );
        });
}

/// The inner product of two rows.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
    let of_block = |(a, b): (&[f32], &[f32])| {
        wide(
            #[inline(always)]
            || f64::from(macula_models::ops::vectors::dot(a, b)),
        )
    };
    blocks.map(of_block).sum::<f64>() as f32
}

/// The sum of a row.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let of_block = |block| f64::from(macula_models::ops::vectors::sum(block));
    values.chunks(BLOCK).map(of_block).sum::<f64>() as f32
}

/// The sum of `partials`, `width` values each, in their order.
fn added(width: usize, partials: &[Vec<f32>]) -> Vec<f32> {
    let mut total = vec![0.; width];
    for partial in partials {
        for (sum, value) in total.iter_mut().zip(partial) {
            *sum += value;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 37 rows of 21 values.
    fn matrix() -> Vec<f32> {
        (0..37 * 21).map(|i| (i as f32 * 0.73).sin() * 3.).collect()
    }

    #[test]
    fn every_sweep_follows_its_formula_on_any_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (centre, of_row) = (vec![0.5; 21], (0..37).map(|i| i as f32).collect::<Vec<_>>());
                let (targets, sums) = softmax(&matrix(), &centre, 2.);
                let (exps, maxima) = exponentials(&matrix(), 21, 2.);
                let weighted = weighted_sums(&matrix(), 21, |row, values| of_row[row] + values[0]);
                let (mut scaled, mut normalised) = (matrix(), exps.clone());
                scale(&mut scaled, &centre, Some(&of_row));
                scale(&mut normalised, &[1.; 21], None);
                [targets, sums, exps, maxima, weighted, scaled, normalised]
            })
        };
        let [targets, sums, exps, maxima, weighted, scaled, normalised] = run(1);
        for column in 0..21 {
            let mut expected = [0f64; 2];
            for row in 0..37 {
                let at = |column| f64::from(matrix()[row * 21 + column]);
                let total: f64 = (0..21).map(|column| (2. * at(column)).exp()).sum();
                let p = (2. * at(column)).exp() / total;
                let close = |found: f32, expected: f64| {
                    (f64::from(found) - expected).abs() < 1e-5 * expected.abs().max(1.)
                };
                assert!(close(targets[row * 21 + column], p) && close(normalised[row * 21 + column], p));
                let largest = (0..21).map(at).fold(f64::MIN, f64::max);
                assert!(close(maxima[row], largest));
                assert!(close(
                    exps[row * 21 + column],
                    (2. * (at(column) - largest)).exp()
                ));
                assert!(close(scaled[row * 21 + column], at(column) * 0.5 * row as f64));
                expected[0] += at(column);
                expected[1] += at(column) * (row as f64 + at(0));
            }
            assert!((f64::from(sums[column]) - expected[0]).abs() < 1e-4);
            assert!((f64::from(weighted[column]) - expected[1]).abs() < 2e-3);
        }
        assert_eq!(run(1), run(3));
    }
}
