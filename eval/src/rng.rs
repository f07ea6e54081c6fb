//! Named streams of one seed: `seed -> name -> counter`, as the whole of macula draws. What is older than this has streams that are
//! numbered instead: resamples from 0, epochs of batches, initial weights and splits far above them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng};
use sha2::{Digest, Sha256};

/// The generator of the stream `name` at `counter`.
pub fn stream(seed: u64, name: &str, counter: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(digest(seed, name, counter))
}

/// What decides the stream `name` at `counter`: 32 bytes, as good as random.
pub fn digest(seed: u64, name: &str, counter: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(counter.to_le_bytes());
    hash.finalize().into()
}

/// A stream for linfa, which takes random numbers through an older version of the same traits.
#[derive(Debug, Clone)]
pub(crate) struct LinfaRng(pub ChaCha8Rng);

impl rand_core_06::RngCore for LinfaRng {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_06::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_differ_by_seed_name_and_counter() {
        let draw = |seed, name, counter| stream(seed, name, counter).next_u64();
        assert_eq!(draw(1, "few-shot", 0), draw(1, "few-shot", 0));
        let all = [
            draw(1, "few-shot", 0),
            draw(2, "few-shot", 0),
            draw(1, "resample", 0),
            draw(1, "few-shot", 1),
        ];
        for (place, a) in all.iter().enumerate() {
            assert!(all[place + 1..].iter().all(|b| a != b), "{all:?}");
        }
    }
}
