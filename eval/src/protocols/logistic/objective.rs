//! Logits, loss and gradient of all rows. The logits `Z` of the weights and `ZD` of the search direction are kept, so
//! that a line-search probe is a sweep over `Z + t ZD` without a matrix product, and one pass over the features
//! gives both the direction's logits and the gradient at the first step tried.

use super::product;
use super::softmax::{LossSlope, RowScratch, exp_non_positive, softmax_cross_entropy};
use crate::MatrixView;
use rayon::prelude::*;

/// Rows of one block: its features stay in the L2 cache between the two products.
const BLOCK_ROWS: usize = 256;
/// Upper bound of the memory for partial gradients, bytes.
const PARTIAL_BYTES: usize = 64 << 20;

/// Features, labels and the logits of one optimisation. Parameters are f64 `[K, d]` weights followed by `[K]` biases.
pub(super) struct Objective<'a> {
    x: MatrixView<'a>,
    labels: &'a [u32],
    classes: usize,
    /// Rows of a lane: a run of blocks with its own partial sums. Depends on the shape alone, never on the threads.
    lane_rows: usize,
    z: Vec<f32>,
    zd: Vec<f32>,
    direction: Vec<f32>,
    lanes: Vec<Lane>,
}

/// Partial sums and buffers of one run of blocks.
#[derive(Default)]
struct Lane {
    residual: Vec<f32>,
    block_gradient: Vec<f32>,
    gradient: Vec<f64>,
    scratch: RowScratch,
    total: LossSlope,
}

/// One block of rows: `x` `[B, d]`, logits `[K, B]`.
struct Block<'b> {
    x: &'b [f32],
    labels: &'b [u32],
    z: &'b mut [f32],
    zd: &'b mut [f32],
}

impl<'a> Objective<'a> {
    /// Allocates the logits of `x` for `classes` classes; every label is below `classes`.
    pub(super) fn new(x: MatrixView<'a>, labels: &'a [u32], classes: usize) -> Self {
        let blocks = x.rows().div_ceil(BLOCK_ROWS);
        let lane_bytes = (x.dim() + 1) * classes * size_of::<f64>();
        let max_lanes = (PARTIAL_BYTES / lane_bytes).clamp(8, 64);
        let lane_rows = blocks.div_ceil(max_lanes).max(1) * BLOCK_ROWS;
        let lanes = (0..x.rows().div_ceil(lane_rows))
            .map(|_| Lane::default())
            .collect();
        Self {
            x,
            labels,
            classes,
            lane_rows,
            z: vec![0.0; x.rows() * classes],
            zd: vec![0.0; x.rows() * classes],
            direction: vec![0.0; x.dim() * classes],
            lanes,
        }
    }

