//! Balanced sampling from a hierarchy of clusters (Vo et al. 2024): the target is shared among the clusters of the highest
//! level as evenly as their sizes allow, each share among the cluster's children likewise, down to rows.

use rand::seq::{SliceRandom as _, index};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::hierarchy::Level;
use crate::linalg::kmeans::by_cluster;
use crate::{Error, Result};

/// Which rows of a cluster of the lowest level are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleOrder {
    /// Any, drawn at random.
    #[default]
    Random,
    /// Those nearest to the centroid.
    Closest,
}

/// How much of `target` each child gives: `min(c, size)` with the greatest `c` whose sum is within the target, and one
/// more from as many children of greater size, drawn at random, as make up the rest. Where all fit, everything.
pub fn balanced_shares(sizes: &[u64], target: u64, rng: &mut ChaCha8Rng) -> Vec<u64> {
    if sizes.iter().sum::<u64>() <= target {
        return sizes.to_vec();
    }
    let total = |max: u64| sizes.iter().map(|&size| size.min(max)).sum::<u64>();
    let (mut fits, mut exceeds) = (0, sizes.iter().copied().max().unwrap_or(0));
    while exceeds - fits > 1 {
        let middle = fits + (exceeds - fits) / 2;
        if total(middle) <= target {
            fits = middle;
        } else {
            exceeds = middle;
        }
    }
    let mut shares: Vec<u64> = sizes.iter().map(|&size| size.min(fits)).collect();
    let mut larger: Vec<usize> = (0..sizes.len()).filter(|&child| sizes[child] > fits).collect();
    let rest = (target - total(fits)) as usize;
    let (drawn, _) = larger.partial_shuffle(rng, rest);
    drawn.iter().for_each(|&child| shares[child] += 1);
    shares
}

/// `target` rows of a hierarchy, ascending, each once; all rows where the target is as large. `levels` are those of
/// [`super::hierarchy()`], the lowest first.
///
/// # Errors
/// No level, or levels that do not fit each other.
pub fn balanced_sample(levels: &[Level], target: usize, order: SampleOrder, seed: u64) -> Result<Vec<u32>> {
    let tree = Tree::new(levels)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let top = levels.len() - 1;
    let everything: Vec<u32> = (0..tree.sizes[top].len() as u32).collect();
    let mut taken = Vec::with_capacity(target);
    // (level, cluster, share): depth first, so that the draws have one order.
    let mut open: Vec<(usize, u32, u64)> = tree.shares(top, &everything, target as u64, &mut rng);
    while let Some((level, cluster, share)) = open.pop() {
        let children = tree.children(level, cluster);
        if level > 0 {
            open.extend(tree.shares(level - 1, children, share, &mut rng));
            continue;
        }
        let mut rows = children.to_vec();
        let share = share as usize;
        match order {
            SampleOrder::Random => taken.extend_from_slice(rows.partial_shuffle(&mut rng, share).0),
            SampleOrder::Closest => {
                rows.sort_by(|&a, &b| {
                    let distance = |row: u32| levels[0].distances[row as usize];
                    distance(a).total_cmp(&distance(b)).then(a.cmp(&b))
                });
                taken.extend_from_slice(&rows[..share]);
            }
        }
    }
    taken.sort_unstable();
    Ok(taken)
}

/// `target` of `n` rows drawn at random, ascending; all where the target is as large.
pub fn random_sample(n: usize, target: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn = index::sample(&mut rng, n, target.min(n));
    let mut rows: Vec<u32> = drawn.iter().map(|row| row as u32).collect();
    rows.sort_unstable();
    rows
}

/// Children and sizes of the clusters of every level.
struct Tree {
    /// Of each level the children sorted by cluster, and where each cluster begins.
    members: Vec<(Vec<u32>, Vec<usize>)>,
    /// Rows below each cluster of each level.
    sizes: Vec<Vec<u64>>,
}

impl Tree {
    fn new(levels: &[Level]) -> Result<Self> {
        if levels.is_empty() {
            return Err(Error::config("levels", "expected at least one level, found none"));
        }
        let (mut members, mut sizes): (Vec<_>, Vec<Vec<u64>>) = (Vec::new(), Vec::new());
        for (number, level) in levels.iter().enumerate() {
            let k = level.centroids.view().rows();
            let below = sizes.last();
            let fits = below.is_none_or(|below| below.len() == level.clusters.len());
            if !fits || level.clusters.iter().any(|&cluster| cluster as usize >= k) {
                return Err(Error::data(
                    "levels",
                    format!("level {} does not fit the one below", number + 1),
                ));
            }
            let mut size = vec![0u64; k];
            for (child, &cluster) in level.clusters.iter().enumerate() {
                size[cluster as usize] += below.map_or(1, |below| below[child]);
            }
            members.push(by_cluster(&level.clusters, k));
            sizes.push(size);
        }
        Ok(Self { members, sizes })
    }

