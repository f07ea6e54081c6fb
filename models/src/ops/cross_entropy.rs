//! Cross-entropy of logits with target distributions in one pass each way: no [M, K] tensor but the gradient is written.
//! And the same of logits that are a product, whose gradient takes the place of the logits: with 65,536 prototypes those are
//! the largest tensors of a step.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::backend::backend;
use super::cpu::{Matrix, f32_slice, stored, with_f32};
use super::precision::Precision;
use super::vectors::{LANES, exp, max, wide};

const NAME: &str = "soft-cross-entropy";
const PRODUCT_NAME: &str = "product-cross-entropy";

/// Elements whose sums are kept in f32 before they are added up in f64: prototypes may be 65,536.
const BLOCK: usize = 1024;

/// `-sum_k t_k log softmax(z / temperature)_k` for every row z of `logits` [M, K]: [M]; f32.
///
/// `targets` [T, K] get no gradient and need not sum to one: a sum of two distributions gives the sum of both terms.
/// `target_rows` names the row of `targets` for each of the M rows; without it they are row by row, T = M.
///
/// # Errors
/// Shapes that do not fit, a row of `targets` that is not there, a temperature that is not above 0, a type other than f32, a
/// device without this operation.
pub fn soft_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    check_targets(NAME, logits.dims2()?, targets, target_rows, temperature)?;
    backend(logits.device()).soft_cross_entropy(logits, targets, target_rows, temperature)
}

/// [`soft_cross_entropy`] by the kernels of this file.
pub(super) fn on_cpu(
    logits: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    let op = SoftCrossEntropy::new(target_rows, temperature);
    logits
        .contiguous()?
        .apply_op2(&targets.detach().contiguous()?, op)
}

/// [`soft_cross_entropy`] of the logits `points prototypes^T`: `points` [M, D], `prototypes` [K, D], result [M]; f32.
///
/// Differentiable in `points` and `prototypes`. On the CPU the factors of its products are rounded to `compute`, f32 or bf16;
/// elsewhere they are what the points are.
///
/// # Errors
/// As [`soft_cross_entropy`]; widths that differ.
pub fn product_cross_entropy(
    points: &Tensor,
    prototypes: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
    compute: DType,
) -> Result<Tensor> {
    let ((rows, width), (classes, found)) = (points.dims2()?, prototypes.dims2()?);
    if found != width {
        bail!(
            "{PRODUCT_NAME}: expected prototypes [K, {width}], found {:?}",
            prototypes.dims()
        )
    }
    check_targets(PRODUCT_NAME, (rows, classes), targets, target_rows, temperature)?;
    backend(points.device()).product_cross_entropy(
        points,
        prototypes,
        targets,
        target_rows,
        temperature,
        compute,
    )
}

/// [`product_cross_entropy`] by the kernels of this file.
pub(super) fn product_on_cpu(
    points: &Tensor,
    prototypes: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
    compute: DType,
) -> Result<Tensor> {
    let ((rows, width), classes) = (points.dims2()?, prototypes.dim(0)?);
    let op = ProductCrossEntropy {
        of_logits: SoftCrossEntropy::new(target_rows, temperature),
        precision: Precision::for_compute(PRODUCT_NAME, compute)?,
        size: [rows, classes, width],
        logits: (points.track_op() || prototypes.track_op()).then(Mutex::default),
    };
    points
        .contiguous()?
        .apply_op3(&prototypes.contiguous()?, &targets.detach().contiguous()?, op)
}

struct SoftCrossEntropy {
    target_rows: Option<Vec<u32>>,
    /// One over the temperature.
    inverse: f32,
    /// What the forward pass found out about each row.
    rows: OnceLock<Vec<Row>>,
}

/// What the backward pass needs of a row besides the row.
#[derive(Clone, Copy)]
struct Row {
    largest: f32,
    /// The sum of the targets over that of the exponentials.
    scale: f32,
    loss: f32,
}

