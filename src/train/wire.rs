//! Sums of gradients over ranks, in the numbers in which they are sent.

use half::bf16;

use crate::Result;
use crate::cluster::{Ranks, Reduction};
use crate::device::Dtype;

/// Values that are sent at once where they are cut to fewer bits.
const AT_ONCE: usize = 1 << 22;

/// Puts the sum over ranks in the place of each of `values`, the same on all ranks. In bf16 every value is rounded twice, where it leaves
/// its rank and where the sum leaves the rank that adds it up, in f32 and in the order of ranks.
///
/// # Errors
/// Ranks that cannot reach each other.
pub(super) fn sum(ranks: &dyn Ranks, values: &mut [f32], wire: Dtype) -> Result<()> {
    match wire {
        Dtype::Bf16 => values
            .chunks_mut(AT_ONCE)
            .try_for_each(|part| sum_in_bf16(ranks, part)),
        _ => ranks.reduce_f32(values, Reduction::Sum),
    }
}

/// Every rank adds up a part of `values` and tells the others.
fn sum_in_bf16(ranks: &dyn Ranks, values: &mut [f32]) -> Result<()> {
    let part = values.len().div_ceil(ranks.size());
    let mut own = encoded(values);
    own.resize(2 * part * ranks.size(), 0);
    let mut sums = vec![0f32; part];
    for of_rank in ranks.trade(&own)?.chunks_exact(2 * part) {
        let received = sums.iter_mut().zip(of_rank.as_chunks::<2>().0);
        received.for_each(|(sum, &word)| *sum += bf16::from_le_bytes(word).to_f32());
    }
    let all = ranks.gather_bytes(&encoded(&sums))?;
    let all = all.iter().flat_map(|part| part.as_chunks::<2>().0);
    let received = values.iter_mut().zip(all);
    received.for_each(|(value, &word)| *value = bf16::from_le_bytes(word).to_f32());
    Ok(())
}

fn encoded(values: &[f32]) -> Vec<u8> {
    let bytes = |&value: &f32| bf16::from_f32(value).to_le_bytes();
    values.iter().flat_map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::simulated::{Network, on_ranks};

    /// Halves of a unit of the last of 8 bits, on the way there and on the way back, of what the first has made larger.
    const ROUNDED_TWICE: f32 = 2.01 / 256.;

    fn own(rank: usize, count: usize) -> Vec<f32> {
        let value =
            |place: usize| ((place * 37 + rank * 11) as f32 * 0.61).sin() * 10f32.powi(place as i32 % 9 - 6);
        (0..count).map(value).collect()
    }

    #[test]
    fn sums_in_bf16_are_off_by_two_roundings_and_the_same_everywhere() {
        for size in [1, 2, 3, 5] {
            // No multiple of the ranks, and fewer values than ranks.
            for count in [1001, 2] {
                let [exact, found] = [Dtype::F32, Dtype::Bf16].map(|wire| {
                    on_ranks(size, Network::default(), |ranks| {
                        let mut values = own(ranks.rank(), count);
                        sum(ranks.as_ref(), &mut values, wire).unwrap();
                        values
                    })
                });
                assert!(found.iter().all(|other| *other == found[0]), "{size}");
                for place in 0..count {
                    let magnitude: f32 = (0..size).map(|rank| own(rank, count)[place].abs()).sum();
                    let off = (found[0][place] - exact[0][place]).abs();
                    assert!(
                        off <= ROUNDED_TWICE * magnitude,
                        "{size}, {place}: {off} of {magnitude}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let found = on_ranks(2, Network::default(), |ranks| {
            let mut values = match ranks.rank() {
                0 => [f32::NAN, 1., 2.],
                _ => [0., f32::INFINITY, 3.],
            };
            sum(ranks.as_ref(), &mut values, Dtype::Bf16).unwrap();
            values
        });
        for [not_a_number, infinite, sum] in found {
            assert!(not_a_number.is_nan());
            assert_eq!((infinite, sum), (f32::INFINITY, 5.));
        }
    }
}
