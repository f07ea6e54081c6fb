//! Where the positives of a query stand in its ranking once what is to be ignored has been taken out.

use crate::linalg::topk;

/// Places of the positives in the ranking of `scores` (descending; equal scores by ascending row), 0 for the first,
/// ascending. `junk` rows are taken out: they count neither as hits nor as misses (revisitop `compute_map`). A row in
/// both lists is junk, a row listed twice counts once.
///
/// # Panics
/// If a row is not below `scores.len()`. No score may be NaN.
pub fn positive_ranks(scores: &[f32], positives: &[u32], junk: &[u32]) -> Vec<usize> {
    let mut excluded = junk.to_vec();
    excluded.sort_unstable();
    let key = |row: u32| topk::key(scores[row as usize], row);
    let mut keys: Vec<u64> = positives
        .iter()
        .filter(|row| excluded.binary_search(row).is_err())
        .map(|&row| key(row))
        .collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.dedup();
    let Some(&worst) = keys.last() else {
        return Vec::new();
    };
    // How many other rows stand right before each positive.
    let mut before = vec![0usize; keys.len()];
    let mut ignored = excluded.iter().copied().peekable();
    for (row, &score) in scores.iter().enumerate() {
        let row = row as u32;
        while ignored.next_if(|&junk| junk < row).is_some() {}
        if ignored.peek() == Some(&row) {
            continue;
        }
        let key = topk::key(score, row);
        if key > worst {
            let place = keys.partition_point(|&positive| positive > key);
            before[place] += usize::from(keys[place] != key);
        }
    }
    let mut seen = 0;
    before
        .iter()
        .enumerate()
        .map(|(found, others)| {
            seen += others;
            found + seen
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn junk_is_taken_out_and_ties_rank_by_row() {
        // ranked: j1, a, x, b, j2, c, y
        let scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3];
        assert_eq!(positive_ranks(&scores, &[1, 3, 5], &[0, 4]), [0, 2, 3]);
        assert_eq!(positive_ranks(&[0.5; 4], &[3, 1], &[]), [1, 3]);
        assert_eq!(positive_ranks(&[0.5; 4], &[1, 2], &[1]), [1]);
        assert!(positive_ranks(&scores, &[], &[0]).is_empty());
        // Lists in any order, and rows that stand in one twice.
        assert_eq!(positive_ranks(&scores, &[5, 1, 3, 1], &[4, 0, 4]), [0, 2, 3]);
    }

    proptest! {
        #[test]
        fn ranks_are_those_of_a_full_sort(rows in prop::collection::vec((-3i8..3, 0u8..4), 1..60)) {
            let scores: Vec<f32> = rows.iter().map(|&(score, _)| f32::from(score)).collect();
            let of_kind = |kind: u8| -> Vec<u32> {
                (0..rows.len() as u32).filter(|&row| rows[row as usize].1 == kind).collect()
            };
            let (positives, junk) = (of_kind(0), of_kind(1));
            let mut order: Vec<u32> = (0..rows.len() as u32).filter(|row| !junk.contains(row)).collect();
            order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            let expected: Vec<usize> = (0..order.len()).filter(|&place| positives.contains(&order[place])).collect();
            prop_assert_eq!(positive_ranks(&scores, &positives, &junk), expected);
        }
    }
}
