//! Distillation of relations: to which other images an image is similar, whatever the width of the features that say so
//! (Koohpayegani et al. 2020, CompRess, with a queue for each network; Fang et al. 2021, SEED).

use candle_core::{DType, Result, Tensor, bail};

use super::{distillation_kl_loss, expect_matrix, expect_temperature, matrix};

/// Similarity that stands for "not compared": beyond every temperature a probability of 0.
const APART: f64 = -1e4;

/// One network's view of a batch and of the images it is compared to, all L2-normalised.
#[derive(Debug, Clone, Copy)]
pub struct Relations<'a> {
    /// The batch [B, D].
    pub queries: &'a Tensor,
    /// The images it is compared to [N, D]: the batch itself, older images, and those of other ranks.
    pub keys: &'a Tensor,
}

/// Mean over the batch of `sum_n p_n (log p_n - log q_n)`, where p and q are the softmax of the similarities over the
/// temperature, of the teacher and of the student, without each image's similarity to itself. D may differ between the
/// two, N and B may not. `own` says which of the keys each query is itself, the same of both. Only the student's queries get a
/// gradient.
///
/// # Errors
/// Shapes that do not fit, fewer than two keys, a query that is not among them, a temperature that is not above 0.
pub fn relational_loss(
    student: &Relations<'_>,
    teacher: &Relations<'_>,
    own: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    const WHAT: &str = "relational";
    expect_temperature(WHAT, temperature)?;
    let (batch, _) = matrix("relational student", student.queries)?;
    let (keys, _) = matrix("relational student keys", student.keys)?;
    if keys < 2 || keys < batch {
        bail!("{WHAT}: expected at least {} keys, found {keys}", batch.max(2));
    }
    if own.len() != batch || own.iter().any(|&key| key as usize >= keys) {
        bail!("{WHAT}: expected the places of {batch} queries among {keys} keys, found {own:?}");
    }
    let device = student.queries.device();
    let places = Tensor::arange(0u32, keys as u32, device)?.unsqueeze(0)?; // [1, N]
    let own = places.broadcast_eq(&Tensor::new(own, device)?.unsqueeze(1)?)?; // [B, N]
    let own = (own.to_dtype(DType::F32)? * APART)?;
    let similarities = |network: &Relations<'_>| {
        let (_, width) = network.queries.dims2()?;
        expect_matrix("relational keys", network.keys, keys, width)?;
        expect_matrix("relational queries", network.queries, batch, width)?;
        network.queries.matmul(&network.keys.detach().t()?)? + &own
    };
    let divergence = distillation_kl_loss(&similarities(student)?, &similarities(teacher)?, temperature)?;
    // The other loss is scaled for logits that grow with the temperature; similarities do not.
    divergence * (1. / (temperature * temperature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::losses::KeyQueue;
    use crate::train::testing::{assert_scalar, scalar, values};
    use candle_core::{Device, Var};

    fn directions(rows: usize, width: usize, seed: u64) -> Tensor {
        let mut rng = crate::rng::stream(seed, "relations", 0);
        KeyQueue::random(rows, width, &mut rng, &Device::Cpu)
            .unwrap()
            .keys()
            .clone()
    }

    /// Where the queries are the first keys.
    fn loss(student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor)) -> Tensor {
        let relations = |(queries, keys)| Relations { queries, keys };
        let own: Vec<u32> = (0..student.0.dim(0).unwrap() as u32).collect();
        relational_loss(&relations(student), &relations(teacher), &own, 0.1).unwrap()
    }

    /// The slow way, in f64.
    fn expected(student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor)) -> f64 {
        let probabilities = |(queries, keys): (&Tensor, &Tensor)| -> Vec<Vec<f64>> {
            let rows = |tensor: &Tensor| -> Vec<Vec<f32>> { tensor.to_vec2().unwrap() };
            let (queries, keys) = (rows(queries), rows(keys));
            let row = |(b, query): (usize, &Vec<f32>)| {
                let exps: Vec<f64> = keys
                    .iter()
                    .enumerate()
                    .map(|(n, key)| {
                        let cosine: f64 = query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum();
                        if n == b { 0. } else { (cosine / 0.1).exp() }
                    })
                    .collect();
                let sum: f64 = exps.iter().sum();
                exps.into_iter().map(|exp| exp / sum).collect()
            };
            queries.iter().enumerate().map(row).collect()
        };
        let (p, q) = (probabilities(teacher), probabilities(student));
        let terms = p.iter().flatten().zip(q.iter().flatten());
        let sum: f64 = terms
            .filter(|(p, _)| **p > 0.)
            .map(|(p, q)| p * (p / q).ln())
            .sum();
        sum / p.len() as f64
    }

    #[test]
    fn the_value_is_that_of_the_definition_and_widths_may_differ() {
        let (student, teacher) = (directions(9, 4, 1), directions(9, 7, 2));
        let batch = |keys: &Tensor| keys.narrow(0, 0, 3).unwrap();
        let (student, teacher) = ((&batch(&student), &student), (&batch(&teacher), &teacher));
        assert_scalar("loss", &loss(student, teacher), expected(student, teacher), 1e-4);
    }

    #[test]
    fn queries_may_be_anywhere_among_the_keys() {
        let (student, teacher) = (directions(9, 4, 1), directions(9, 7, 2));
        let whole = scalar(&loss((&student, &student), (&teacher, &teacher)));
        let part = |places: [u32; 3]| {
            let at = Tensor::new(&places, &Device::Cpu).unwrap();
            let chosen = [&student, &teacher].map(|keys| keys.index_select(&at, 0).unwrap());
            let relations = |queries, keys| Relations { queries, keys };
            let (student, teacher) = (relations(&chosen[0], &student), relations(&chosen[1], &teacher));
            scalar(&relational_loss(&student, &teacher, &places, 0.1).unwrap())
        };
        let parts = part([0, 3, 6]) + part([7, 1, 4]) + part([2, 5, 8]);
        assert!(
            (parts / 3. - whole).abs() < 1e-5 * whole,
            "{parts} / 3, expected {whole}"
        );
    }

    #[test]
    fn the_same_relations_cost_nothing_and_only_queries_learn() {
        let keys = directions(9, 4, 1);
        let queries = Var::from_tensor(&keys.narrow(0, 0, 3).unwrap().copy().unwrap()).unwrap();
        let same = loss((&queries, &keys), (&queries.detach(), &keys));
        assert!(scalar(&same).abs() < 1e-6, "{same}");
        let (tracked, teacher) = (Var::from_tensor(&keys).unwrap(), directions(9, 5, 3));
        let store = loss(
            (&queries, &tracked),
            (&teacher.narrow(0, 0, 3).unwrap(), &teacher),
        )
        .backward()
        .unwrap();
        assert!(store.get(&tracked).is_none());
        assert!(
            values(store.get(&queries).unwrap())
                .iter()
                .any(|value| value.abs() > 1e-3)
        );
    }

    #[test]
    fn too_few_keys_are_an_error() {
        let one = directions(1, 4, 1);
        let relations = Relations {
            queries: &one,
            keys: &one,
        };
        let error = relational_loss(&relations, &relations, &[0], 0.1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("relational: expected at least 2 keys, found 1"),
            "{error}"
        );
        let two = directions(2, 4, 1);
        let relations = Relations {
            queries: &two,
            keys: &two,
        };
        let error = relational_loss(&relations, &relations, &[0, 2], 0.1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("among 2 keys, found [0, 2]"), "{error}");
    }
}
