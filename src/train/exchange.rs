//! What a step sends to the other ranks: the terms of its loss, which weights have a gradient, and the gradients. (Targets send their
//! sums themselves: `losses/targets.rs`.) All ranks get the same and so decide alike: about a loss that is not finite, about the norm
//! that gradients are clipped by, about a weight that no image of the step has moved.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::cluster::{Ranks, Reduction};
use crate::{Error, Result};

/// Values that are reduced at once, 25 MiB: enough to be worth the call, few enough that no second copy of all gradients exists.
const BUCKET: usize = 25 << 18;

/// Terms of a loss by name, weighted, and what of the step's images they are of.
#[derive(Debug, Default)]
pub(super) struct Terms {
    values: BTreeMap<String, f64>,
}

impl Terms {
    /// Adds `share` of a micro-batch's term.
    pub(super) fn add(&mut self, name: &str, value: f64, share: f64) {
        *self.values.entry(name.to_owned()).or_default() += value * share;
    }
}

/// What all ranks have seen of a step.
#[derive(Debug)]
pub(super) struct Seen {
    /// The mean over ranks of each term that any of them has.
    pub(super) terms: BTreeMap<String, f64>,
    /// For every trained weight, whether it has a gradient on any rank.
    pub(super) has_gradient: Vec<bool>,
}

/// Tells the others which terms this rank has and which of its weights have a gradient, and learns theirs.
///
/// # Errors
/// Ranks that cannot reach each other, or have another number of weights.
pub(super) fn compare(ranks: &dyn Ranks, terms: &Terms, has_gradient: &[bool]) -> Result<Seen> {
    let own = serde_json::to_vec(&Message::new(terms, has_gradient))
        .map_err(|error| Error::failed("ranks", error.to_string()))?;
    let mut seen = Seen {
        terms: BTreeMap::new(),
        has_gradient: vec![false; has_gradient.len()],
    };
    for (rank, bytes) in ranks.gather_bytes(&own)?.iter().enumerate() {
        let message: Message = serde_json::from_slice(bytes)
            .map_err(|error| Error::failed(format!("rank {rank}"), error.to_string()))?;
        for (name, bits) in message.terms {
            *seen.terms.entry(name).or_default() += f64::from_bits(bits) / ranks.size() as f64;
        }
        if message.has_gradient.len() != has_gradient.len() {
            let (expected, found) = (has_gradient.len(), message.has_gradient.len());
            let reason = format!("expected {expected} trained weights, found {found}");
            return Err(Error::failed(format!("rank {rank}"), reason));
        }
        for (any, has) in seen.has_gradient.iter_mut().zip(message.has_gradient) {
            *any |= has;
        }
    }
    Ok(seen)
}

/// Terms go as bits: JSON has no NaN.
#[derive(serde::Serialize, serde::Deserialize)]
struct Message {
    terms: BTreeMap<String, u64>,
    has_gradient: Vec<bool>,
}

impl Message {
    fn new(terms: &Terms, has_gradient: &[bool]) -> Self {
        let bits = |(name, value): (&String, &f64)| (name.clone(), value.to_bits());
        Self {
            terms: terms.values.iter().map(bits).collect(),
            has_gradient: has_gradient.to_vec(),
        }
    }
}

/// Puts the mean over ranks in the place of each of the gradients of `weights`, all of which have one on some rank; where there is
/// none here it counts as zeros. Every rank has the same weights in the same order, and so the same buckets.
///
/// # Errors
/// Ranks that cannot reach each other, failures of candle.
pub(super) fn average(ranks: &dyn Ranks, weights: &[&Var], gradients: &mut GradStore) -> Result<()> {
    let mut bucket = Vec::new();
    let mut in_bucket: Vec<&Var> = Vec::new();
    for (place, &weight) in weights.iter().enumerate() {
        let count = weight.elem_count();
        match gradients.remove(weight) {
            Some(gradient) => {
                let flat = gradient.to_dtype(DType::F32)?.flatten_all()?;
                bucket.extend(flat.to_vec1::<f32>()?);
            }
            None => bucket.resize(bucket.len() + count, 0.),
        }
        in_bucket.push(weight);
        if bucket.len() >= BUCKET || place + 1 == weights.len() {
            ranks.reduce_f32(&mut bucket, Reduction::Sum)?;
            put_back(&bucket, &in_bucket, 1. / ranks.size() as f32, gradients)?;
            bucket.clear();
            in_bucket.clear();
        }
    }
    Ok(())
}

/// Takes `bucket` apart into gradients of `weights`, each value times `scale`.
fn put_back(bucket: &[f32], weights: &[&Var], scale: f32, gradients: &mut GradStore) -> Result<()> {
    let mut rest = bucket;
    for weight in weights {
        let (own, after) = rest.split_at(weight.elem_count());
        let values: Vec<f32> = own.iter().map(|value| value * scale).collect();
        let gradient = Tensor::from_vec(values, weight.shape(), weight.device())?;
        gradients.insert(weight, gradient);
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod steps;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::cluster::threads::{Network, on_ranks};
    use crate::train::testing::values;

    #[test]
    fn gradients_are_averaged_and_zero_where_there_are_none() {
        let found = on_ranks(3, Network::default(), |ranks| {
            let var = |size: usize| Var::zeros(size, DType::F32, &Device::Cpu).unwrap();
            let (everywhere, on_one) = (var(3), var(2));
            let own = ranks.rank() as f64 + 1.;
            let mut loss = (everywhere.as_tensor() * own).unwrap().sum_all().unwrap();
            if ranks.rank() == 1 {
                loss = (loss + (on_one.as_tensor() * 6.).unwrap().sum_all().unwrap()).unwrap();
            }
            let mut gradients = loss.backward().unwrap();
            average(ranks.as_ref(), &[&everywhere, &on_one], &mut gradients).unwrap();
            [&everywhere, &on_one].map(|var| values(gradients.get(var).unwrap()))
        });
        for gradients in found {
            assert_eq!(gradients, [vec![2.; 3], vec![2.; 2]]);
        }
    }

    #[test]
    fn terms_of_some_ranks_are_known_to_all() {
        let found = on_ranks(2, Network::default(), |ranks| {
            let mut terms = Terms::default();
            terms.add("dino", 4. * (ranks.rank() + 1) as f64, 0.5);
            if ranks.rank() == 1 {
                terms.add("ibot", f64::NAN, 1.);
            }
            let own = [ranks.rank() == 0, false, ranks.rank() == 1];
            let seen = compare(ranks.as_ref(), &terms, &own).unwrap();
            (seen.terms["dino"], seen.terms["ibot"].is_nan(), seen.has_gradient)
        });
        for found in found {
            assert_eq!(found, (3., true, vec![true, false, true]));
        }
    }
}
