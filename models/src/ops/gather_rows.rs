//! Chosen rows of a tensor, so that what follows runs on those alone.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{ROWS_PER_TASK, f32_slice, rows_and_width, stored, with_f32};
use super::vectors::filled;

const NAME: &str = "gather-rows";

/// The named rows of `x` [.., D], counted over all dimensions before the last: [rows, D]; f32.
///
/// Differentiable: the gradient of a row that is named more than once is the sum, of one that is not named 0.
///
/// # Errors
/// A row that is not there, a type other than f32, a device without this operation.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (available, _) = rows_and_width(NAME, x.shape())?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= available) {
        bail!("{NAME}: expected rows below {available}, found {row}")
    }
    backend(x.device()).gather_rows(x, rows)
}

/// [`gather_rows`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.contiguous()?.apply_op1(GatherRows { rows: rows.to_vec() })
}

struct GatherRows {
    rows: Vec<u32>,
}

/// For every one of `available` rows, where its takers start in the second list (one entry more than rows).
pub(super) fn takers(rows: &[u32], available: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0; available + 1];
    for &row in rows {
        starts[row as usize + 1] += 1;
    }
    for row in 0..available {
        starts[row + 1] += starts[row];
    }
    let (mut next, mut takers) = (starts.clone(), vec![0; rows.len()]);
    for (taker, &row) in (0..).zip(rows) {
        takers[next[row as usize] as usize] = taker;
        next[row as usize] += 1;
    }
    (starts, takers)
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = rows_and_width(NAME, layout.shape())?;
        let x = f32_slice(NAME, storage, layout)?;
        let out = filled(
            self.rows.len() * width,
            width * ROWS_PER_TASK,
            #[inline(always)]
            |task, out| {
                let rows = &self.rows[task * ROWS_PER_TASK..];
                for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
                    out.copy_from_slice(&x[row as usize * width..][..width]);
                }
            },
        );
        Ok(stored(out, (self.rows.len(), width)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (available, width) = rows_and_width(NAME, x.shape())?;
        let (starts, takers) = takers(&self.rows, available);
        let dx = with_f32(NAME, [&grad.contiguous()?], |[grad]| {
            filled(
                available * width,
                width * ROWS_PER_TASK,
                #[inline(always)]
                |task, out: &mut [f32]| {
                    let bounds = starts[task * ROWS_PER_TASK..].windows(2);
                    for (out, bounds) in out.chunks_exact_mut(width).zip(bounds) {
                        for &taker in &takers[bounds[0] as usize..bounds[1] as usize] {
                            for (out, grad) in out.iter_mut().zip(&grad[taker as usize * width..][..width]) {
                                *out += grad;
                            }
                        }
                    }
                },
            )
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, on_threads, random, values};
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn agrees_with_index_select() {
        for (shape, rows) in [
            (&[1, 3][..], vec![0]),
            (&[2, 3, 5], vec![5, 0, 2]),
            (&[40, 2], vec![39, 7, 7, 0, 39, 39]),
            (&[3, 4], vec![]),
        ] {
            let width = *shape.last().unwrap();
            let index = Tensor::from_vec(rows.clone(), rows.len(), &Device::Cpu).unwrap();
            if rows.is_empty() {
                assert_eq!(gather_rows(&random(1, shape), &rows).unwrap().dims(), [0, width]);
                continue;
            }
            check(&[random(1, shape)], &|x| gather_rows(&x[0], &rows), &|x| {
                x[0].reshape(((), width))?.index_select(&index, 0)
            });
        }
    }

    #[test]
    fn threads_change_nothing() {
        let rows: Vec<u32> = (0..200).map(|i| i * 37 % 90).collect();
        let run = || {
            let x = Var::from_tensor(&random(1, &[90, 5])).unwrap();
            let loss = (gather_rows(&x, &rows).unwrap() * random(2, &[200, 5])).unwrap();
            let grads = loss.sum_all().unwrap().backward().unwrap();
            values(grads.get(&x).unwrap())
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let error = gather_rows(&random(1, &[2, 3, 4]), &[5, 6])
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected rows below 6, found 6"), "{error}");
    }
}
