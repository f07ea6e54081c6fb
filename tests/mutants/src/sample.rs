//! A random sample that a seed decides.

use crate::rewrite::Chosen;

/// `sample` of the mutants without replacement, all of them where it is not given, in their own order.
pub fn choose(mut mutants: Vec<Chosen>, sample: Option<usize>, seed: u64) -> Vec<Chosen> {
    let Some(sample) = sample.filter(|&sample| sample < mutants.len()) else {
        return mutants;
    };
    let mut state = seed;
    // The first `sample` steps of a Fisher-Yates shuffle.
    for place in 0..sample {
        let left = (mutants.len() - place) as u64;
        mutants.swap(place, place + (next(&mut state) % left) as usize);
    }
    mutants.truncate(sample);
    mutants.sort_by_key(|mutant| mutant.id);
    mutants
}

/// SplitMix64 (Steele et al. 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