    pub(super) fn features(&self) -> MatrixView<'a> {
        self.x
    }

    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// Number of parameters: `K (d + 1)`.
    pub(super) fn n_parameters(&self) -> usize {
        self.classes * (self.x.dim() + 1)
    }

    /// Sets `Z` to the logits of `parameters`; loss there, its gradient into `gradient`.
    pub(super) fn restart(&mut self, parameters: &[f64], gradient: &mut [f64]) -> LossSlope {
        self.z.fill(0.0);
        self.zd.fill(0.0);
        let total = self.follow(0.0, parameters, 1.0, gradient);
        std::mem::swap(&mut self.z, &mut self.zd);
        total
    }

    /// Moves `Z` by `advance * ZD`, replaces `ZD` by the logits of `direction`, and evaluates at `Z + t ZD`: one pass
    /// over the features, two products.
    pub(super) fn follow(
        &mut self,
        advance: f32,
        direction: &[f64],
        t: f32,
        gradient: &mut [f64],
    ) -> LossSlope {
        let (dim, classes) = (self.x.dim(), self.classes);
        let (weights, biases) = direction.split_at(classes * dim);
        for (narrow, wide) in self.direction.iter_mut().zip(weights) {
            *narrow = *wide as f32;
        }
        let weights = std::mem::take(&mut self.direction);
        let total = self.sweep(|lane, block| {
            let rows = block.labels.len();
            for (z, zd) in block.z.iter_mut().zip(block.zd.iter()) {
                *z += advance * zd;
            }
            product::logits(block.x, &weights, dim, block.zd);
            for (zd, bias) in block.zd.chunks_exact_mut(rows).zip(biases) {
                let bias = *bias as f32;
                zd.iter_mut().for_each(|zd| *zd += bias);
            }
            lane.evaluate(&block, t);
            lane.add_gradient(&block, dim, classes);
        });
        self.direction = weights;
        self.reduce_gradient(gradient);
        total
    }

    /// Loss and slope at `Z + t ZD`: no product.
    pub(super) fn probe(&mut self, t: f32) -> LossSlope {
        self.sweep(|lane, block| lane.evaluate(&block, t))
    }

    /// Loss, slope and gradient at `Z + t ZD`: one product.
    pub(super) fn gradient_at(&mut self, t: f32, gradient: &mut [f64]) -> LossSlope {
        let (dim, classes) = (self.x.dim(), self.classes);
        let total = self.sweep(|lane, block| {
            lane.evaluate(&block, t);
            lane.add_gradient(&block, dim, classes);
        });
        self.reduce_gradient(gradient);
        total
    }

    /// `p (1 - p)` of class `class` at every row, at the logits `Z`.
    pub(super) fn class_weights(&self, class: usize) -> Vec<f32> {
        let mut weights = vec![0.0; self.labels.len()];
        weights
            .par_chunks_mut(BLOCK_ROWS)
            .zip(self.z.par_chunks(BLOCK_ROWS * self.classes))
            .for_each(|(weights, z)| {
                let rows = weights.len();
                let own = &z[class * rows..(class + 1) * rows];
                let mut max = own.to_vec();
                for z in z.chunks_exact(rows) {
                    max.iter_mut().zip(z).for_each(|(max, z)| *max = max.max(*z));
                }
                let mut sum = vec![0.0f32; rows];
                for z in z.chunks_exact(rows) {
                    for ((sum, z), max) in sum.iter_mut().zip(z).zip(&max) {
                        *sum += exp_non_positive(z - max);
                    }
                }
                for i in 0..rows {
                    let p = exp_non_positive(own[i] - max[i]) / sum[i];
                    weights[i] = p * (1.0 - p);
                }
            });
        weights
    }

    /// Runs `work` over every block, lanes in parallel; sums the lanes in their order.
    fn sweep(&mut self, work: impl Fn(&mut Lane, Block<'_>) + Sync) -> LossSlope {
        let (dim, classes) = (self.x.dim(), self.classes);
        let lane_values = self.lane_rows * classes;
        let (x, labels) = (self.x.data(), self.labels);
        let n_gradient = classes * (dim + 1);
        self.z
            .par_chunks_mut(lane_values)
            .zip(self.zd.par_chunks_mut(lane_values))
            .zip(labels.par_chunks(self.lane_rows))
            .zip(x.par_chunks(self.lane_rows * dim))
            .zip(self.lanes.par_iter_mut())
            .for_each(|((((z, zd), labels), x), lane)| {
                lane.total = LossSlope::default();
                lane.gradient.clear();
                lane.gradient.resize(n_gradient, 0.0);
                let blocks = z
                    .chunks_mut(BLOCK_ROWS * classes)
                    .zip(zd.chunks_mut(BLOCK_ROWS * classes))
                    .zip(labels.chunks(BLOCK_ROWS))
                    .zip(x.chunks(BLOCK_ROWS * dim));
                for (((z, zd), labels), x) in blocks {
                    work(lane, Block { x, labels, z, zd });
                }
            });
        let mut total = LossSlope::default();
        for lane in &self.lanes {
            total.loss += lane.total.loss;
            total.slope += lane.total.slope;
            total.spread += lane.total.spread;
        }
        total
    }

    fn reduce_gradient(&self, gradient: &mut [f64]) {
        gradient.fill(0.0);
        for lane in &self.lanes {
            for (sum, part) in gradient.iter_mut().zip(&lane.gradient) {
                *sum += part;
            }
        }
    }
}

impl Lane {
    /// Adds the block's loss and slope, and leaves its residual `p - onehot` `[K, B]`.
    fn evaluate(&mut self, block: &Block<'_>, t: f32) {
        self.residual.resize(block.z.len(), 0.0);
        let found = softmax_cross_entropy(
            block.z,
            block.zd,
            t,
            block.labels,
            &mut self.residual,
            &mut self.scratch,
        );
        self.total.loss += found.loss;
        self.total.slope += found.slope;
        self.total.spread += found.spread;
    }

    /// Adds the gradient of the residual that [`Lane::evaluate`] left.
    fn add_gradient(&mut self, block: &Block<'_>, dim: usize, classes: usize) {
        let rows = block.labels.len();
        self.block_gradient.resize(classes * dim, 0.0);
        product::gradient(&self.residual, block.x, dim, &mut self.block_gradient);
        let (weights, biases) = self.gradient.split_at_mut(classes * dim);
        for (sum, part) in weights.iter_mut().zip(&self.block_gradient) {
            *sum += f64::from(*part);
        }
        for (sum, part) in biases.iter_mut().zip(self.residual.chunks_exact(rows)) {
            *sum += f64::from(part.iter().sum::<f32>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    /// Many blocks, the last one not full: each row's weight is its own.
    #[test]
    fn weights_of_a_class_are_those_of_every_row() {
        let (rows, dim, classes) = (1000, 2, 3);
        let data = (0..rows * dim).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = Matrix::new(data, rows, dim).unwrap();
        let labels: Vec<u32> = (0..rows as u32).map(|row| row % 3).collect();
        let mut objective = Objective::new(x.view(), &labels, classes);
        let parameters = [1.0, -2.0, 0.5, 3.0, -1.0, 0.0, 0.25, -0.5, 0.0];
        objective.restart(&parameters, &mut [0.0; 9]);
        for class in 0..classes {
            let found = objective.class_weights(class);
            for (row, found) in found.iter().enumerate() {
                let of_row = x.view().row(row);
                let e: Vec<f64> = (0..classes)
                    .map(|k| {
                        let along = |j: usize| parameters[k * dim + j] * f64::from(of_row[j]);
                        (parameters[classes * dim + k] + along(0) + along(1)).exp()
                    })
                    .collect();
                let p = e[class] / e.iter().sum::<f64>();
                let expected = p * (1.0 - p);
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{class}, {row}");
            }
        }
    }
}
