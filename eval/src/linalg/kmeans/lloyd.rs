//! Lloyd's iterations that score only what can have changed. Of every row a lower bound on the distance to all centroids but
//! its own is kept (Hamerly 2010); when the centroids move, it sinks by as much as the farthest of them moved. As in Ding et
//! al. 2015 the few that moved far are set apart, so that they do not spoil the bound of the others: the movers are scored
//! again for every row, all centroids only for rows whose bound no longer holds. Both are matrix products over gathered rows.
//! The clusters are those of a plain assignment in every iteration: a bound counts only where it holds with the rounding of
//! the products, and what is too close to tell is scored in full.

use super::assign::{
    NONE, Nearest, Rows, Targets, distances, nearest, padded, squared_distance, squared_norm,
};
use super::means;
use crate::linalg::binned::Bins;
use crate::linalg::neighbours::check_pair;
use crate::{Matrix, MatrixView, Result, Share};

use rayon::prelude::*;

/// Shares of the centroids that are tried as the number of movers, in 32nds.
const MOVERS_OF_32: [usize; 9] = [0, 1, 2, 4, 6, 8, 12, 16, 24];

/// Clusters, and what is known of the distances.
pub(super) struct Lloyd<'a> {
    share: Share<'a>,
    /// The rows of the share.
    features: MatrixView<'a>,
    bins: Bins,
    /// Squared length of each row.
    lengths: Vec<f64>,
    pub(super) centroids: Matrix,
    pub(super) clusters: Vec<u32>,
    /// Squared distance of each row to its centroid.
    pub(super) distances: Vec<f64>,
    /// Not above the distance of each row to any other centroid.
    others: Vec<f64>,
    slack: Slack,
}

/// What one iteration did.
pub(super) struct Step {
    /// Rows of all processes that changed their cluster.
    pub(super) changed: usize,
    /// Products of a row that is here and a centroid that it took; a plain assignment takes `rows x k`.
    pub(super) products: u64,
}

/// Which centroids moved far, and how far the others did at most.
struct Movers {
    numbers: Vec<u32>,
    others_moved: f64,
}

impl<'a> Lloyd<'a> {
    /// Assigns every row of `share` to the nearest of `centroids`.
    ///
    /// # Errors
    /// As [`super::assign`]; processes that cannot reach each other.
    pub(super) fn start(share: Share<'a>, centroids: Matrix) -> Result<Self> {
        let features = share.rows();
        check_pair(features, centroids.view())?;
        let magnitudes = features.data().par_iter().map(|value| value.abs());
        let largest = share.team().gather_f32(&[magnitudes.reduce(|| 0.0, f32::max)])?;
        let lengths = features
            .data()
            .par_chunks_exact(features.dim())
            .map(squared_norm)
            .collect();
        let mut lloyd = Self {
            share,
            features,
            bins: Bins::new(largest.into_iter().fold(0.0, f32::max), share.total()),
            lengths,
            slack: Slack::of_products_with(centroids.view()),
            centroids,
            clusters: vec![0; features.rows()],
            distances: vec![0.0; features.rows()],
            others: vec![0.0; features.rows()],
        };
        let all: Vec<u32> = (0..features.rows() as u32).collect();
        lloyd.score_all_centroids(&all);
        Ok(lloyd)
    }

