//! Rows of a pool that resemble a seed (Oquab et al. 2023, appendix A.4): the nearest to each seed row, or those of the
//! clusters that seed rows fall into.

use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::search::Searcher;
use crate::linalg::kmeans::{KMeansConfig, assign, by_cluster, kmeans};
use crate::{Error, MatrixView, Result};

/// The seed row that asks for a row of the pool most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearestSeed {
    /// The seed row.
    pub seed: u32,
    /// Place of the pool's row among that seed's nearest, from 0.
    pub rank: u32,
    /// Cosine similarity.
    pub similarity: f32,
    /// How many seed rows have it among their `k` nearest.
    pub hits: u32,
}

/// The `k` rows of the pool nearest to each row of `seeds` (unit rows), for each row of the pool the seed that ranks it
/// best, none where no seed asks for it: a row that several ask for counts once. With a `target`, only so many rows, the
/// best-ranked first, of equal rank the most similar. `n` is the number of rows of the pool.
///
/// # Errors
/// As [`Searcher::search`].
pub fn retrieve_by_sample(
    searcher: &Searcher<'_>,
    n: usize,
    seeds: MatrixView<'_>,
    k: usize,
    target: Option<usize>,
) -> Result<Vec<Option<NearestSeed>>> {
    let mut found: Vec<Option<NearestSeed>> = vec![None; n];
    // Cosines are above -2 whatever the rounding.
    searcher.search(seeds, k, -2.0, |seed, hits| {
        for (rank, hit) in hits.iter().enumerate() {
            let place = &mut found[hit.row as usize];
            let hits = place.map_or(0, |before| before.hits) + 1;
            let candidate = NearestSeed {
                seed: seed as u32,
                rank: rank as u32,
                similarity: hit.similarity,
                hits,
            };
            match place {
                Some(before) if !better(&candidate, before) => before.hits = hits,
                _ => *place = Some(candidate),
            }
        }
    })?;
    if let Some(target) = target {
        keep_best(&mut found, target);
    }
    Ok(found)
}

/// Whether `a` comes before `b`: by rank, by similarity, by seed.
fn better(a: &NearestSeed, b: &NearestSeed) -> bool {
    let by_similarity = b.similarity.total_cmp(&a.similarity);
    a.rank
        .cmp(&b.rank)
        .then(by_similarity)
        .then(a.seed.cmp(&b.seed))
        .is_lt()
}

fn keep_best(found: &mut [Option<NearestSeed>], target: usize) {
    let mut order: Vec<usize> = (0..found.len()).filter(|&row| found[row].is_some()).collect();
    let key = |row: usize| {
        found[row].map_or((u32::MAX, 0.0), |candidate| {
            (candidate.rank, candidate.similarity)
        })
    };
    order.sort_by(|&a, &b| {
        let (a_key, b_key) = (key(a), key(b));
        a_key
            .0
            .cmp(&b_key.0)
            .then(b_key.1.total_cmp(&a_key.1))
            .then(a.cmp(&b))
    });
    for &row in order.iter().skip(target) {
        found[row] = None;
    }
}

/// Settings of retrieval by clusters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterRetrieval {
    /// Clusters of the pool.
    pub clusters: usize,
    /// A cluster is taken from when more than this many seed rows fall into it, 3 by default.
    pub more_than: usize,
    /// Rows taken from one cluster at most, 10,000 by default.
    pub per_cluster: usize,
    /// Rows taken in all at most; none for no limit.
    pub target: Option<usize>,
    /// Lloyd iterations, 20 by default.
    pub iterations: usize,
    /// Seed of the clustering and the draws.
    pub seed: u64,
}

impl Default for ClusterRetrieval {
    fn default() -> Self {
        Self {
            clusters: 100,
            more_than: 3,
            per_cluster: 10_000,
            target: None,
            iterations: 20,
            seed: 0,
        }
    }
}

