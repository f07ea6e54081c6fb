//! How the teacher's logits become target distributions: softmax with a moving centre (Caron et al. 2021, section 3.1) or
//! Sinkhorn-Knopp (Caron et al. 2020, section 3; facebookresearch/dinov2 `loss/dino_clstoken_loss.py`,
//! `loss/ibot_patch_loss.py`). Targets carry no gradient. Class tokens and patches each have a centre of their own.

use candle_core::{DType, Device, Result, Tensor, bail};
use macula_models::ops::OpCase;

use super::{expect_matrix, expect_temperature, matrix};
use crate::cluster::{OneRank, Ranks};
use crate::train::kernels::kernels;

/// Iterations of Sinkhorn-Knopp in the reference.
pub const SINKHORN_ITERATIONS: usize = 3;

/// `softmax((logits - centre) / temperature)` with a centre that follows the mean of all teacher logits.
///
/// The mean of a call is kept aside and moves the centre at the next one, so that a batch is never centred by itself.
#[derive(Debug, Clone)]
pub struct SoftmaxCentering {
    centre: Tensor,       // [1, K]
    mean: Option<Tensor>, // [1, K], of the last call
    momentum: f64,
}

impl SoftmaxCentering {
    /// Starts from `centre` [1, K]: zeros for a new run, [`Self::centre`] of a saved one. `momentum` is the part of the
    /// centre that stays at each update, 0.9 in the reference.
    ///
    /// # Errors
    /// A centre of another shape, a momentum outside 0 to 1.
    pub fn new(centre: &Tensor, momentum: f64) -> Result<Self> {
        let (_, prototypes) = matrix("centre", centre)?;
        expect_matrix("centre", centre, 1, prototypes)?;
        if !(0. ..=1.).contains(&momentum) {
            bail!("centre momentum: expected a number from 0 to 1, found {momentum}");
        }
        Ok(Self {
            centre: centre.detach().to_dtype(DType::F32)?,
            mean: None,
            momentum,
        })
    }

    /// The part of the centre that stays at each update.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// The centre [1, K] that the next call uses; what a checkpoint keeps.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn centre(&self) -> Result<Tensor> {
        match &self.mean {
            Some(mean) => (&self.centre * self.momentum)? + (mean * (1. - self.momentum))?,
            None => Ok(self.centre.clone()),
        }
    }

    /// Targets [M, K] of teacher logits [M, K]. M may be 0 and may differ between processes; a call without any row on any
    /// process leaves the centre where it is.
    ///
    /// # Errors
    /// Another number of prototypes, a temperature that is not above 0, processes that cannot reach each other.
    pub fn targets(&mut self, logits: &Tensor, temperature: f64, ranks: &dyn Ranks) -> Result<Tensor> {
        let (rows, _) = matrix("teacher logits", logits)?;
        expect_matrix("teacher logits", logits, rows, self.centre.dim(1)?)?;
        expect_temperature("teacher logits", temperature)?;
        let logits = logits.detach().to_dtype(DType::F32)?.contiguous()?;
        self.centre = self.centre()?;
        let inverse = (1. / temperature) as f32;
        let centre = self.centre.contiguous()?;
        let (targets, sums) = kernels(logits.device()).centred_softmax(&logits, &centre, inverse)?;
        self.mean = mean_over_ranks(&sums, rows, ranks)?;
        Ok(targets)
    }
}

/// The mean row [1, K] over all processes, whose rows add up to `sums` [1, K] here; None where there is no row.
fn mean_over_ranks(sums: &Tensor, rows: usize, ranks: &dyn Ranks) -> Result<Option<Tensor>> {
    let sum = ranks.sum(sums)?;
    let count = ranks.sum(&Tensor::new(&[rows as f64], &Device::Cpu)?)?;
    let count = count.to_vec1::<f64>()?[0];
    if count == 0. {
        return Ok(None);
    }
    Ok(Some((sum / count)?))
}

/// Targets [M, K] of teacher logits [M, K] by `iterations` (3 in the reference) of Sinkhorn-Knopp over the rows of all
/// processes: each iteration gives every prototype the same total weight, then every row the sum 1. Rows end normalised,
/// prototypes about equally used.
///
/// M may be 0 and may differ between processes. Finite logits give finite targets, however far apart they are.
///
/// # Errors
/// Not a matrix, a temperature that is not above 0, processes that cannot reach each other.
pub fn sinkhorn_knopp(
    logits: &Tensor,
    temperature: f64,
    iterations: usize,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    matrix("teacher logits", logits)?;
    expect_temperature("teacher logits", temperature)?;
    let logits = logits.detach().to_dtype(DType::F32)?.contiguous()?;
    let inverse = (1. / temperature) as f32;
    kernels(logits.device()).sinkhorn_knopp(&logits, inverse, iterations, ranks)
}

