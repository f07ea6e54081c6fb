//! Training and running of many linear heads. Heads of one input share its products: their weights are one
//! `[heads * K, F]` matrix. Groups of such heads never meet, so each is trained by one thread from start to end.

use super::inputs::{Input, InputView, ProbeFeatures};
use super::{Length, LinearProbeConfig, MIN_EPOCHS, REFERENCE_STEPS};
use crate::Split;
use crate::draws::{Order, normal};
use crate::linalg::gemm::{Operand, Threads, gemm};
use crate::protocols::logistic::product;
use crate::protocols::logistic::softmax::{RowScratch, softmax_cross_entropy};
use crate::protocols::scores;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Columns of a group: enough for the products to run at speed, few enough to keep several threads busy. Fixed, so that
/// the number of threads changes no result.
const GROUP_COLUMNS: usize = 64;
/// Rows whose logits are computed together.
const BLOCK_ROWS: usize = 256;
const MOMENTUM: f64 = 0.9;
/// Standard deviation of the initial weights.
const INITIAL_DEVIATION: f64 = 0.01;
/// Streams of the seed for initial weights, one a head, from here on.
const WEIGHT_STREAM: u64 = 1 << 33;

/// One point of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Head {
    /// Place in the grid.
    pub index: usize,
    pub input: Input,
    /// As listed, before it is scaled by the batch size.
    pub learning_rate: f64,
}

impl Head {
    /// A name that no other head of the grid has. The reference rounds the learning rate, and two heads with one name
    /// would hide each other.
    pub(super) fn key(&self) -> String {
        format!(
            "classifier_{:02}_{}_lr_{}",
            self.index, self.input, self.learning_rate
        )
    }
}

/// A head after training: `[K, F]` weights and `[K]` biases.
pub(super) struct TrainedHead {
    input: Input,
    weights: Vec<f32>,
    biases: Vec<f32>,
}

/// Length of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) steps: usize,
    pub(super) batch: usize,
}

impl Schedule {
    /// For `rows` training rows: epochs are as many full batches as they hold, at least one.
    pub(super) fn new(rows: usize, config: &LinearProbeConfig) -> Self {
        let batch = config.batch_size.min(rows).max(1);
        let of_epochs = |epochs: usize| (rows.saturating_mul(epochs) / batch).max(1);
        let steps = match config.length {
            Length::Reference => of_epochs(MIN_EPOCHS).max(REFERENCE_STEPS),
            Length::Epochs(epochs) => of_epochs(epochs),
            Length::Steps(steps) => steps.max(1),
        };
        Self { steps, batch }
    }

    /// Passes over `rows` training rows.
    pub(super) fn epochs(self, rows: usize) -> f64 {
        self.steps as f64 * self.batch as f64 / rows as f64
    }

    /// Cosine from 1 to 0 over the steps.
    fn factor(self, step: usize) -> f64 {
        let passed = step as f64 / self.steps as f64;
        0.5 * (1.0 + (std::f64::consts::PI * passed).cos())
    }
}

/// Trains `grid` on `rows` of `data`; results in the order of the grid.
pub(super) fn train(
    data: Split<'_, &ProbeFeatures>,
    rows: &[usize],
    grid: &[Head],
    classes: usize,
    config: &LinearProbeConfig,
) -> Vec<TrainedHead> {
    let groups: Vec<&[Head]> = grid
        .chunk_by(|a, b| a.input == b.input)
        .flat_map(|heads| {
            let groups = (heads.len() * classes).div_ceil(GROUP_COLUMNS).min(heads.len());
            heads.chunks(heads.len().div_ceil(groups))
        })
        .collect();
    groups
        .into_par_iter()
        .flat_map_iter(|heads| {
            let mut group = Group::new(heads, data.features.view(heads[0].input), classes, config);
            group.train(data.labels, rows, config);
            group.finish()
        })
        .collect()
}

/// Heads of one input in training.
struct Group<'a> {
    heads: &'a [Head],
    input: InputView<'a>,
    classes: usize,
    /// `[heads * K, F]`.
    weights: Vec<f32>,
    weight_velocity: Vec<f32>,
    /// `[heads * K]`.
    biases: Vec<f32>,
    bias_velocity: Vec<f32>,
}

