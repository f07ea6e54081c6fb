//! The contrastive term: each query against its own key and a queue of older keys (van den Oord et al. 2018; He et al.
//! 2020, algorithm 1; facebookresearch/moco `moco/builder.py`).

use candle_core::{D, DType, Result, Tensor};
use macula_models::ops;
use macula_models::ops::cuda::upload;

use super::{Logits, expect_matrix, expect_temperature, matrix};

/// Mean over the batch of `-log(exp(q.k / T) / (exp(q.k / T) + sum_j exp(q.n_j / T)))`.
///
/// `queries` [B, D] and their `keys` [B, D] are L2-normalised by the caller, as are the negatives `queue` [N, D], which must
/// not hold this batch's keys yet. Only the queries get a gradient. While all similarities are alike the loss is
/// `ln(1 + N)`. [`super::KeyQueue`] keeps the negatives.
///
/// # Errors
/// Shapes that do not fit, a temperature that is not above 0.
pub fn info_nce_loss(queries: &Tensor, keys: &Tensor, queue: &Tensor, temperature: f64) -> Result<Tensor> {
    let (batch, width) = matrix("info_nce queries", queries)?;
    let (negatives, _) = matrix("info_nce queue", queue)?;
    expect_matrix("info_nce keys", keys, batch, width)?;
    expect_matrix("info_nce queue", queue, negatives, width)?;
    expect_temperature("info_nce", temperature)?;
    let queries = queries.to_dtype(DType::F32)?;
    let [keys, queue] = [keys, queue].map(|tensor| tensor.detach().to_dtype(DType::F32));
    let positive = (&queries * keys?)?.sum_keepdim(D::Minus1)?; // [B, 1]
    let against = ops::linear(&queries, &queue?, None, DType::F32)?; // [B, N]
    let logits = Tensor::cat(&[positive, against], 1)?; // [B, 1 + N]
    // The target of every row is its own key, in the first column.
    let mut own = vec![0f32; 1 + negatives];
    own[0] = 1.;
    let own = upload(&own, (1, 1 + negatives), queries.device())?;
    Logits::Given(&logits)
        .cross_entropy(&own, Some(&vec![0; batch]), temperature)?
        .mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};

    #[test]
    fn golden_value() {
        let golden = fixture("losses.safetensors");
        let loss = info_nce_loss(&golden["moco_q"], &golden["moco_k"], &golden["moco_queue"], 0.07).unwrap();
        assert_scalar("loss", &loss, scalar(&golden["moco_loss_t007"]), 1e-5);
    }

    /// A query e1, its key at cosine 0.8 and negatives at 0.1, -0.2, 0.3.
    fn known() -> [Tensor; 3] {
        let unit = |cosine: f32| [cosine, (1. - cosine * cosine).sqrt()];
        let device = &Device::Cpu;
        [
            Tensor::new(&[unit(1.)], device).unwrap(),
            Tensor::new(&[unit(0.8)], device).unwrap(),
            Tensor::new(&[unit(0.1), unit(-0.2), unit(0.3)], device).unwrap(),
        ]
    }

    #[test]
    fn known_values() {
        let [query, key, queue] = known();
        let cold = info_nce_loss(&query, &key, &queue, 0.07).unwrap();
        assert_scalar("T 0.07", &cold, 8.36165e-4, 1e-4);
        let warm = info_nce_loss(&query, &key, &queue, 0.2).unwrap();
        assert_scalar("T 0.2", &warm, 0.1124536, 1e-5);
        let alike = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let queue = Tensor::ones((9, 2), DType::F32, &Device::Cpu).unwrap();
        let loss = info_nce_loss(&alike, &alike, &queue, 0.2).unwrap();
        assert_scalar("alike", &loss, 10f64.ln(), 1e-6);
    }

    #[test]
    fn gradient_reaches_the_queries_alone() {
        let [query, key, queue] = known().map(|tensor| Var::from_tensor(&tensor).unwrap());
        let store = info_nce_loss(&query, &key, &queue, 0.2)
            .unwrap()
            .backward()
            .unwrap();
        assert!(store.get(&key).is_none() && store.get(&queue).is_none());
        // d loss / dq = (sum_j p_j n_j - (1 - p_0) k) / T with p = softmax(similarities / T)
        let similarity = [0.8f64, 0.1, -0.2, 0.3];
        let exps = similarity.map(|s| (s / 0.2).exp());
        let total: f64 = exps.iter().sum();
        let mut expected = [0.; 2];
        for (j, (s, e)) in similarity.iter().zip(exps).enumerate() {
            let weight = (e / total - if j == 0 { 1. } else { 0. }) / 0.2;
            expected[0] += weight * s;
            expected[1] += weight * (1. - s * s).sqrt();
        }
        let expected = Tensor::new(&[expected], &Device::Cpu).unwrap();
        assert_close("gradient", store.get(&query).unwrap(), &expected, 1e-5);
    }

    #[test]
    fn widths_must_agree() {
        let make = |columns| Tensor::ones((2, columns), DType::F32, &Device::Cpu).unwrap();
        let error = info_nce_loss(&make(3), &make(3), &make(4), 0.1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("info_nce queue: expected shape [2, 3], found [2, 4]"),
            "{error}"
        );
        let error = info_nce_loss(&make(3), &make(4), &make(3), 0.1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("info_nce keys: expected shape [2, 3], found [2, 4]"),
            "{error}"
        );
    }
}