/// Clusters the pool and takes rows, drawn at random, of the clusters that more than `more_than` seed rows fall into.
/// Gives whether each row is taken, the cluster of each row of the pool, and how many seed rows fall into each cluster.
///
/// # Errors
/// No cluster, or more than rows; NaN or infinity; widths that differ.
pub fn retrieve_by_cluster(
    pool: MatrixView<'_>,
    seeds: MatrixView<'_>,
    config: &ClusterRetrieval,
) -> Result<(Vec<bool>, Vec<u32>, Vec<u32>)> {
    if config.per_cluster == 0 {
        return Err(Error::config("per_cluster", "expected at least 1 row, found 0"));
    }
    let settings = KMeansConfig {
        k: config.clusters,
        iterations: config.iterations,
        seeding_rows: (pool.rows() / 32 > config.clusters).then_some(32 * config.clusters),
        seed: config.seed,
    };
    let found = kmeans(pool, &settings)?;
    let mut hits = vec![0u32; config.clusters];
    for cluster in assign(seeds, found.centroids.view())?.clusters {
        hits[cluster as usize] += 1;
    }
    let (rows, starts) = by_cluster(&found.clusters, config.clusters);
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed.wrapping_add(1));
    let mut chosen: Vec<u32> = Vec::new();
    for (ends, _) in starts
        .windows(2)
        .zip(&hits)
        .filter(|(_, hits)| **hits as usize > config.more_than)
    {
        let mut members = rows[ends[0]..ends[1]].to_vec();
        let (drawn, _) = members.partial_shuffle(&mut rng, config.per_cluster);
        chosen.extend_from_slice(drawn);
    }
    if let Some(target) = config.target.filter(|&target| target < chosen.len()) {
        let (drawn, _) = chosen.partial_shuffle(&mut rng, target);
        chosen = drawn.to_vec();
    }
    let mut taken = vec![false; pool.rows()];
    chosen.iter().for_each(|&row| taken[row as usize] = true);
    Ok((taken, found.clusters, hits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curation::Search;
    use crate::curation::testing::{clustered, dot};

    #[test]
    fn each_seed_gets_its_nearest_and_collisions_count_once() {
        let (pool, seeds) = (clustered(200, 8, 9, 0.4, 1), clustered(15, 8, 9, 0.4, 1));
        let searcher = Searcher::new(pool.view(), Search::Exact, 0).unwrap();
        let found = retrieve_by_sample(&searcher, 200, seeds.view(), 4, None).unwrap();
        let mut hits = vec![0u32; 200];
        for seed in 0..15 {
            let mut order: Vec<usize> = (0..200).collect();
            let similarity = |row: usize| dot(pool.view().row(row), seeds.view().row(seed));
            order.sort_by(|&a, &b| similarity(b).total_cmp(&similarity(a)));
            order[..4].iter().for_each(|&row| hits[row] += 1);
            let first = found[order[0]].unwrap();
            assert_eq!(first.rank, 0);
        }
        let counted: Vec<u32> = found.iter().map(|f| f.map_or(0, |f| f.hits)).collect();
        assert_eq!(counted, hits);
        let unique = hits.iter().filter(|&&h| h > 0).count();
        assert!(unique < 60, "some collide: {unique}");
        let some = retrieve_by_sample(&searcher, 200, seeds.view(), 4, Some(20)).unwrap();
        assert_eq!(some.iter().flatten().count(), 20);
        let worst = some.iter().flatten().map(|f| f.rank).max().unwrap();
        for (kept, all) in some.iter().zip(&found) {
            assert!(kept.is_none() || kept == all);
            assert!(kept.is_some() || all.is_none_or(|all| all.rank >= worst));
        }
    }

    #[test]
    fn clusters_that_seeds_fall_into_are_taken_from() {
        // Three tight groups; four seeds near the first, three near the second.
        let group = |value: f32| {
            if value < 1.0 {
                [1.0, 0.0, 0.0]
            } else if value < 2.0 {
                [0.0, 1.0, 0.0]
            } else {
                [0.0, 0.0, 1.0]
            }
        };
        let rows = |places: &[f32]| {
            let data: Vec<f32> = places
                .iter()
                .flat_map(|&v| group(v).map(|x| x + 0.01 * v.fract()))
                .collect();
            crate::Matrix::new(data, places.len(), 3).unwrap()
        };
        let pool = rows(
            &(0..60)
                .map(|i| (i % 3) as f32 + i as f32 / 100.0)
                .collect::<Vec<_>>(),
        );
        let seeds = rows(&[0.1, 0.2, 0.3, 0.4, 1.1, 1.2, 1.3]);
        let config = ClusterRetrieval {
            clusters: 3,
            ..ClusterRetrieval::default()
        };
        let (taken, clusters, hits) = retrieve_by_cluster(pool.view(), seeds.view(), &config).unwrap();
        let rows: Vec<usize> = (0..60).filter(|&row| taken[row]).collect();
        assert_eq!(rows, (0..60).step_by(3).collect::<Vec<_>>());
        assert_eq!(hits[clusters[0] as usize], 4);
        let few = ClusterRetrieval {
            per_cluster: 5,
            more_than: 2,
            ..config.clone()
        };
        let (taken, _, _) = retrieve_by_cluster(pool.view(), seeds.view(), &few).unwrap();
        assert_eq!(taken.iter().filter(|&&t| t).count(), 10);
        let sized = ClusterRetrieval {
            target: Some(7),
            ..config
        };
        let (taken, _, _) = retrieve_by_cluster(pool.view(), seeds.view(), &sized).unwrap();
        assert_eq!(taken.iter().filter(|&&t| t).count(), 7);
    }
}
