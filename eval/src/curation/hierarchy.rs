//! Hierarchical k-means (Vo et al. 2024): the rows are clustered, then the centroids, then theirs, level upon level. Plain
//! k-means puts most centroids where most rows are; at each level its clusters are therefore clustered again from the few
//! rows nearest to each centroid, which flattens the distribution of the centroids towards a uniform one over the data.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::balance::balanced_shares;
use crate::linalg::kmeans::{KMeansConfig, assign, by_cluster, kmeans_of};
use crate::team::part_of;
use crate::{Error, Matrix, Result, Share};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Products of rows and clusters above which the lowest level is split from parents unless `split` says otherwise: an
/// iteration of plain k-means then costs more than half a minute on two cores.
const SPLIT_ABOVE: usize = 2_000_000_000;
/// Rows for each centroid that the first centroids are chosen among.
const SEEDING_ROWS: usize = 32;
/// Parents that are split at a time, for each thread of each process: their rows are held by all processes.
const PARENTS_PER_THREAD: usize = 4;

/// Settings of the hierarchy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HierarchyConfig {
    /// Clusters of each level, the lowest first: falling, each at least 1, the first at most the number of rows.
    pub levels: Vec<usize>,
    /// Rows (or centroids) nearest to each centroid that resampling clusters again, one number a level; 1 means no
    /// resampling.
    pub sample_sizes: Vec<usize>,
    /// Resampling steps, 10 by default.
    pub resampling: usize,
    /// Most Lloyd iterations of every k-means, 50 by default.
    pub iterations: usize,
    /// Parents that the lowest level is split from, each by a k-means of its own, instead of one k-means over all rows;
    /// 0 for none. By default none, or the square root of the lowest level's clusters where one k-means would take long.
    pub split: Option<usize>,
    /// Seed.
    pub seed: u64,
}

impl Default for HierarchyConfig {
    fn default() -> Self {
        Self {
            levels: vec![8],
            sample_sizes: vec![1],
            resampling: 10,
            iterations: 50,
            split: None,
            seed: 0,
        }
    }
}

/// Clusters of one level.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Centroids, `[k, d]`. Where rows are few, `k` may be less than what was asked for.
    pub centroids: Matrix,
    /// Cluster of each row, or of each centroid of the level below.
    pub clusters: Vec<u32>,
    /// Squared distance to its centroid.
    pub distances: Vec<f64>,
}

impl HierarchyConfig {
    /// Checks the settings for `n` rows.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self, n: usize) -> Result<()> {
        let falling = self.levels.windows(2).all(|pair| pair[0] > pair[1]);
        if self.levels.is_empty() || !falling || self.levels.contains(&0) {
            return Err(Error::config(
                "levels",
                format!(
                    "expected falling numbers of clusters, at least 1 each, found {:?}",
                    self.levels
                ),
            ));
        }
        if self.levels[0] > n {
            return Err(Error::config(
                "levels",
                format!(
                    "expected at most {n} clusters (the rows), found {}",
                    self.levels[0]
                ),
            ));
        }
        if self.sample_sizes.len() != self.levels.len() || self.sample_sizes.contains(&0) {
            return Err(Error::config(
                "sample_sizes",
                format!(
                    "expected {} numbers of at least 1, one a level, found {:?}",
                    self.levels.len(),
                    self.sample_sizes
                ),
            ));
        }
        if self.iterations == 0 {
            return Err(Error::config("iterations", "expected at least 1, found 0"));
        }
        if let Some(split) = self.split.filter(|&split| split > self.levels[0]) {
            return Err(Error::config(
                "split",
                format!(
                    "expected at most {} parents (the lowest level), found {split}",
                    self.levels[0]
                ),
            ));
        }
        Ok(())
    }

    /// The parents that the lowest level is split from, 0 for none.
    pub fn parents(&self, n: usize) -> usize {
        let k = self.levels.first().copied().unwrap_or(1);
        let by_size = if n.saturating_mul(k) > SPLIT_ABOVE {
            (k as f64).sqrt().round() as usize
        } else {
            0
        };
        self.split.unwrap_or(by_size)
    }

    fn kmeans(&self, n: usize, k: usize, counter: u64) -> KMeansConfig {
        KMeansConfig {
            k,
            iterations: self.iterations,
            seeding_rows: (n / SEEDING_ROWS > k).then_some(SEEDING_ROWS * k),
            // Any seeds that differ will do: the generator mixes them.
            seed: self
                .seed
                .wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        }
    }
}

