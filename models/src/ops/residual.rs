//! The end of a residual branch: LayerScale, stochastic depth's weights, and the sum with what bypassed the branch.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::cpu::{ROWS_PER_TASK, f32_slice, stored, sum_over_rows, with_f32};
use super::vectors::{beside, filled};

const NAME: &str = "residual-add";

/// Which samples of a batch a residual branch ran on, and the weight with which each is added back.
#[derive(Debug, Clone, PartialEq)]
pub struct BranchSamples {
    /// Indices into the batch, each at most once, in the order of the branch's own batch.
    pub kept: Vec<u32>,
    /// One factor for each of `kept`.
    pub factors: Vec<f32>,
}

/// `x + factor * gamma * y`, where sample `i` of `y` goes to sample `kept[i]` of `x`.
///
/// Shapes: `x` [B, .., D], `y` [S, .., D], `gamma` [D]; f32. Without `samples`, S = B and every factor is 1.
/// Differentiable in all three; samples of `x` that are not in `kept` pass unchanged.
///
/// # Errors
/// Shapes that do not fit, an index outside of the batch or named twice, a type other than f32, a device without this
/// operation.
pub fn residual_add(
    x: &Tensor,
    y: &Tensor,
    gamma: &Tensor,
    samples: Option<&BranchSamples>,
) -> Result<Tensor> {
    let &[batch, .., width] = x.dims() else {
        bail!("{NAME}: expected at least two dimensions, found {:?}", x.dims())
    };
    let branch = samples.map_or(batch, |samples| samples.kept.len());
    let fits = y.rank() == x.rank() && y.dims()[0] == branch && y.dims()[1..] == x.dims()[1..];
    if !fits || gamma.dims() != [width] {
        bail!(
            "{NAME}: expected a branch [{branch}, ..] beside {:?} and gamma [{width}], found {:?} and {:?}",
            x.dims(),
            y.dims(),
            gamma.dims()
        )
    }
    let op = ResidualAdd {
        sources: samples.map(|samples| sources(samples, batch)).transpose()?,
        width,
        rows_per_sample: x.elem_count() / (batch * width).max(1),
    };
    x.contiguous()?
        .apply_op3(&y.contiguous()?, &gamma.contiguous()?, op)
}

/// For every sample of the batch, the sample of the branch that is added to it and its factor.
fn sources(samples: &BranchSamples, batch: usize) -> Result<Vec<Option<(usize, f32)>>> {
    let BranchSamples { kept, factors } = samples;
    if kept.len() != factors.len() {
        bail!("{NAME}: expected {} factors, found {}", kept.len(), factors.len())
    }
    let mut sources = vec![None; batch];
    for (i, (&sample, &factor)) in kept.iter().zip(factors).enumerate() {
        match sources.get_mut(sample as usize) {
            Some(source @ None) => *source = Some((i, factor)),
            Some(Some(_)) => bail!("{NAME}: sample {sample} is named twice"),
            None => bail!("{NAME}: expected a sample below {batch}, found {sample}"),
        }
    }
    Ok(sources)
}

struct ResidualAdd {
    sources: Option<Vec<Option<(usize, f32)>>>,
    width: usize,
    rows_per_sample: usize,
}

impl ResidualAdd {
    /// The branch row added to row `row` of the batch, and its factor.
    #[inline(always)]
    fn source(&self, row: usize) -> Option<(usize, f32)> {
        let Some(sources) = &self.sources else {
            return Some((row, 1.));
        };
        let (sample, token) = (row / self.rows_per_sample, row % self.rows_per_sample);
        sources[sample].map(|(branch, factor)| (branch * self.rows_per_sample + token, factor))
    }