    fn children(&self, level: usize, cluster: u32) -> &[u32] {
        let (members, starts) = &self.members[level];
        &members[starts[cluster as usize]..starts[cluster as usize + 1]]
    }

    /// Shares of clusters of a level, those that get none left out.
    fn shares(
        &self,
        level: usize,
        clusters: &[u32],
        target: u64,
        rng: &mut ChaCha8Rng,
    ) -> Vec<(usize, u32, u64)> {
        let sizes: Vec<u64> = clusters.iter().map(|&c| self.sizes[level][c as usize]).collect();
        let shares = balanced_shares(&sizes, target, rng);
        let given = clusters.iter().zip(shares).filter(|(_, share)| *share > 0);
        given.map(|(&cluster, share)| (level, cluster, share)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use proptest::prelude::*;

    fn level(clusters: &[u32], k: usize, distances: Vec<f64>) -> Level {
        Level {
            centroids: Matrix::new(vec![0.0; k], k, 1).unwrap(),
            clusters: clusters.to_vec(),
            distances,
        }
    }

    /// One more to each child in turn, until the target is reached.
    fn round_robin(sizes: &[u64], target: u64) -> Vec<u64> {
        let mut shares = vec![0; sizes.len()];
        loop {
            let open: Vec<usize> = (0..sizes.len()).filter(|&i| shares[i] < sizes[i]).collect();
            let left = target - shares.iter().sum::<u64>();
            if open.is_empty() || left < open.len() as u64 {
                return shares; // the remainder goes to any of `open`
            }
            open.iter().for_each(|&i| shares[i] += 1);
        }
    }

    proptest! {
        #[test]
        fn shares_are_those_of_dealing_out(
            sizes in prop::collection::vec(0u64..40, 0..12),
            target in 0u64..200,
            seed in 0u64..5,
        ) {
            let shares = balanced_shares(&sizes, target, &mut ChaCha8Rng::seed_from_u64(seed));
            let dealt = round_robin(&sizes, target);
            prop_assert_eq!(shares.iter().sum::<u64>(), target.min(sizes.iter().sum()));
            for ((share, min), size) in shares.iter().zip(&dealt).zip(&sizes) {
                prop_assert!(share <= size && (share == min || *share == min + 1), "{shares:?} {dealt:?}");
            }
        }

        #[test]
        fn a_sample_has_each_row_once_and_is_balanced_at_the_top(
            clusters in prop::collection::vec(0u32..9, 1..120),
            parents in prop::collection::vec(0u32..3, 9),
            target in 0usize..150,
        ) {
            let distances = (0..clusters.len()).map(|row| row as f64).collect();
            let levels = [level(&clusters, 9, distances), level(&parents, 3, vec![0.0; 9])];
            let top = |row: u32| parents[clusters[row as usize] as usize] as usize;
            let mut sizes = [0u64; 3];
            (0..clusters.len() as u32).for_each(|row| sizes[top(row)] += 1);
            for order in [SampleOrder::Random, SampleOrder::Closest] {
                let taken = balanced_sample(&levels, target, order, 1).unwrap();
                prop_assert_eq!(taken.len(), target.min(clusters.len()));
                prop_assert!(taken.windows(2).all(|pair| pair[0] < pair[1]));
                let mut shares = [0u64; 3];
                taken.iter().for_each(|&row| shares[top(row)] += 1);
                let dealt = round_robin(&sizes, (target as u64).min(sizes.iter().sum()));
                for (share, min) in shares.iter().zip(dealt) {
                    prop_assert!(*share == min || *share == min + 1, "{shares:?}");
                }
                prop_assert_eq!(&taken, &balanced_sample(&levels, target, order, 1).unwrap());
            }
        }
    }

    #[test]
    fn closest_takes_the_nearest_rows() {
        let distances = vec![5.0, 1.0, 4.0, 2.0, 3.0, 0.5];
        let levels = [level(&[0, 0, 0, 1, 1, 1], 2, distances)];
        assert_eq!(
            balanced_sample(&levels, 4, SampleOrder::Closest, 0).unwrap(),
            [1, 2, 3, 5]
        );
        let seeds: std::collections::BTreeSet<Vec<u32>> = (0..20)
            .map(|seed| balanced_sample(&levels, 2, SampleOrder::Random, seed).unwrap())
            .collect();
        assert!(seeds.len() > 3, "{seeds:?}");
    }

    #[test]
    fn levels_that_do_not_fit_are_refused() {
        assert!(balanced_sample(&[], 3, SampleOrder::Random, 0).is_err());
        let below = level(&[0, 1], 2, vec![0.0; 2]);
        let above = level(&[0, 0, 0], 1, vec![0.0; 3]);
        assert!(balanced_sample(&[below, above], 1, SampleOrder::Random, 0).is_err());
    }
}