/// Fails unless there are targets for logits of `rows` x `classes`, and the temperature is above 0.
fn check_targets(
    name: &str,
    (rows, classes): (usize, usize),
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<()> {
    let (available, found) = targets.dims2()?;
    if !(temperature.is_finite() && temperature > 0.) {
        bail!("{name}: expected a temperature above 0, found {temperature}")
    }
    if classes == 0 || found != classes || target_rows.is_none() && available != rows {
        bail!(
            "{name}: expected targets for logits {:?}, found {:?}",
            [rows, classes],
            targets.dims()
        )
    }
    if let Some(target_rows) = target_rows {
        if target_rows.len() != rows {
            bail!("{name}: expected {rows} target rows, found {}", target_rows.len())
        }
        if let Some(row) = target_rows.iter().find(|&&row| row as usize >= available) {
            bail!("{name}: expected target rows below {available}, found {row}")
        }
    }
    Ok(())
}

impl SoftCrossEntropy {
    /// With targets that have been checked.
    fn new(target_rows: Option<&[u32]>, temperature: f64) -> Self {
        Self {
            target_rows: target_rows.map(<[u32]>::to_vec),
            inverse: (1. / temperature) as f32,
            rows: OnceLock::new(),
        }
    }

    /// The loss of each row of `logits`.
    fn losses(&self, logits: &[f32], targets: &[f32], classes: usize) -> Vec<f32> {
        let found = self.rows.get_or_init(|| {
            let of_row = |(row, logits): (usize, &[f32])| {
                let targets = self.target(targets, row, classes);
                wide(
                    #[inline(always)]
                    || self.row(logits, targets),
                )
            };
            logits.par_chunks_exact(classes).enumerate().map(of_row).collect()
        });
        found.iter().map(|row| row.loss).collect()
    }

    /// `dz = g / T (softmax sum(t) - t)` in the place of the logits z.
    fn to_gradients(&self, logits: &mut [f32], targets: &[f32], grad: &[f32], classes: usize) {
        let rows = self.rows.get().map_or(&[][..], Vec::as_slice);
        let tasks = logits.par_chunks_exact_mut(classes).zip(rows).enumerate();
        tasks.for_each(|(row, (logits, &Row { largest, scale, .. }))| {
            let factor = grad[row] * self.inverse;
            let targets = self.target(targets, row, classes);
            wide(
                #[inline(always)]
                || {
                    for (z, t) in logits.iter_mut().zip(targets) {
                        *z = factor * (exp((*z - largest) * self.inverse) * scale - t);
                    }
                },
            );
        });
    }

    fn target<'a>(&self, targets: &'a [f32], row: usize, classes: usize) -> &'a [f32] {
        let row = self.target_rows.as_ref().map_or(row, |rows| rows[row] as usize);
        &targets[row * classes..(row + 1) * classes]
    }

    #[inline(always)]
    fn row(&self, logits: &[f32], targets: &[f32]) -> Row {
        let largest = max(logits);
        let (mut exps, mut weight, mut along) = (0f64, 0f64, 0f64);
        for (z, t) in logits.chunks(BLOCK).zip(targets.chunks(BLOCK)) {
            let sums = block_sums(z, t, largest, self.inverse);
            exps += f64::from(sums[0]);
            weight += f64::from(sums[1]);
            along += f64::from(sums[2]);
        }
        Row {
            largest,
            scale: (weight / exps) as f32,
            loss: (exps.ln() * weight - along) as f32,
        }
    }
}

/// The sums of `exp((z - largest) / T)`, of `t` and of `t (z - largest) / T`.
#[inline(always)]
fn block_sums(z: &[f32], t: &[f32], largest: f32, inverse: f32) -> [f32; 3] {
    let mut lanes = [[0f32; LANES]; 3];
    let (z_blocks, z_rest) = z.as_chunks::<LANES>();
    let (t_blocks, t_rest) = t.as_chunks::<LANES>();
    for (z, t) in z_blocks.iter().zip(t_blocks) {
        for lane in 0..LANES {
            add(&mut lanes, lane, (z[lane] - largest) * inverse, t[lane]);
        }
    }
    for (lane, (&z, &t)) in z_rest.iter().zip(t_rest).enumerate() {
        add(&mut lanes, lane, (z - largest) * inverse, t);
    }
    lanes.map(|lanes| lanes.iter().sum())
}

#[inline(always)]
fn add(sums: &mut [[f32; LANES]; 3], lane: usize, shifted: f32, target: f32) {
    sums[0][lane] += exp(shifted);
    sums[1][lane] += target;
    sums[2][lane] += target * shifted;
}