    fn forward(&self, x: &[f32], y: &[f32], gamma: &[f32]) -> Vec<f32> {
        let width = self.width;
        let chunk = width * ROWS_PER_TASK;
        filled(
            x.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let x = beside(x, task, chunk, out.len());
                for (i, (out, x)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    let Some((row, factor)) = self.source(task * ROWS_PER_TASK + i) else {
                        out.copy_from_slice(x);
                        continue;
                    };
                    let y = &y[row * width..(row + 1) * width];
                    for ((out, x), (y, gamma)) in out.iter_mut().zip(x).zip(y.iter().zip(gamma)) {
                        *out = x + factor * gamma * y;
                    }
                }
            },
        )
    }

    /// `dy = factor * gamma * g`, gathered from the rows the branch was added to.
    fn branch_gradient(&self, count: usize, gamma: &[f32], grad: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut targets = vec![(0, 0.); count / width];
        for row in 0..grad.len() / width {
            if let Some((branch, factor)) = self.source(row) {
                targets[branch] = (row, factor);
            }
        }
        filled(
            count,
            width * ROWS_PER_TASK,
            #[inline(always)]
            |task, out| {
                let targets = &targets[task * ROWS_PER_TASK..];
                for (out, &(row, factor)) in out.chunks_exact_mut(width).zip(targets) {
                    let grad = &grad[row * width..(row + 1) * width];
                    for (out, (grad, gamma)) in out.iter_mut().zip(grad.iter().zip(gamma)) {
                        *out = factor * gamma * grad;
                    }
                }
            },
        )
    }

    fn gamma_gradient(&self, y: &[f32], grad: &[f32]) -> Vec<f32> {
        let width = self.width;
        sum_over_rows(
            grad.len() / width,
            width,
            #[inline(always)]
            |rows, partial| {
                for row in rows {
                    let Some((branch, factor)) = self.source(row) else {
                        continue;
                    };
                    let y = &y[branch * width..(branch + 1) * width];
                    let grad = &grad[row * width..(row + 1) * width];
                    for (sum, (y, grad)) in partial.iter_mut().zip(y.iter().zip(grad)) {
                        *sum += factor * y * grad;
                    }
                }
            },
        )
    }
}

impl CustomOp3 for ResidualAdd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y, gamma) = (
            f32_slice(NAME, s1, l1)?,
            f32_slice(NAME, s2, l2)?,
            f32_slice(NAME, s3, l3)?,
        );
        Ok(stored(self.forward(x, y, gamma), l1.shape()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        y: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let wants_gamma = gamma.track_op();
        let (dy, dgamma) = with_f32(NAME, [y, gamma, &grad], |[y, gamma, grad]| {
            let dgamma = wants_gamma.then(|| self.gamma_gradient(y, grad));
            (self.branch_gradient(y.len(), gamma, grad), dgamma)
        })?;
        let dy = Tensor::from_vec(dy, y.shape(), y.device())?;
        let dgamma = dgamma.map(|values| Tensor::from_vec(values, gamma.shape(), gamma.device()));
        Ok((Some(grad), Some(dy), dgamma.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, random};
    use super::*;
    use candle_core::Device;

    #[test]
    fn agrees_with_the_composition() {
        for shape in [&[1, 1][..], &[2, 3, 5], &[3, 11, 4], &[5, 2]] {
            let inputs = [
                random(1, shape),
                random(2, shape),
                random(3, &[*shape.last().unwrap()]),
            ];
            check(&inputs, &|x| residual_add(&x[0], &x[1], &x[2], None), &|x| {
                &x[0] + x[1].broadcast_mul(&x[2])?
            });
        }
    }

    #[test]
    fn a_subset_agrees_with_gather_and_scatter() {
        let samples = BranchSamples {
            kept: vec![3, 0],
            factors: vec![2.5, 0.5],
        };
        let inputs = [random(1, &[4, 3, 5]), random(2, &[2, 3, 5]), random(3, &[5])];
        check(
            &inputs,
            &|x| residual_add(&x[0], &x[1], &x[2], Some(&samples)),
            &|x| {
                let factors = Tensor::new(&[2.5f64, 0.5], &Device::Cpu)?.reshape((2, 1, 1))?;
                let branch = x[1].broadcast_mul(&x[2])?.broadcast_mul(&factors)?;
                x[0].index_add(&Tensor::new(&[3u32, 0], &Device::Cpu)?, &branch, 0)
            },
        );
    }

    #[test]
    fn wrong_samples_are_refused() {
        let (x, gamma) = (random(1, &[3, 2]), random(3, &[2]));
        for (kept, message) in [
            (vec![0, 3], "expected a sample below 3"),
            (vec![1, 1], "named twice"),
        ] {
            let samples = BranchSamples {
                kept,
                factors: vec![1.; 2],
            };
            let error = residual_add(&x, &random(2, &[2, 2]), &gamma, Some(&samples))
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        }
        let error = residual_add(&x, &random(2, &[2, 2]), &gamma, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected a branch [3, ..]"), "{error}");
    }
}
