//! The contrastive term: each query against its own key and a queue of older keys (van den Oord et al. 2018; He et al.
//! 2020, algorithm 1; facebookresearch/moco `moco/builder.py`), or against the keys of its batch (Chen, Xie and He 2021;
//! facebookresearch/moco-v3 `moco/builder.py`).

use candle_core::{D, DType, Result, Tensor, bail};
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

/// The same against the other keys of the batch: mean of `-log(exp(q_i.k_i / T) / sum_j exp(q_i.k_j / T))`.
///
/// `queries` [B, D] are L2-normalised, as are `keys` [N, D], those of all ranks: query `i` belongs to key `first + i`. Only the
/// queries get a gradient. While all similarities are alike the loss is `ln N`.
///
/// # Errors
/// Shapes that do not fit, fewer keys than queries from `first` on, a temperature that is not above 0.
pub fn info_nce_in_batch_loss(
    queries: &Tensor,
    keys: &Tensor,
    first: usize,
    temperature: f64,
) -> Result<Tensor> {
    let (batch, width) = matrix("info_nce queries", queries)?;
    let (count, _) = matrix("info_nce keys", keys)?;
    expect_matrix("info_nce keys", keys, count, width)?;
    expect_temperature("info_nce", temperature)?;
    if first + batch > count {
        bail!(
            "info_nce keys: expected at least {} rows, found {count}",
            first + batch
        );
    }
    let queries = queries.to_dtype(DType::F32)?;
    let keys = keys.detach().to_dtype(DType::F32)?;
    let logits = ops::linear(&queries, &keys, None, DType::F32)?; // [B, N]
    let mut own = vec![0f32; batch * count];
    (0..batch).for_each(|row| own[row * count + first + row] = 1.);
    let own = upload(&own, (batch, count), queries.device())?;
    Logits::Given(&logits)
        .cross_entropy(&own, None, temperature)?
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
    fn in_a_batch_each_query_has_the_other_keys_against_it() {
        let [query, key, queue] = known();
        // The three negatives, and the own key between them.
        let keys = Tensor::cat(
            &[
                &queue.narrow(0, 0, 1).unwrap(),
                &key,
                &queue.narrow(0, 1, 2).unwrap(),
            ],
            0,
        )
        .unwrap();
        let query = Var::from_tensor(&query).unwrap();
        let found = info_nce_in_batch_loss(&query, &keys, 1, 0.2).unwrap();
        let expected = info_nce_loss(&query, &key, &queue, 0.2).unwrap();
        assert_scalar("own key second", &found, scalar(&expected), 1e-6);
        let slope = |loss: &Tensor| loss.backward().unwrap().get(&query).unwrap().clone();
        assert_close("gradient", &slope(&found), &slope(&expected), 1e-5);
        // A batch of two, each with the other's key.
        let both = Tensor::cat(&[query.as_tensor(), &queue.narrow(0, 0, 1).unwrap()], 0).unwrap();
        let alike = info_nce_in_batch_loss(&both, &Tensor::ones_like(&both).unwrap(), 0, 0.2).unwrap();
        assert_scalar("alike", &alike, 2f64.ln(), 1e-6);
        let error = info_nce_in_batch_loss(&both, &both, 1, 0.2)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("info_nce keys: expected at least 3 rows, found 2"),
            "{error}"
        );
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
