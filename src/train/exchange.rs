//! What a step sends to the other ranks: the terms of its loss, which weights have a gradient, and the gradients. (Targets send their
//! sums themselves: `losses/targets.rs`.) Gradients are sent after the backward pass, or those that it has first while it goes on, in
//! the numbers that the settings say (`wire`); they stay on GPUs where what connects the ranks does so, and ranks of one process lend
//! each other theirs. All ranks get the same and so decide alike: about a loss that is not finite, about the norm that gradients are
//! clipped by, about a weight that no image of the step has moved.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::Receiver;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId, Var};

use super::wire;
use crate::cluster::{PendingSum, Ranks};
use crate::device::Dtype;
use crate::{Error, Result};

/// Values that are reduced at once, 25 MiB: enough to be worth the call, few enough that no second copy of all gradients exists.
pub(super) const BUCKET: usize = 25 << 18;
/// As many where buckets are sent while the backward pass goes on, 4 MiB: the first is to leave early, and the last one is waited for.
const EARLY_BUCKET: usize = 1 << 20;

/// Buckets on a device that are on their way at once: while one is summed the next one is made.
const ON_THEIR_WAY: usize = 2;

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
pub(super) fn average(
    ranks: &dyn Ranks,
    wire: Dtype,
    weights: &[&Var],
    gradients: &mut GradStore,
) -> Result<()> {
    if weights
        .first()
        .is_some_and(|weight| ranks.sums_on(weight.device()))
    {
        return average_on_device(ranks, wire, weights, gradients);
    }
    if ranks.is_one_process() {
        let own = weights.iter().map(|&weight| gradients.remove(weight)).collect();
        let means = ranks.mean_in_memory(own)?;
        for (weight, mean) in weights.iter().zip(means) {
            gradients.insert(weight, mean);
        }
        return Ok(());
    }
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
            wire::sum(ranks, &mut bucket, wire)?;
            put_back(&bucket, &in_bucket, 1. / ranks.size() as f32, gradients)?;
            bucket.clear();
            in_bucket.clear();
        }
    }
    Ok(())
}

/// [`average`] without the host's memory: buckets are made, summed and taken apart on the device, in the order of `weights`.
fn average_on_device(
    ranks: &dyn Ranks,
    wire: Dtype,
    weights: &[&Var],
    gradients: &mut GradStore,
) -> Result<()> {
    let scale = 1. / ranks.size() as f64;
    let mut coming: VecDeque<(&[&Var], PendingSum)> = VecDeque::new();
    let mut rest = weights;
    while !rest.is_empty() || !coming.is_empty() {
        let (bucket, after) = rest.split_at(first_bucket(rest, BUCKET, |weight| weight.elem_count()));
        if !bucket.is_empty() {
            let values = on_device(bucket, wire.dtype(), gradients)?;
            coming.push_back((bucket, ranks.sum_aside(values)?));
        }
        rest = after;
        if coming.len() < ON_THEIR_WAY && !rest.is_empty() {
            continue;
        }
        if let Some((bucket, sum)) = coming.pop_front() {
            let mean = (sum.wait()?.to_dtype(DType::F32)? * scale)?;
            let mut start = 0;
            for weight in bucket {
                let own = mean.narrow(0, start, weight.elem_count())?;
                // In memory of its own, which kernels find aligned, and the bucket's is given back.
                gradients.insert(weight, own.force_contiguous()?.reshape(weight.shape())?);
                start += weight.elem_count();
            }
        }
    }
    Ok(())
}

