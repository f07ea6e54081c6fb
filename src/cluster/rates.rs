//! How fast ranks sum what they exchange, and whether the sums are right: for `macula bench exchange`.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::{Ranks, Reduction};
use crate::Result;

/// A way by which values are summed over ranks, measured.
#[derive(Debug, Clone)]
pub struct ExchangeRate {
    /// `host`: values of the host's memory. `device`: a tensor, on the stream that computes. `aside`: one beside that, as gradients are.
    pub way: &'static str,
    /// What they are sent in.
    pub dtype: DType,
    /// Bytes of each rank.
    pub bytes: usize,
    /// Seconds of the fastest sum.
    pub seconds: f64,
    /// The largest difference from the exact sum, as a share of the sum of magnitudes.
    pub difference: f64,
    /// What rounding makes at most.
    pub allowed: f64,
}

impl ExchangeRate {
    /// Whether the sums are right.
    pub fn is_within(&self) -> bool {
        self.difference <= self.allowed
    }
}

/// Sums `count` values of every rank, as often as `repetitions` says, by each way that `ranks` have for `device`. All ranks call it.
///
/// # Errors
/// Ranks that cannot reach each other, a device that does not answer.
pub fn exchange_rates(
    ranks: &dyn Ranks,
    device: &Device,
    count: usize,
    repetitions: usize,
) -> Result<Vec<ExchangeRate>> {
    let own: Vec<f32> = (0..count).map(|place| value(ranks.rank(), place)).collect();
    let on_host = || {
        let mut values = own.clone();
        let start = Instant::now();
        ranks.reduce_f32(&mut values, Reduction::Sum)?;
        Ok((start.elapsed().as_secs_f64(), values))
    };
    let mut found = vec![measured(ranks, ("host", DType::F32), repetitions, on_host)?];
    if !ranks.sums_on(device) {
        return Ok(found);
    }
    for (way, dtype) in [
        ("device", DType::F32),
        ("aside", DType::F32),
        ("aside", DType::BF16),
    ] {
        let values = Tensor::from_slice(&own, count, device)?.to_dtype(dtype)?;
        let on_device = || {
            let values = values.force_contiguous()?;
            device.synchronize()?;
            let start = Instant::now();
            let sum = match way {
                "device" => ranks.sum(&values)?,
                _ => ranks.sum_aside(values)?.wait()?,
            };
            device.synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            Ok((seconds, sum.to_dtype(DType::F32)?.to_vec1::<f32>()?))
        };
        found.push(measured(ranks, (way, dtype), repetitions, on_device)?);
    }
    Ok(found)
}

/// What a rank brings: of both signs and many magnitudes.
fn value(rank: usize, place: usize) -> f32 {
    ((place % 1009 * 37 + rank * 11) as f32 * 0.61).sin() * 10f32.powi((place % 9) as i32 - 6)
}

fn measured(
    ranks: &dyn Ranks,
    (way, dtype): (&'static str, DType),
    repetitions: usize,
    sum: impl Fn() -> Result<(f64, Vec<f32>)>,
) -> Result<ExchangeRate> {
    let (mut seconds, mut bytes, mut difference) = (f64::INFINITY, 0, 0f64);
    for _ in 0..repetitions.max(1) {
        ranks.barrier()?;
        let (took, sums) = sum()?;
        seconds = seconds.min(took);
        bytes = sums.len() * dtype.size_in_bytes();
        difference = difference.max(largest_difference(ranks.size(), &sums));
    }
    // Every rank rounds what it sends and every sum is rounded once more, in whatever order; f32 is sent as it is.
    let allowed = match dtype {
        DType::BF16 => (ranks.size() + 1) as f64 / 256.,
        _ => ranks.size() as f64 * f64::from(f32::EPSILON),
    };
    Ok(ExchangeRate {
        way,
        dtype,
        bytes,
        seconds,
        difference,
        allowed,
    })
}

/// How far `sums` are from those of what `ranks` ranks bring; infinite where one is not finite.
fn largest_difference(ranks: usize, sums: &[f32]) -> f64 {
    let difference = |(place, sum): (usize, &f32)| {
        let values = (0..ranks).map(|rank| f64::from(value(rank, place)));
        let (exact, magnitudes) = values.fold((0., 0.), |(sum, magnitudes), value| {
            (sum + value, magnitudes + value.abs())
        });
        match sum.is_finite() {
            true => (f64::from(*sum) - exact).abs() / f64::max(magnitudes, f64::MIN_POSITIVE),
            false => f64::INFINITY,
        }
    };
    sums.iter().enumerate().map(difference).fold(0., f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::OneRank;
    use crate::cluster::simulated::{Network, on_ranks};

    #[test]
    fn sums_of_ranks_are_right_and_wrong_ones_are_noticed() {
        for size in [1, 3] {
            let found = on_ranks(size, Network::default(), |ranks| {
                exchange_rates(ranks.as_ref(), &Device::Cpu, 5000, 2).unwrap()
            });
            for rates in found {
                let [rate] = rates.as_slice() else {
                    panic!("{rates:?}")
                };
                assert_eq!((rate.way, rate.bytes), ("host", 20_000));
                assert!(rate.is_within() && rate.seconds > 0., "{rate:?}");
            }
        }
        // Of one rank where there are two.
        let own: Vec<f32> = (0..5000).map(|place| value(0, place)).collect();
        assert_eq!(largest_difference(1, &own), 0.);
        assert!(largest_difference(2, &own) > 0.5);
        assert_eq!(largest_difference(1, &[f32::NAN]), f64::INFINITY);
        assert_eq!(exchange_rates(&OneRank, &Device::Cpu, 3, 1).unwrap().len(), 1);
    }
}