/// The targets as cases of `macula bench ops`.
pub fn target_cases() -> [OpCase; 2] {
    let (rows, prototypes, temperature) = (400, 1024, 0.07);
    let shapes: &[&[usize]] = &[&[rows, prototypes]];
    [
        OpCase::new(
            format!("sinkhorn_knopp [{rows}, {prototypes}]"),
            shapes,
            move |x, _| sinkhorn_knopp(&x[0], temperature, SINKHORN_ITERATIONS, &OneRank),
        ),
        OpCase::new(
            format!("softmax_centering [{rows}, {prototypes}]"),
            shapes,
            move |x, _| {
                let zeros = Tensor::zeros((1, prototypes), DType::F32, x[0].device())?;
                let mut centering = SoftmaxCentering::new(&zeros, 0.9)?;
                centering.targets(&x[0], temperature, &OneRank)?;
                centering.targets(&x[0], temperature, &OneRank)
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::losses::{dino_global_sum, dino_local_sum};
    use crate::train::testing::{assert_close, assert_scalar, fixture, on_processes, values};

    fn sinkhorn(logits: &Tensor, temperature: f64) -> Tensor {
        sinkhorn_knopp(logits, temperature, SINKHORN_ITERATIONS, &OneRank).unwrap()
    }

    #[test]
    fn golden_sinkhorn() {
        let golden = fixture("losses.safetensors");
        for (logits, targets) in [
            ("teacher_logits", "sinkhorn"),
            ("patch_teacher", "patch_sinkhorn"),
        ] {
            assert_close(targets, &sinkhorn(&golden[logits], 0.06), &golden[targets], 1e-5);
        }
    }

    #[test]
    fn golden_centering_is_lazy() {
        let golden = fixture("losses.safetensors");
        let zeros = Tensor::zeros((1, 40), DType::F32, &Device::Cpu).unwrap();
        let mut centering = SoftmaxCentering::new(&zeros, 0.9).unwrap();
        let logits = &golden["teacher_logits"];
        let first = centering.targets(logits, 0.06, &OneRank).unwrap();
        assert_close("first", &first, &golden["softmax_center_first"], 1e-5);
        let saved = centering.centre().unwrap();
        assert_close("centre", &saved, &golden["center_after_one"], 1e-5);
        let second = centering.targets(logits, 0.06, &OneRank).unwrap();
        assert_close("second", &second, &golden["softmax_center_second"], 1e-5);
        // A run resumed from the saved centre goes on alike, bit for bit.
        let mut resumed = SoftmaxCentering::new(&saved, 0.9).unwrap();
        let again = resumed.targets(logits, 0.06, &OneRank).unwrap();
        assert_eq!(values(&again), values(&second));
        assert_eq!(
            values(&resumed.centre().unwrap()),
            values(&centering.centre().unwrap())
        );
    }

    fn small() -> Tensor {
        let logits = [
            [0.9f32, 0.1, -0.3],
            [0.2, 0.8, 0.],
            [0.5, 0.45, 0.4],
            [-0.2, 0.3, 0.1],
        ];
        Tensor::new(&logits, &Device::Cpu).unwrap()
    }

    #[test]
    fn known_sinkhorn() {
        let targets = values(&sinkhorn(&small(), 0.07));
        let warm = [0.999949, 0.000039, 0.000012, 0.011724, 0.020564, 0.967711];
        for (a, b) in targets[..3].iter().chain(&targets[6..9]).zip(warm) {
            assert!((a - b).abs() < 1e-6, "found {a}, expected {b}");
        }
        let cold = values(&sinkhorn(&small(), 0.04));
        for (a, b) in cold[9..].iter().zip([0., 0.02549, 0.97451]) {
            assert!((a - b).abs() < 1e-5, "found {a}, expected {b}");
        }
    }

    #[test]
    fn known_cross_entropy_of_sinkhorn_targets() {
        // Both "views" hold the same two images' rows exchanged, so that the global term pairs each row with its own target.
        let targets = sinkhorn(&small(), 0.07);
        let student = [
            [0.5f32, 0.1, 0.],
            [0.1, 0.6, 0.2],
            [0.3, 0.2, 0.1],
            [0., 0.2, 0.1],
        ];
        let student = Tensor::new(&student, &Device::Cpu).unwrap();
        let halves = [student.narrow(0, 2, 2).unwrap(), student.narrow(0, 0, 2).unwrap()];
        let exchanged = Tensor::cat(&halves, 0).unwrap();
        let loss = dino_global_sum(&exchanged, &targets, 0.1).unwrap();
        assert_scalar("mean cross-entropy", &loss, 0.918008, 1e-5);
        // Against itself as a local crop, each crop meets both targets.
        let own = dino_global_sum(&student, &targets, 0.1).unwrap();
        let both = dino_local_sum(&student, &targets, 0.1).unwrap();
        let expected = 2. * (values(&loss)[0] + values(&own)[0]);
        assert_scalar("all four pairs", &both, expected, 1e-5);
    }

    #[test]
    fn logits_far_apart_stay_finite() {
        let logits = Tensor::new(
            &[[50f32, 49.9, -50.], [-90., -90.1, -95.], [0., 8., -200.]],
            &Device::Cpu,
        )
        .unwrap();
        let targets = sinkhorn(&logits, 0.04);
        for row in values(&targets).chunks(3) {
            let sum: f64 = row.iter().sum();
            assert!((sum - 1.).abs() < 1e-5, "{row:?}");
        }
        let mut centering =
            SoftmaxCentering::new(&Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap(), 0.9).unwrap();
        let soft = centering.targets(&logits, 0.04, &OneRank).unwrap();
        assert!(values(&soft).iter().all(|p| p.is_finite()));
    }

    /// Rows of [`small`] as processes that hold one, none and three of them.
    fn spread() -> Vec<Tensor> {
        let rows = [(0, 1), (1, 0), (1, 3)];
        rows.map(|(start, count)| small().narrow(0, start, count).unwrap())
            .to_vec()
    }

    #[test]
    fn sinkhorn_runs_over_the_rows_of_all_processes() {
        for (temperature, iterations) in [(0.07, 1), (0.07, 3), (0.04, 3)] {
            let parts = on_processes(&spread(), |rows, ranks| {
                sinkhorn_knopp(rows, temperature, iterations, ranks).unwrap()
            });
            assert_eq!(parts[1].dims(), [0, 3]);
            let found = Tensor::cat(&[&parts[0], &parts[2]], 0).unwrap();
            let alone = sinkhorn_knopp(&small(), temperature, iterations, &OneRank).unwrap();
            assert_close("targets", &found, &alone, 1e-6);
        }
    }

    #[test]
    fn the_centre_is_the_mean_over_the_rows_of_all_processes() {
        let zeros = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let centres = on_processes(&spread(), |rows, ranks| {
            let mut centering = SoftmaxCentering::new(&zeros, 0.9).unwrap();
            let targets = centering.targets(rows, 0.1, ranks).unwrap();
            assert_eq!(targets.dims(), rows.dims());
            centering.centre().unwrap()
        });
        let expected = (small().mean_keepdim(0).unwrap() * 0.1).unwrap();
        for centre in centres {
            assert_close("centre", &centre, &expected, 1e-6);
        }
    }

    #[test]
    fn without_any_row_the_centre_stays() {
        let start = Tensor::new(&[[0.2f32, 0.1]], &Device::Cpu).unwrap();
        let mut centering = SoftmaxCentering::new(&start, 0.9).unwrap();
        let none = Tensor::zeros((0, 2), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(centering.targets(&none, 0.1, &OneRank).unwrap().dims(), [0, 2]);
        assert_eq!(values(&centering.centre().unwrap()), values(&start));
    }

    /// Against the reference's steps on the whole matrix, in double precision; without any, the exponentials as they are.
    #[test]
    fn few_iterations_are_those_of_the_whole_matrix() {
        let exp: Vec<f64> = values(&small())
            .iter()
            .map(|logit| ((logit - 0.9) / 0.07).exp())
            .collect();
        let of = |iterations| values(&sinkhorn_knopp(&small(), 0.07, iterations, &OneRank).unwrap());
        for (found, expected) in of(0).iter().zip(&exp) {
            assert!((found - expected).abs() < 1e-6, "none: {found} {expected}");
        }
        let mut expected = exp;
        for iterations in [1, 2] {
            for prototype in 0..3 {
                let sum: f64 = expected.iter().skip(prototype).step_by(3).sum();
                let column = expected.iter_mut().skip(prototype).step_by(3);
                column.for_each(|value| *value /= sum);
            }
            for row in expected.chunks_exact_mut(3) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|value| *value /= sum);
            }
            for (found, expected) in of(iterations).iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{iterations}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_centre_is_one_row_and_its_momentum_a_share() {
        let zeros = |rows| Tensor::zeros((rows, 3), DType::F32, &Device::Cpu).unwrap();
        let message = |rows, momentum| {
            SoftmaxCentering::new(&zeros(rows), momentum)
                .unwrap_err()
                .to_string()
        };
        let two = message(2, 0.9);
        assert!(
            two.starts_with("centre: expected shape [1, 3], found [2, 3]"),
            "{two}"
        );
        for momentum in [-0.1, 1.1, f64::NAN] {
            let error = message(1, momentum);
            assert!(
                error.starts_with("centre momentum: expected a number from 0 to 1"),
                "{error}"
            );
        }
        for momentum in [0., 1.] {
            assert_eq!(
                SoftmaxCentering::new(&zeros(1), momentum).unwrap().momentum(),
                momentum
            );
        }
    }
}