impl CustomOp2 for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, classes) = l1.shape().dims2()?;
        let (logits, targets) = (f32_slice(NAME, s1, l1)?, f32_slice(NAME, s2, l2)?);
        Ok(stored(self.losses(logits, targets, classes), rows))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, classes) = logits.dims2()?;
        let inputs = [logits, targets, &grad.contiguous()?];
        let dz = with_f32(NAME, inputs, |[logits, targets, grad]| {
            let mut dz = logits.to_vec();
            self.to_gradients(&mut dz, targets, grad, classes);
            dz
        })?;
        Ok((Some(Tensor::from_vec(dz, logits.shape(), logits.device())?), None))
    }
}

struct ProductCrossEntropy {
    of_logits: SoftCrossEntropy,
    precision: Precision,
    /// M, K and D.
    size: [usize; 3],
    /// The logits [M, K] between the passes, if there will be a backward pass; the first one uses them up.
    logits: Option<Mutex<Option<Vec<f32>>>>,
}

impl ProductCrossEntropy {
    fn product(&self, points: &[f32], prototypes: &[f32]) -> Vec<f32> {
        let [.., width] = self.size;
        self.precision.product(
            self.size,
            Matrix::new(points, width),
            Matrix::new(prototypes, width).transposed(),
        )
    }

    fn kept(&self) -> Option<std::sync::MutexGuard<'_, Option<Vec<f32>>>> {
        let kept = self.logits.as_ref()?;
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CustomOp3 for ProductCrossEntropy {
    fn name(&self) -> &'static str {
        PRODUCT_NAME
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
        let [rows, classes, _] = self.size;
        let (points, prototypes) = (f32_slice(PRODUCT_NAME, s1, l1)?, f32_slice(PRODUCT_NAME, s2, l2)?);
        let targets = f32_slice(PRODUCT_NAME, s3, l3)?;
        let logits = self.product(points, prototypes);
        let losses = self.of_logits.losses(&logits, targets, classes);
        if let Some(mut kept) = self.kept() {
            *kept = Some(logits);
        }
        Ok(stored(losses, rows))
    }

