//! Partial selection: the k best of a stream of (similarity, index) pairs without sorting the rest.
//!
//! A pair is held as one u64 whose order is that of the ranking: higher similarity first, then lower index. No two pairs
//! of one stream are equal, so what is selected never depends on the order of arrival.

/// Packs a pair so that a greater key ranks earlier. `similarity` must not be NaN.
pub fn key(similarity: f32, index: u32) -> u64 {
    // Adding zero turns -0.0 into +0.0, which must tie with it.
    let bits = (similarity + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!index)
}

/// The similarity of a packed pair.
pub fn similarity(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 {
        ordered & !(1 << 31)
    } else {
        !ordered
    })
}

/// The index of a packed pair.
pub fn index(key: u64) -> u32 {
    !(key as u32)
}

/// Keeps the `k` greatest of `keys`, in no particular order.
pub fn keep_top(keys: &mut Vec<u64>, k: usize) {
    if keys.len() > k {
        if k > 0 {
            keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        }
        keys.truncate(k);
    }
}

/// Collects the k best of many pairs: those above the k-th best seen so far go to a buffer, which is cut back to k
/// whenever it is full, so that most pairs cost one comparison.
#[derive(Debug)]
pub struct Reservoir {
    keys: Vec<u64>,
    k: usize,
    limit: usize,
    threshold: f32,
}

impl Reservoir {
    /// An empty reservoir for the `k` best, `k` at least 1.
    pub fn new(k: usize) -> Self {
        let k = k.max(1);
        let limit = k + k.max(64);
        Self {
            keys: Vec::with_capacity(limit),
            k,
            limit,
            threshold: f32::NEG_INFINITY,
        }
    }

    /// Offers `similarities` of the indices `first..`. Indices must arrive in ascending order over all calls: a later
    /// pair that only equals the k-th best is then rightly refused.
    pub fn offer(&mut self, similarities: &[f32], first: u32) {
        const LANES: usize = 32;
        for (chunk_number, chunk) in similarities.chunks(LANES).enumerate() {
            let threshold = self.threshold;
            // No early exit: the compiler turns this into a few vector comparisons.
            if !chunk.iter().fold(false, |any, &s| any | (s > threshold)) {
                continue;
            }
            let start = first + (chunk_number * LANES) as u32;
            for (offset, &similarity) in chunk.iter().enumerate() {
                if similarity > self.threshold {
                    self.push(similarity, start + offset as u32);
                }
            }
        }
    }

    fn push(&mut self, similarity: f32, index: u32) {
        self.keys.push(key(similarity, index));
        if self.keys.len() == self.limit {
            keep_top(&mut self.keys, self.k);
            // After the cut the k-th best is the last: `select_nth` put it at place k - 1.
            self.threshold = self::similarity(self.keys[self.k - 1]);
        }
    }

    /// The best keys seen, at most k, in no particular order.
    pub fn into_keys(mut self) -> Vec<u64> {
        keep_top(&mut self.keys, self.k);
        self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_order_as_the_ranking_and_come_back() {
        let ranking = [
            (f32::INFINITY, 9),
            (1.0, 0),
            (1.0, 1),
            (0.0, 3),
            (-0.0, 4),
            (0.0, 5),
            (-1e-30, 0),
            (-2.0, 7),
        ];
        for pair in ranking.windows(2) {
            assert!(key(pair[0].0, pair[0].1) > key(pair[1].0, pair[1].1), "{pair:?}");
        }
        for (s, i) in ranking {
            assert_eq!((similarity(key(s, i)), index(key(s, i))), (s, i));
        }
    }

    proptest! {
        #[test]
        fn reservoir_is_a_sort(
            values in prop::collection::vec((-8i32..8).prop_map(|v| v as f32 / 4.0), 1..700),
            k in 1usize..120,
            step in 1usize..200,
        ) {
            let mut reservoir = Reservoir::new(k);
            for (number, chunk) in values.chunks(step).enumerate() {
                reservoir.offer(chunk, (number * step) as u32);
            }
            let mut found = reservoir.into_keys();
            found.sort_unstable_by(|a, b| b.cmp(a));
            let mut all: Vec<(f32, u32)> = values.iter().copied().zip(0..).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(k);
            let pairs: Vec<(f32, u32)> = found.iter().map(|&p| (similarity(p), index(p))).collect();
            prop_assert_eq!(pairs, all);
        }
    }
}