impl<'a> Group<'a> {
    fn new(heads: &'a [Head], input: InputView<'a>, classes: usize, config: &LinearProbeConfig) -> Self {
        let per_head = classes * input.dim;
        let mut weights = Vec::with_capacity(heads.len() * per_head);
        for head in heads {
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            rng.set_stream(WEIGHT_STREAM + head.index as u64);
            weights.extend((0..per_head).map(|_| (INITIAL_DEVIATION * normal(&mut rng)) as f32));
        }
        Self {
            heads,
            classes,
            weight_velocity: vec![0.0; weights.len()],
            weights,
            biases: vec![0.0; heads.len() * classes],
            bias_velocity: vec![0.0; heads.len() * classes],
            input,
        }
    }

    fn train(&mut self, labels: &[u32], rows: &[usize], config: &LinearProbeConfig) {
        let schedule = Schedule::new(rows.len(), config);
        let mut order = Order::new(rows, config.seed);
        let (mut batch, mut batch_labels) = (Vec::new(), Vec::new());
        let (mut x, mut logits, mut residual) = (Vec::new(), Vec::new(), Vec::new());
        let mut scratch = RowScratch::default();
        for step in 0..schedule.steps {
            order.next_batch(schedule.batch, &mut batch);
            self.input.gather(&batch, &mut x);
            batch_labels.clear();
            batch_labels.extend(batch.iter().map(|&row| labels[row]));
            logits.resize(self.biases.len() * batch.len(), 0.0);
            residual.resize(logits.len(), 0.0);
            self.forward(&x, &mut logits);
            let per_head = self.classes * batch.len();
            for (z, residual) in logits
                .chunks_exact(per_head)
                .zip(residual.chunks_exact_mut(per_head))
            {
                softmax_cross_entropy(z, z, 0.0, &batch_labels, residual, &mut scratch);
            }
            let rate = schedule.factor(step) * config.batch_size as f64 / 256.0;
            self.step(&x, &residual, batch.len(), rate);
        }
    }

    /// Logits `[heads * K, B]` of `x` `[B, F]`.
    fn forward(&self, x: &[f32], logits: &mut [f32]) {
        product::logits(x, &self.weights, self.input.dim, logits);
        let rows = x.len() / self.input.dim;
        for (row, bias) in logits.chunks_exact_mut(rows).zip(&self.biases) {
            row.iter_mut().for_each(|z| *z += bias);
        }
    }

    /// One step of SGD with momentum (torch's form: `v = 0.9 v + g`, `w -= rate * v`), g the mean over the batch.
    fn step(&mut self, x: &[f32], residual: &[f32], rows: usize, rate: f64) {
        let dim = self.input.dim;
        let inverse = 1.0 / rows as f32;
        gemm(
            &mut self.weight_velocity,
            inverse,
            Operand::row_major(residual, self.biases.len(), rows),
            Operand::row_major(x, rows, dim),
            MOMENTUM as f32,
            Threads::One,
        );
        for (velocity, residual) in self.bias_velocity.iter_mut().zip(residual.chunks_exact(rows)) {
            *velocity = MOMENTUM as f32 * *velocity + inverse * residual.iter().sum::<f32>();
        }
        for (i, head) in self.heads.iter().enumerate() {
            let rate = (rate * head.learning_rate) as f32;
            let columns = i * self.classes..(i + 1) * self.classes;
            let weights = columns.start * dim..columns.end * dim;
            descend(
                &mut self.weights[weights.clone()],
                &self.weight_velocity[weights],
                rate,
            );
            descend(
                &mut self.biases[columns.clone()],
                &self.bias_velocity[columns],
                rate,
            );
        }
    }

    fn finish(self) -> Vec<TrainedHead> {
        let weights = self.weights.chunks_exact(self.classes * self.input.dim);
        let biases = self.biases.chunks_exact(self.classes);
        let parts = self.heads.iter().zip(weights.zip(biases));
        parts
            .map(|(head, (weights, biases))| TrainedHead {
                input: head.input,
                weights: weights.to_vec(),
                biases: biases.to_vec(),
            })
            .collect()
    }
}