    fn bwd(
        &self,
        points: &Tensor,
        prototypes: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [rows, classes, width] = self.size;
        let wanted = [points.track_op(), prototypes.track_op()];
        let inputs = [points, prototypes, targets, &grad.contiguous()?];
        let [dpoints, dprototypes] =
            with_f32(PRODUCT_NAME, inputs, |[points, prototypes, targets, grad]| {
                let kept = self.kept().and_then(|mut kept| kept.take());
                let mut dz = kept.unwrap_or_else(|| self.product(points, prototypes));
                self.of_logits.to_gradients(&mut dz, targets, grad, classes);
                let dz = Matrix::new(&dz, classes);
                let [points, prototypes] = [points, prototypes].map(|values| Matrix::new(values, width));
                [
                    wanted[0].then(|| self.precision.product([rows, width, classes], dz, prototypes)),
                    wanted[1].then(|| {
                        self.precision
                            .product([classes, width, rows], dz.transposed(), points)
                    }),
                ]
            })?;
        let tensor = |values: Option<Vec<f32>>, like: &Tensor| {
            values
                .map(|values| Tensor::from_vec(values, like.shape(), like.device()))
                .transpose()
        };
        Ok((tensor(dpoints, points)?, tensor(dprototypes, prototypes)?, None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, check_bf16, on_threads, random, values};
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn agrees_with_the_composition() {
        for (rows, classes) in [(1, 1), (1, 7), (3, 16), (5, 29), (2, BLOCK + 3)] {
            let targets = random(2, &[rows, classes]).abs().unwrap();
            for temperature in [1., 0.25] {
                check(
                    &[random(1, &[rows, classes])],
                    &|x| soft_cross_entropy(&x[0], &targets, None, temperature),
                    &|x| composed::soft_cross_entropy(&x[0], &targets, None, temperature),
                );
            }
        }
    }

    #[test]
    fn rows_share_targets() {
        let targets = random(2, &[3, 11]).abs().unwrap();
        let rows = [2, 0, 0, 1, 2];
        check(
            &[random(1, &[5, 11])],
            &|x| soft_cross_entropy(&x[0], &targets, Some(&rows), 0.5),
            &|x| composed::soft_cross_entropy(&x[0], &targets, Some(&rows), 0.5),
        );
    }

    #[test]
    fn products_in_bf16_follow_f32() {
        let targets = random(3, &[2, 40]).abs().unwrap();
        check_bf16(&[random(1, &[6, 70]), random(2, &[40, 70])], &|x, compute| {
            product_cross_entropy(&x[0], &x[1], &targets, Some(&[1, 0, 0, 1, 1, 0]), 20., compute)
        });
    }

    #[test]
    fn products_agree_with_the_composition_and_go_backwards_twice() {
        for (rows, classes, width) in [(1, 1, 1), (5, 7, 3), (3, 33, 2)] {
            let targets = random(3, &[2, classes]).abs().unwrap();
            let chosen: Vec<u32> = (0..rows as u32).map(|row| row % 2).collect();
            check(
                &[random(1, &[rows, width]), random(2, &[classes, width])],
                &|x| product_cross_entropy(&x[0], &x[1], &targets, Some(&chosen), 0.5, DType::F32),
                &|x| composed::product_cross_entropy(&x[0], &x[1], &targets, Some(&chosen), 0.5),
            );
        }
        let points = Var::from_tensor(&random(1, &[4, 3])).unwrap();
        let (prototypes, targets) = (random(2, &[6, 3]), random(3, &[4, 6]));
        let loss = product_cross_entropy(&points, &prototypes, &targets, None, 0.5, DType::F32).unwrap();
        let [first, second] = [(); 2].map(|()| {
            let grads = loss.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&prototypes).is_none());
            values(grads.get(&points).unwrap())
        });
        assert_eq!(first, second);
        let error = product_cross_entropy(&points, &random(2, &[6, 2]), &targets, None, 0.5, DType::F32);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("expected prototypes [K, 3], found [6, 2]"),
            "{error}"
        );
    }

    #[test]
    fn large_and_broken_logits() {
        let logits = Var::new(&[[1000f32, 999., -1000.], [f32::NAN, 0., 1.]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[0f32, 1., 0.]], &Device::Cpu).unwrap();
        let loss = soft_cross_entropy(&logits, &targets, Some(&[0, 0]), 0.5).unwrap();
        let found = values(&loss);
        assert!(
            (found[0] - (2. + (1f64 + (-2f64).exp()).ln())).abs() < 1e-6,
            "{found:?}"
        );
        assert!(found[1].is_nan());
        let grads = loss.sum_all().unwrap().backward().unwrap();
        let grad = values(grads.get(&logits).unwrap());
        assert!(grad[..3].iter().all(|value| value.is_finite()), "{grad:?}");
        assert!(grad[3..].iter().all(|value| value.is_nan()), "{grad:?}");
    }

    #[test]
    fn threads_change_nothing_and_targets_get_no_gradient() {
        let run = || {
            let logits = Var::from_tensor(&random(1, &[37, 300])).unwrap();
            let targets = Var::from_tensor(&random(2, &[37, 300])).unwrap();
            let loss = soft_cross_entropy(&logits, &targets, None, 0.1).unwrap();
            let grads = loss.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&targets).is_none());
            (values(&loss), values(grads.get(&logits).unwrap()))
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (logits, targets) = (random(1, &[3, 4]), random(2, &[2, 4]));
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        for (rows, temperature, expected) in [
            (None, 1., "expected targets for logits [3, 4], found [2, 4]"),
            (Some(&[0u32, 1][..]), 1., "expected 3 target rows, found 2"),
            (Some(&[0, 2, 1]), 1., "expected target rows below 2, found 2"),
            (Some(&[0, 1, 1]), 0., "expected a temperature above 0, found 0"),
        ] {
            let found = message(soft_cross_entropy(&logits, &targets, rows, temperature));
            assert!(found.contains(expected), "{found}");
        }
        let double = logits.to_dtype(DType::F64).unwrap();
        assert!(message(soft_cross_entropy(&double, &logits, None, 1.)).contains("expected f32"));
    }
}