/// The gradients of `bucket`, which leave `gradients`, one behind the other in `dtype` and in memory of their own; zeros where there is
/// none.
fn on_device(bucket: &[&Var], dtype: DType, gradients: &mut GradStore) -> Result<Tensor> {
    let part = |weight: &&Var| match gradients.remove(weight) {
        Some(gradient) => gradient.detach().flatten_all()?.to_dtype(dtype),
        None => Tensor::zeros(weight.elem_count(), dtype, weight.device()),
    };
    let parts: Vec<Tensor> = bucket.iter().map(part).collect::<candle_core::Result<_>>()?;
    let values = match parts.as_slice() {
        // It would be the gradient itself, whose memory another may share.
        [alone] => alone.force_contiguous()?,
        _ => Tensor::cat(&parts, 0)?,
    };
    Ok(values)
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

/// A weight and its gradient.
pub(super) type Gradient = (Tensor, Tensor);

/// Averages over ranks the gradients of `weights`, which come one after the other while the backward pass goes on, and gives those
/// that are not missing on all of them. `earlier` has those of the step's other micro-batches. Every rank has the same weights in the
/// same order: a bucket leaves once its gradients are here, or once it is known (by the end of what comes) that there are none.
///
/// For a thread of its own. It makes no parallel loop, whose threads the backward pass has.
///
/// # Errors
/// Ranks that cannot reach each other, failures of candle.
pub(super) fn average_early(
    ranks: &dyn Ranks,
    wire: Dtype,
    weights: &[Tensor],
    earlier: Option<&GradStore>,
    coming: &Receiver<Gradient>,
) -> Result<Vec<Gradient>> {
    let mut here: HashMap<TensorId, Tensor> = HashMap::new();
    let mut averaged = Vec::with_capacity(weights.len());
    let mut rest = weights;
    while !rest.is_empty() {
        let (bucket, after) = rest.split_at(first_bucket(rest, EARLY_BUCKET, Tensor::elem_count));
        while !bucket.iter().all(|weight| here.contains_key(&weight.id())) {
            let Ok((weight, gradient)) = coming.recv() else {
                break;
            };
            here.insert(weight.id(), gradient);
        }
        let mut values = Vec::new();
        let mut present = Vec::with_capacity(bucket.len());
        for weight in bucket {
            let parts = [
                earlier.and_then(|store| store.get(weight)),
                here.get(&weight.id()),
            ];
            present.push(f32::from(u8::from(parts.iter().any(Option::is_some))));
            push_sum(&mut values, weight.elem_count(), parts)?;
            here.remove(&weight.id());
        }
        values.extend(present);
        wire::sum(ranks, &mut values, wire)?;
        let present = values.split_off(values.len() - bucket.len());
        let scale = 1. / ranks.size() as f32;
        let mut own = values.as_slice();
        for (weight, ranks_with) in bucket.iter().zip(present) {
            let (values, others) = own.split_at(weight.elem_count());
            own = others;
            if ranks_with > 0. {
                let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
                let gradient = Tensor::from_vec(values, weight.shape(), weight.device())?;
                averaged.push((weight.clone(), gradient));
            }
        }
        rest = after;
    }
    Ok(averaged)
}

/// How many of `weights` go into the next bucket, which is full with so many values: at least one where there are any.
pub(super) fn first_bucket<W>(weights: &[W], full: usize, count_of: impl Fn(&W) -> usize) -> usize {
    let mut count = 0;
    let full = weights.iter().position(|weight| {
        count += count_of(weight);
        count >= full
    });
    full.map_or(weights.len(), |last| last + 1)
}

/// Adds `count` values to `values`: the sum of `parts`, each a gradient of as many.
fn push_sum(values: &mut Vec<f32>, count: usize, parts: [Option<&Tensor>; 2]) -> Result<()> {
    let start = values.len();
    for part in parts.into_iter().flatten() {
        let part = part.flatten_all()?.to_vec1::<f32>()?;
        if values.len() == start {
            values.extend(part);
        } else {
            let sums = values[start..].iter_mut().zip(part);
            sums.for_each(|(sum, value)| *sum += value);
        }
    }
    values.resize(start + count, 0.);
    Ok(())
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod steps;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cluster::Reduction;
    use crate::cluster::simulated::{Network, on_ranks};
    use crate::train::testing::values;

    /// Ranks that say of the processor what others say of their GPUs, and count what they sum there.
    struct OnDevice {
        ranks: Arc<dyn Ranks>,
        summed: AtomicUsize,
        /// What makes a sum that has not been waited for show.
        dtype: DType,
    }

    impl Ranks for OnDevice {
        fn rank(&self) -> usize {
            self.ranks.rank()
        }

        fn size(&self) -> usize {
            self.ranks.size()
        }

        fn reduce_f32(&self, _: &mut [f32], _: Reduction) -> Result<()> {
            Err(Error::failed("test", "by way of the host"))
        }

        fn reduce_f64(&self, _: &mut [f64], _: Reduction) -> Result<()> {
            Err(Error::failed("test", "by way of the host"))
        }

        fn gather_bytes(&self, _: &[u8]) -> Result<Vec<Vec<u8>>> {
            Err(Error::failed("test", "by way of the host"))
        }

        fn trade(&self, _: &[u8]) -> Result<Vec<u8>> {
            Err(Error::failed("test", "by way of the host"))
        }

        fn broadcast(&self, _: &mut Vec<u8>, _: usize) -> Result<()> {
            Err(Error::failed("test", "by way of the host"))
        }

        fn barrier(&self) -> Result<()> {
            self.ranks.barrier()
        }

        fn finish(&self) -> Result<()> {
            self.ranks.finish()
        }

        fn abort(&self, code: u8) {
            self.ranks.abort(code);
        }

        fn library(&self) -> String {
            self.ranks.library()
        }

        fn sums_on(&self, device: &Device) -> bool {
            device.is_cpu()
        }

        fn sum_aside(&self, values: Tensor) -> candle_core::Result<PendingSum> {
            assert_eq!(values.dtype(), self.dtype);
            assert!(values.is_contiguous());
            self.summed.fetch_add(1, Ordering::SeqCst);
            let sum = self
                .ranks
                .sum(&values.to_dtype(DType::F32)?)?
                .to_dtype(self.dtype)?;
            // In the memory of the values, as NCCL does, and no sooner than it is waited for.
            let place = values.clone();
            let arrive = move || place.slice_set(&sum, 0, 0);
            Ok(PendingSum::on_its_way(values, Box::new(arrive)))
        }
    }

    #[test]
    fn gradients_on_a_device_are_averaged_there_bucket_by_bucket() {
        for (wire, dtype) in [(Dtype::F32, DType::F32), (Dtype::Bf16, DType::BF16)] {
            let found = on_ranks(3, Network::default(), |ranks| {
                let ranks = OnDevice {
                    ranks,
                    summed: AtomicUsize::new(0),
                    dtype,
                };
                let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
                // Two in a bucket that they fill, one that fills one alone, two in the last; one is without gradient but on a rank.
                let shapes = [&[2, 3][..], &[BUCKET], &[BUCKET + 1], &[4], &[2, 2]];
                let vars = shapes.map(var);
                let own = ranks.rank() as f64 + 1.;
                let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
                for (place, var) in vars.iter().enumerate() {
                    if place == 3 && ranks.rank() != 1 {
                        continue;
                    }
                    let term = (var.as_tensor() * (own * (place + 1) as f64)).unwrap();
                    loss = (loss + term.sum_all().unwrap()).unwrap();
                }
                let mut gradients = loss.backward().unwrap();
                let weights: Vec<&Var> = vars.iter().collect();
                average(&ranks, wire, &weights, &mut gradients).unwrap();
                let first_and_shape = |(var, shape): (&Var, &[usize])| {
                    let gradient = gradients.get(var).unwrap();
                    assert_eq!(gradient.dims(), shape);
                    assert!(gradient.is_contiguous() && gradient.layout().start_offset() == 0);
                    let values = values(gradient);
                    assert!(values.iter().all(|value| *value == values[0]));
                    values[0]
                };
                let firsts: Vec<f64> = vars.iter().zip(shapes).map(first_and_shape).collect();
                (firsts, ranks.summed.into_inner())
            });
            for (firsts, summed) in found {
                let expected = [2., 4., 6., 8. / 3., 10.];
                let tolerance = if dtype == DType::BF16 { 0.02 } else { 1e-6 };
                for (found, expected) in firsts.iter().zip(expected) {
                    assert!((found - expected).abs() <= tolerance, "{firsts:?}");
                }
                assert_eq!(summed, 3);
            }
        }
    }

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
            average(
                ranks.as_ref(),
                Dtype::F32,
                &[&everywhere, &on_one],
                &mut gradients,
            )
            .unwrap();
            [&everywhere, &on_one].map(|var| values(gradients.get(var).unwrap()))
        });
        for gradients in found {
            assert_eq!(gradients, [vec![2.; 3], vec![2.; 2]]);
        }
    }

    #[test]
    fn gradients_that_come_one_by_one_are_averaged_alike() {
        let found = on_ranks(2, Network::default(), |ranks| {
            let zeros = |size: usize| Tensor::zeros(size, DType::F32, &Device::Cpu).unwrap();
            // The first two fill a bucket each; nobody has the last.
            let weights = [EARLY_BUCKET + 1, EARLY_BUCKET, 3, 2].map(zeros);
            let own = ranks.rank() as f64 + 1.;
            let gradient = |place: usize, value: f64| {
                let gradient = (weights[place].ones_like().unwrap() * value).unwrap();
                (weights[place].clone(), gradient)
            };
            let var = Var::from_tensor(&weights[2]).unwrap();
            let loss = (var.as_tensor() * 10.).unwrap().sum_all().unwrap();
            let mut earlier = loss.backward().unwrap();
            let of_earlier = earlier.remove(&var).unwrap();
            earlier.insert(&weights[2], of_earlier);
            let (tell, told) = std::sync::mpsc::channel();
            tell.send(gradient(0, own)).unwrap();
            if ranks.rank() == 1 {
                tell.send(gradient(1, 8.)).unwrap();
                tell.send(gradient(2, 4.)).unwrap();
            }
            drop(tell);
            let averaged =
                average_early(ranks.as_ref(), Dtype::F32, &weights, Some(&earlier), &told).unwrap();
            let first = |(weight, gradient): &(Tensor, Tensor)| {
                let place = weights.iter().position(|other| other.id() == weight.id());
                let values = values(gradient);
                assert!(values.iter().all(|value| *value == values[0]));
                (place.unwrap(), values.len(), values[0])
            };
            averaged.iter().map(first).collect::<Vec<_>>()
        });
        for found in found {
            let expected = [(0, EARLY_BUCKET + 1, 1.5), (1, EARLY_BUCKET, 4.), (2, 3, 12.)];
            assert_eq!(found, expected);
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