/// Clusters the rows of `features`, then the centroids of each level: on every process the same, and what one process finds. `progress`
/// hears what is being done.
///
/// # Errors
/// Settings that [`HierarchyConfig::validate`] refuses, NaN or infinity, processes that cannot reach each other.
pub fn hierarchy(
    features: &Share<'_>,
    config: &HierarchyConfig,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Level>> {
    config.validate(features.total())?;
    let mut levels: Vec<Level> = Vec::with_capacity(config.levels.len());
    for (number, (&k, &sample)) in config.levels.iter().zip(&config.sample_sizes).enumerate() {
        let rows = match levels.last() {
            Some(below) => Share::of_all(below.centroids.view(), features.team()),
            None => *features,
        };
        let n = rows.total();
        let k = k.min(n);
        progress(&format!("level {}: {n} rows into {k} clusters", number + 1));
        let counter = number as u64 * 1_000_000;
        let parents = if number == 0 { config.parents(n) } else { 0 };
        let mut level = if parents > 1 {
            split(&rows, k, parents, config, counter)?
        } else {
            plain(&rows, &rows, &config.kmeans(n, k, counter))?
        };
        let steps = if sample > 1 { config.resampling } else { 0 };
        for step in 0..steps {
            progress(&format!(
                "level {}: resampling {} of {steps}",
                number + 1,
                step + 1
            ));
            let nearest = nearest_to_centroids(&level, sample);
            let few = rows.select(&nearest)?;
            let few = Share::of_all(few.view(), rows.team());
            let k = k.min(nearest.len());
            let settings = config.kmeans(nearest.len(), k, counter + 500_000 + step as u64);
            level = plain(&few, &rows, &settings)?;
        }
        levels.push(level);
    }
    Ok(levels)
}

/// k-means of `few`, then every row of `rows` to the nearest of its centroids.
fn plain(few: &Share<'_>, rows: &Share<'_>, settings: &KMeansConfig) -> Result<Level> {
    let centroids = kmeans_of(few, settings)?.centroids;
    let own = assign(rows.rows(), centroids.view())?;
    Ok(Level {
        centroids,
        clusters: rows.team().gather_numbers(&own.clusters)?,
        distances: rows.team().gather_f64(&own.distances)?,
    })
}

/// Rows of each cluster nearest to its centroid, at most `sample` of each.
fn nearest_to_centroids(level: &Level, sample: usize) -> Vec<usize> {
    let (rows, starts) = by_cluster(&level.clusters, level.centroids.view().rows());
    let mut chosen = Vec::new();
    for ends in starts.windows(2) {
        let mut members = rows[ends[0]..ends[1]].to_vec();
        members.sort_by(|&a, &b| {
            let distance = |row: u32| level.distances[row as usize];
            distance(a).total_cmp(&distance(b)).then(a.cmp(&b))
        });
        chosen.extend(members.iter().take(sample).map(|&row| row as usize));
    }
    chosen
}

/// `k` clusters from `parents` of them, each split by a k-means of its own into as many children as the others, or as it
/// has rows. Every process splits some of them.
fn split(
    rows: &Share<'_>,
    k: usize,
    parents: usize,
    config: &HierarchyConfig,
    counter: u64,
) -> Result<Level> {
    let n = rows.total();
    let team = rows.team();
    let coarse = team.gather_numbers(&kmeans_of(rows, &config.kmeans(n, parents, counter))?.clusters)?;
    let (order, starts) = by_cluster(&coarse, parents);
    let sizes: Vec<u64> = starts.windows(2).map(|ends| (ends[1] - ends[0]) as u64).collect();
    let seed = config.kmeans(n, parents, counter + 1).seed;
    let shares = balanced_shares(&sizes, k as u64, &mut ChaCha8Rng::seed_from_u64(seed));
    let all: Vec<Parent> = (0..parents)
        .map(|number| Parent {
            rows: starts[number]..starts[number + 1],
            children: shares[number] as usize,
            counter: counter + 2 + number as u64,
        })
        .filter(|parent| parent.children > 0)
        .collect();
    let mut children = Children {
        centroids: Vec::with_capacity(k * rows.rows().dim()),
        clusters: vec![0; n],
        distances: vec![0.0; n],
    };
    let mut threads = [rayon::current_num_threads() as f64];
    team.sum(&mut threads)?;
    for parents in all.chunks(PARENTS_PER_THREAD * threads[0] as usize) {
        children.add(rows, parents, &order, config)?;
    }
    children.into_level(rows.rows().dim())
}

/// A cluster that is split.
struct Parent {
    /// Where its rows are in the order of parents.
    rows: Range<usize>,
    /// Into how many it is split, at least 1.
    children: usize,
    /// Number of its k-means.
    counter: u64,
}

/// What parents have been split into so far.
struct Children {
    centroids: Vec<f32>,
    clusters: Vec<u32>,
    distances: Vec<f64>,
}

impl Children {
    /// Splits `parents`, of which every process takes some; `order` are all rows in the order of parents.
    fn add(
        &mut self,
        rows: &Share<'_>,
        parents: &[Parent],
        order: &[u32],
        config: &HierarchyConfig,
    ) -> Result<()> {
        let (team, dim) = (rows.team(), rows.rows().dim());
        let members = |parents: &[Parent]| -> Vec<usize> {
            let rows = parents.iter().flat_map(|parent| &order[parent.rows.clone()]);
            rows.map(|&row| row as usize).collect()
        };
        let own = part_of(parents.len(), 1, team);
        let before = members(&parents[..own.start]).len();
        let members = members(parents);
        let features = rows.select(&members)?;
        let mut starts = vec![before];
        for parent in &parents[own.clone()] {
            starts.push(starts[starts.len() - 1] + parent.rows.len());
        }
        let split = parents[own]
            .par_iter()
            .zip(starts.par_windows(2))
            .map(|(parent, ends)| {
                let rows = Share::alone(features.view().range(ends[0]..ends[1]));
                plain(
                    &rows,
                    &rows,
                    &config.kmeans(rows.total(), parent.children, parent.counter),
                )
            });
        let split: Vec<Level> = split.collect::<Result<_>>()?;
        let centroids: Vec<&[f32]> = split.iter().map(|level| level.centroids.view().data()).collect();
        let clusters: Vec<&[u32]> = split.iter().map(|level| level.clusters.as_slice()).collect();
        let distances: Vec<&[f64]> = split.iter().map(|level| level.distances.as_slice()).collect();
        let mut first = (self.centroids.len() / dim) as u32;
        self.centroids.extend(team.gather_f32(&centroids.concat())?);
        let clusters = team.gather_numbers(&clusters.concat())?;
        let distances = team.gather_f64(&distances.concat())?;
        let mut next = 0;
        for parent in parents {
            for _ in parent.rows.clone() {
                self.clusters[members[next]] = first + clusters[next];
                self.distances[members[next]] = distances[next];
                next += 1;
            }
            first += parent.children as u32;
        }
        Ok(())
    }

    fn into_level(self, dim: usize) -> Result<Level> {
        let k = self.centroids.len() / dim;
        Ok(Level {
            centroids: Matrix::new(self.centroids, k, dim)?,
            clusters: self.clusters,
            distances: self.distances,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curation::testing::clustered;
    use crate::team::threads::on_team;

    fn config(levels: &[usize], sample_sizes: &[usize]) -> HierarchyConfig {
        HierarchyConfig {
            levels: levels.to_vec(),
            sample_sizes: sample_sizes.to_vec(),
            seed: 3,
            ..HierarchyConfig::default()
        }
    }

    /// Level by level, each row must lie in the nearest cluster, by two loops.
    #[test]
    fn every_row_is_with_its_nearest_centroid() {
        let rows = clustered(500, 6, 30, 0.3, 1);
        let levels = hierarchy(
            &Share::alone(rows.view()),
            &config(&[60, 12, 3], &[2, 3, 1]),
            |_| {},
        )
        .unwrap();
        assert_eq!(levels.len(), 3);
        let mut below = rows.view();
        for level in &levels {
            let squared = |a: &[f32], b: &[f32]| -> f64 {
                a.iter()
                    .zip(b)
                    .map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
                    .sum()
            };
            for row in 0..below.rows() {
                let to = |cluster: usize| squared(below.row(row), level.centroids.view().row(cluster));
                let own = to(level.clusters[row] as usize);
                let min = (0..level.centroids.view().rows())
                    .map(to)
                    .fold(f64::MAX, f64::min);
                assert!(own <= min + 1e-6, "{own} {min}");
                assert!((own - level.distances[row]).abs() < 1e-6);
            }
            below = level.centroids.view();
        }
    }

    /// 4,950 rows in one dense region and 50 spread as widely elsewhere: resampling must give the sparse region more of
    /// the centroids.
    #[test]
    fn resampling_moves_centroids_to_sparse_regions() {
        let mut data = clustered(4950, 2, 400, 2.0, 1).into_data();
        data.iter_mut().for_each(|v| *v *= 0.5);
        let sparse = clustered(50, 2, 50, 2.0, 2).into_data();
        data.extend(sparse.iter().map(|v| v * 0.5 + 10.0));
        let rows = Matrix::new(data, 5000, 2).unwrap();
        let sparse_centroids = |sample: usize| {
            let levels = hierarchy(&Share::alone(rows.view()), &config(&[100], &[sample]), |_| {}).unwrap();
            let centroids = levels[0].centroids.view();
            (0..centroids.rows())
                .filter(|&c| centroids.row(c)[0] > 5.0)
                .count()
        };
        let (plain, resampled) = (sparse_centroids(1), sparse_centroids(3));
        assert!(resampled > plain, "{plain} {resampled}");
    }

    #[test]
    fn a_split_level_covers_every_row_and_has_all_clusters() {
        let rows = clustered(900, 8, 12, 0.3, 4);
        let split = HierarchyConfig {
            split: Some(6),
            ..config(&[90, 9], &[1, 2])
        };
        let levels = hierarchy(&Share::alone(rows.view()), &split, |_| {}).unwrap();
        assert_eq!(levels[0].centroids.view().rows(), 90);
        let mut seen = levels[0].clusters.clone();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 85, "{}", seen.len());
        // Not far from one k-means over all rows.
        let inertia = |level: &Level| level.distances.iter().sum::<f64>();
        let plain = hierarchy(&Share::alone(rows.view()), &config(&[90], &[1]), |_| {}).unwrap();
        let ratio = inertia(&levels[0]) / inertia(&plain[0]);
        assert!(ratio < 1.15, "{ratio}");
    }

    #[test]
    fn processes_that_divide_the_rows_find_what_one_finds() {
        let rows = clustered(Share::BLOCK + 900, 8, 40, 0.3, 6);
        for split in [0, 7] {
            let config = HierarchyConfig {
                split: Some(split),
                iterations: 10,
                resampling: 2,
                ..config(&[120, 12], &[2, 3])
            };
            let one = hierarchy(&Share::alone(rows.view()), &config, |_| {}).unwrap();
            for size in [2, 3] {
                let found = on_team(size, |team| {
                    hierarchy(&Share::of_all(rows.view(), team), &config, |_| {}).unwrap()
                });
                assert!(found.iter().all(|found| *found == one), "{size} of {split}");
            }
        }
    }

    #[test]
    fn settings_that_make_no_hierarchy() {
        let rows = clustered(20, 3, 4, 0.3, 5);
        let error = |config: HierarchyConfig| {
            hierarchy(&Share::alone(rows.view()), &config, |_| {})
                .unwrap_err()
                .to_string()
        };
        assert!(error(config(&[], &[])).starts_with("levels: expected falling"));
        assert!(error(config(&[4, 4], &[1, 1])).contains("[4, 4]"));
        assert!(error(config(&[21], &[1])).contains("at most 20"));
        assert!(error(config(&[4, 2], &[1])).starts_with("sample_sizes"));
        let split = HierarchyConfig {
            split: Some(9),
            ..config(&[4], &[1])
        };
        assert!(error(split).starts_with("split"));
    }
}