    /// Moves the centroids to the means of their rows and assigns the rows again.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    pub(super) fn step(&mut self) -> Result<Step> {
        let before = self.centroids.clone();
        self.centroids = means(&self.share, self.bins, &self.clusters, &before)?;
        self.slack = Slack::of_products_with(self.centroids.view());
        let moved = self.moved(&before);
        self.distances = distances(self.features, self.centroids.view(), &self.clusters);
        let clusters = self.clusters.clone();
        let movers = self.movers(&moved);
        let (settled, mut unsettled) = self.by_bound(movers.others_moved);
        for &row in &settled {
            self.others[row as usize] -= movers.others_moved;
        }
        if !movers.numbers.is_empty() {
            unsettled.extend(self.score_movers(&settled, &movers.numbers));
            unsettled.sort_unstable();
        }
        self.score_all_centroids(&unsettled);
        let pairs = clusters.iter().zip(&self.clusters);
        let mut changed = [pairs.filter(|(a, b)| a != b).count() as f64];
        self.share.team().sum(&mut changed)?;
        Ok(Step {
            changed: changed[0] as usize,
            products: (settled.len() * movers.numbers.len() + unsettled.len() * moved.len()) as u64,
        })
    }

    /// Sum of the squared distances of all rows, of one block after the other.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    pub(super) fn inertia(&self) -> Result<f64> {
        let blocks = self.distances.chunks(Share::BLOCK);
        let sums: Vec<f64> = blocks.map(|block| block.iter().sum::<f64>()).collect();
        Ok(self.share.team().gather_f64(&sums)?.iter().sum())
    }

    /// How far each centroid moved.
    fn moved(&self, before: &Matrix) -> Vec<f64> {
        let dim = self.features.dim();
        let pairs = before
            .view()
            .data()
            .par_chunks_exact(dim)
            .zip(self.centroids.view().data().par_chunks_exact(dim));
        pairs
            .map(|(before, after)| squared_distance(before, after).sqrt())
            .collect()
    }

    /// The number of movers for which scoring them, and in full the rows that the others' movement unsettles, costs least.
    fn movers(&self, moved: &[f64]) -> Movers {
        let k = moved.len();
        let mut order: Vec<u32> = (0..k as u32).collect();
        order.sort_by(|&a, &b| moved[b as usize].total_cmp(&moved[a as usize]).then(a.cmp(&b)));
        let cost = |count: usize| {
            let others_moved = moved[order[count] as usize];
            let settled = (0..self.clusters.len())
                .into_par_iter()
                .filter(|&row| self.settled(row, others_moved))
                .count();
            settled * padded(count) + (self.clusters.len() - settled) * padded(k)
        };
        let count = MOVERS_OF_32
            .iter()
            .map(|share| share * k / 32)
            .min_by_key(|&count| cost(count))
            .expect("there are shares");
        Movers {
            numbers: order[..count].to_vec(),
            others_moved: moved[order[count] as usize],
        }
    }

    fn settled(&self, row: usize, others_moved: f64) -> bool {
        let away = self.others[row] - others_moved;
        away > 0.0 && away * away > self.distances[row] + 2.0 * self.slack.at(self.lengths[row])
    }

    /// Rows that no centroid can be nearer to than their own if none moved farther than `others_moved`, and the others.
    fn by_bound(&self, others_moved: f64) -> (Vec<u32>, Vec<u32>) {
        (0..self.clusters.len() as u32)
            .into_par_iter()
            .partition(|&row| self.settled(row as usize, others_moved))
    }

    /// Scores `movers` for `rows`, settled otherwise: moves the rows that one of them is now nearest to, and returns those
    /// of which that cannot be decided.
    fn score_movers(&mut self, rows: &[u32], movers: &[u32]) -> Vec<u32> {
        let mut place_of = vec![NONE; self.centroids.view().rows()];
        for (place, &mover) in movers.iter().enumerate() {
            place_of[mover as usize] = place as u32;
        }
        let own: Vec<u32> = rows
            .iter()
            .map(|&row| place_of[self.clusters[row as usize] as usize])
            .collect();
        let numbers: Vec<usize> = movers.iter().map(|&mover| mover as usize).collect();
        let few = self.centroids.view().select(&numbers);
        let found = nearest(
            self.features,
            Rows::Listed(rows),
            &Targets::new(few.view()),
            Some(&own),
        );
        let mut unsure = Vec::new();
        for (&row, found) in rows.iter().zip(found) {
            let at = row as usize;
            let off = self.slack.at(self.lengths[at]);
            let (best, second) = self.squared(at, found);
            if best - off > self.distances[at] + off {
                self.others[at] = self.others[at].min((best - off).sqrt());
            } else if best + off < self.distances[at] - off && second - off > best + off {
                let left_behind = self.distances[at].sqrt();
                let mover = movers[found.place as usize];
                self.others[at] = self.others[at].min(left_behind).min((second - off).sqrt());
                self.clusters[at] = mover;
                self.distances[at] =
                    squared_distance(self.features.row(at), self.centroids.view().row(mover as usize));
            } else {
                unsure.push(row);
            }
        }
        unsure
    }

    /// Assigns `rows` as a plain assignment does.
    fn score_all_centroids(&mut self, rows: &[u32]) {
        let listed = if rows.len() == self.features.rows() {
            Rows::All
        } else {
            Rows::Listed(rows)
        };
        let found = nearest(self.features, listed, &Targets::new(self.centroids.view()), None);
        let results: Vec<(f64, f64)> = rows
            .par_iter()
            .zip(&found)
            .map(|(&row, &found)| {
                let at = row as usize;
                let centroid = self.centroids.view().row(found.place as usize);
                let (_, second) = self.squared(at, found);
                let others = (second - self.slack.at(self.lengths[at])).max(0.0).sqrt();
                (squared_distance(self.features.row(at), centroid), others)
            })
            .collect();
        for ((&row, found), (distance, others)) in rows.iter().zip(found).zip(results) {
            let at = row as usize;
            self.clusters[at] = found.place;
            self.distances[at] = distance;
            self.others[at] = others;
        }
    }

    /// Squared distances of a row from its two greatest scores; infinite where there is no such centroid.
    fn squared(&self, row: usize, found: Nearest) -> (f64, f64) {
        let squared = |score: f32| self.lengths[row] - 2.0 * f64::from(score);
        (squared(found.score), squared(found.second))
    }
}

/// How far a squared distance from f32 products may be off: the error of a sum of `dim` products, of half a squared length,
/// and of their difference, as a share of the squared lengths of the row and of the longest centroid.
#[derive(Clone, Copy)]
struct Slack {
    share: f64,
    longest: f64,
}

impl Slack {
    fn of_products_with(centroids: MatrixView<'_>) -> Self {
        let lengths = centroids
            .data()
            .par_chunks_exact(centroids.dim())
            .map(squared_norm);
        Self {
            // Twice the bound: a rounding is off by half of EPSILON.
            share: (centroids.dim() + 8) as f64 * f64::from(f32::EPSILON),
            longest: lengths.reduce(|| 0.0, f64::max),
        }
    }

    fn at(self, length: f64) -> f64 {
        self.share * (length + self.longest)
    }
}
