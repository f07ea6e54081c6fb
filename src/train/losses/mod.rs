//! The terms of the objective, one file each, as functions of tensors that candle differentiates. Each takes logits or
//! features of the student, and of the teacher only what carries no gradient; each returns a scalar, unweighted unless it
//! says otherwise. Everything is computed in f32. `targets` holds how the teacher's logits become distributions.
//!
//! Rows of crops are crop-major throughout: row `crop * B + sample`.

mod dino_cls;
mod distillation_kl;
mod feature_distance;
mod hog;
mod ibot_patch;
mod info_nce;
mod key_queue;
mod koleo;
mod patch_similarity;
mod reconstruction;
mod relational;
pub mod targets;
mod words;

use candle_core::{D, DType, Result, Tensor, bail};
use macula_models::ops;

pub use dino_cls::dino_cls_loss;
#[cfg(test)]
pub(crate) use dino_cls::{dino_global_sum, dino_local_sum};
pub use distillation_kl::distillation_kl_loss;
pub use feature_distance::{FeatureLoss, feature_distance};
pub use hog::{hog_size, hog_targets};
pub use ibot_patch::ibot_patch_loss;
pub use info_nce::{info_nce_in_batch_loss, info_nce_loss};
pub use key_queue::KeyQueue;
pub use koleo::koleo_loss;
pub use patch_similarity::{PatchSimilarity, patch_similarity_loss};
pub use reconstruction::{reconstruction_loss, reconstruction_side, reduced};
pub use relational::{Relations, relational_loss};
pub use words::{Vocabulary, words_size};

/// `log softmax(logits / temperature)` over the last dimension: [.., K] to [.., K], f32.
///
/// The row maximum is a constant here: it cancels in the gradient, so walking back through it would be work for nothing.
fn log_softmax(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let scaled = (logits.to_dtype(DType::F32)? * (1. / temperature))?;
    let shifted = scaled.broadcast_sub(&scaled.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}

/// A student's logits for prototypes, [M, K].
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// As they are.
    Given(&'a Tensor),
    /// The products of points of a head's bottleneck [M, D] with its prototypes [K, D], which then are never a tensor of the
    /// graph.
    Product {
        /// Points, [M, D].
        points: &'a Tensor,
        /// Prototypes, [K, D].
        prototypes: &'a Tensor,
        /// What the product is computed in ([`ops::product_cross_entropy`]).
        compute: DType,
    },
}

impl<'a> From<&'a Tensor> for Logits<'a> {
    fn from(logits: &'a Tensor) -> Self {
        Self::Given(logits)
    }
}

impl Logits<'_> {
    /// Fails with `what` unless they are a matrix.
    fn size(&self, what: &str) -> Result<(usize, usize)> {
        match self {
            Self::Given(logits) => matrix(what, logits),
            Self::Product {
                points, prototypes, ..
            } => Ok((matrix(what, points)?.0, matrix(what, prototypes)?.0)),
        }
    }

    /// Fails unless they are a matrix of `rows` x `columns`.
    fn expect_size(&self, what: &str, rows: usize, columns: usize) -> Result<()> {
        let found = self.size(what)?;
        if found != (rows, columns) {
            bail!(
                "{what}: expected shape [{rows}, {columns}], found {:?}",
                [found.0, found.1]
            );
        }
        Ok(())
    }

    /// [`ops::soft_cross_entropy`] of whatever float type: [M], f32.
    fn cross_entropy(
        &self,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
    ) -> Result<Tensor> {
        let targets = targets.detach().to_dtype(DType::F32)?;
        match self {
            Self::Given(logits) => {
                ops::soft_cross_entropy(&logits.to_dtype(DType::F32)?, &targets, target_rows, temperature)
            }
            &Self::Product {
                points,
                prototypes,
                compute,
            } => ops::product_cross_entropy(points, prototypes, &targets, target_rows, temperature, compute),
        }
    }
}

/// Rows and columns of a matrix called `what`.
fn matrix(what: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.dims() {
        &[rows, columns] => Ok((rows, columns)),
        shape => bail!("{what}: expected a matrix, found shape {shape:?}"),
    }
}

/// Fails unless `tensor` is a matrix of `rows` x `columns`.
fn expect_matrix(what: &str, tensor: &Tensor, rows: usize, columns: usize) -> Result<()> {
    if tensor.dims() != [rows, columns] {
        bail!(
            "{what}: expected shape [{rows}, {columns}], found {:?}",
            tensor.dims()
        );
    }
    Ok(())
}

/// Fails unless `temperature` is a positive finite number.
fn expect_temperature(what: &str, temperature: f64) -> Result<()> {
    if !(temperature.is_finite() && temperature > 0.) {
        bail!("{what}: expected a temperature above 0, found {temperature}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, values};
    use candle_core::{Device, Var};

    #[test]
    fn log_softmax_survives_large_logits_and_has_the_right_gradient() {
        let logits = Var::new(&[[1000f32, 999., -1000.], [0., 0., 0.]], &Device::Cpu).unwrap();
        let found = log_softmax(&logits, 0.5).unwrap();
        let low = -(1f64 + (-2f64).exp()).ln();
        let third = -(3f64.ln());
        for (a, b) in values(&found)
            .iter()
            .zip([low, low - 2., low - 4000., third, third, third])
        {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "found {a}, expected {b}");
        }
        // d log p_0 / dz = (one_hot(0) - p) / T
        let store = found
            .narrow(1, 0, 1)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let p = low.exp();
        let expected = [(1. - p) * 2., (p - 1.) * 2., 0., 4. / 3., -2. / 3., -2. / 3.];
        let expected = Tensor::from_slice(&expected, (2, 3), &Device::Cpu).unwrap();
        assert_close("gradient", store.get(&logits).unwrap(), &expected, 1e-6);
    }
}