fn descend(values: &mut [f32], velocity: &[f32], rate: f32) {
    for (value, velocity) in values.iter_mut().zip(velocity) {
        *value -= rate * velocity;
    }
}

/// Top-1 accuracy of every head on `rows` of `data`.
pub(super) fn top1(
    data: Split<'_, &ProbeFeatures>,
    rows: &[usize],
    heads: &[TrainedHead],
    classes: usize,
) -> Vec<f64> {
    let labels = data.labels_of(rows);
    let accuracies = heads
        .iter()
        .map(|head| scores::top1(&logits_of(data.features, rows, head, classes), &labels, classes));
    accuracies.collect()
}

/// Logits `[n, K]` of every row, row after row.
pub(super) fn logits(features: &ProbeFeatures, head: &TrainedHead, classes: usize) -> Vec<f32> {
    let rows: Vec<usize> = (0..features.cls_blocks[0].view().rows()).collect();
    logits_of(features, &rows, head, classes)
}

fn logits_of(features: &ProbeFeatures, rows: &[usize], head: &TrainedHead, classes: usize) -> Vec<f32> {
    let input = features.view(head.input);
    let mut logits = vec![0.0; rows.len() * classes];
    logits
        .par_chunks_mut(BLOCK_ROWS * classes)
        .zip(rows.par_chunks(BLOCK_ROWS))
        .for_each_init(Vec::new, |x, (out, rows)| {
            input.gather(rows, x);
            // [B, K] = [B, F] x [F, K], on top of the biases.
            for row in out.chunks_exact_mut(classes) {
                row.copy_from_slice(&head.biases);
            }
            gemm(
                out,
                1.0,
                Operand::row_major(x, rows.len(), input.dim),
                Operand::row_major(&head.weights, classes, input.dim).transposed(),
                1.0,
                Threads::One,
            );
        });
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_is_as_long_as_the_references_and_ten_epochs_at_least() {
        let of = |rows: usize, length: Length| {
            let config = LinearProbeConfig {
                length,
                ..LinearProbeConfig::default()
            };
            let schedule = Schedule::new(rows, &config);
            (schedule.steps, schedule.batch)
        };
        assert_eq!(of(60_000, Length::Reference), (12_500, 128));
        assert_eq!(of(160_000, Length::Reference), (12_500, 128));
        assert_eq!(of(1_281_167, Length::Reference), (100_091, 128));
        assert_eq!(of(3, Length::Reference), (12_500, 3));
        assert_eq!(of(60_000, Length::Epochs(10)), (4687, 128));
        assert_eq!(of(3, Length::Epochs(10)), (10, 3));
        assert_eq!(of(60_000, Length::Steps(7)), (7, 128));
        assert_eq!(of(3, Length::Steps(0)), (1, 3));
        let config = LinearProbeConfig {
            length: Length::Epochs(10),
            ..LinearProbeConfig::default()
        };
        let schedule = Schedule::new(128, &config);
        assert_eq!((schedule.factor(0), schedule.factor(5)), (1.0, 0.5));
        assert_eq!(schedule.epochs(128), 10.0);
    }

    /// One head and one class pair, two steps by hand in f64.
    #[test]
    fn two_steps_match_torch_sgd_written_out() {
        let features = ProbeFeatures {
            cls_blocks: vec![crate::Matrix::new(vec![1.0, 2.0, -1.0, 0.5], 2, 2).unwrap()],
            patch_mean: None,
        };
        let input = Input {
            blocks: 1,
            average_pool: false,
        };
        let head = Head {
            index: 0,
            input,
            learning_rate: 0.7,
        };
        let config = LinearProbeConfig {
            length: Length::Epochs(2),
            batch_size: 2,
            ..LinearProbeConfig::default()
        };
        let heads = [head];
        let mut group = Group::new(&heads, features.view(input), 2, &config);
        let mut w: Vec<f64> = group.weights.iter().map(|w| f64::from(*w)).collect();
        let (mut b, mut vw, mut vb) = ([0.0; 2], [0.0; 4], [0.0; 2]);
        let (x, y) = ([[1.0, 2.0], [-1.0, 0.5]], [1usize, 0]);
        for rate in [0.7 * 2.0 / 256.0, 0.35 * 2.0 / 256.0] {
            vw.iter_mut().chain(&mut vb).for_each(|v| *v *= 0.9);
            for (x, &y) in x.iter().zip(&y) {
                let z: Vec<f64> = (0..2)
                    .map(|k| b[k] + w[2 * k] * x[0] + w[2 * k + 1] * x[1])
                    .collect();
                let sum = z[0].exp() + z[1].exp();
                for k in 0..2 {
                    let residual = (z[k].exp() / sum - f64::from(u8::from(k == y))) / 2.0;
                    vw[2 * k] += residual * x[0];
                    vw[2 * k + 1] += residual * x[1];
                    vb[k] += residual;
                }
            }
            w.iter_mut().zip(vw).for_each(|(w, v)| *w -= rate * v);
            b.iter_mut().zip(vb).for_each(|(b, v)| *b -= rate * v);
        }
        group.train(&[1, 0], &[0, 1], &config);
        for (found, expected) in group.weights.iter().chain(&group.biases).zip(w.iter().chain(&b)) {
            assert!((f64::from(*found) - expected).abs() < 1e-8, "{found} {expected}");
        }
    }

    /// The training loop of `dinov2/eval/linear.py` (`tests/fixtures/make_reference.py`), from its initial weights.
    #[test]
    fn steps_are_those_of_the_references_loop() {
        use super::super::Length;
        use crate::testing::{assert_near, reference};

        let expected = reference("linear_probe");
        let (n, dim, classes) = (
            expected.count("rows"),
            expected.count("dim"),
            expected.count("classes"),
        );
        let matrix = |values: Vec<f32>| crate::Matrix::new(values, n, dim).unwrap();
        let features = ProbeFeatures {
            cls_blocks: expected
                .named("cls")
                .rows()
                .map(|block| matrix(block.floats()))
                .collect(),
            patch_mean: Some(matrix(expected.f32s("patch_mean"))),
        };
        let labels: Vec<u32> = expected
            .named("labels")
            .bytes()
            .into_iter()
            .map(u32::from)
            .collect();
        let config = LinearProbeConfig {
            length: Length::Steps(expected.count("steps")),
            batch_size: n,
            ..LinearProbeConfig::default()
        };
        let rows: Vec<usize> = (0..n).collect();
        let heads: Vec<_> = expected.named("heads").rows().collect();
        assert_eq!(heads.len(), 8);
        for (index, head) in heads.iter().enumerate() {
            let input = Input {
                blocks: head.count("blocks"),
                average_pool: head.is_true("average_pool"),
            };
            let one = [Head {
                index,
                input,
                learning_rate: head.number("learning_rate"),
            }];
            let mut group = Group::new(&one, features.view(input), classes, &config);
            let (start, end) = (head.named("start"), head.named("end"));
            (group.weights, group.biases) = (start.f32s("weights"), start.f32s("biases"));
            group.train(&labels, &rows, &config);
            let what = one[0].key();
            assert_near(&group.weights, &end.f32s("weights"), 2e-5, &what);
            assert_near(&group.biases, &end.f32s("biases"), 2e-5, &what);
        }
    }

    #[test]
    fn logits_are_products_and_biases() {
        let features = ProbeFeatures {
            cls_blocks: vec![crate::Matrix::new(vec![1.0, 2.0, -1.0, 0.5], 2, 2).unwrap()],
            patch_mean: None,
        };
        let head = TrainedHead {
            input: Input {
                blocks: 1,
                average_pool: false,
            },
            weights: vec![1.0, 2.0, -3.0, 0.5, 0.0, 4.0],
            biases: vec![0.25, -8.0, 16.0],
        };
        assert_eq!(
            logits(&features, &head, 3),
            [5.25, -10.0, 24.0, 0.25, -4.75, 18.0]
        );
        assert_eq!(logits_of(&features, &[1], &head, 3), [0.25, -4.75, 18.0]);
    }
}
