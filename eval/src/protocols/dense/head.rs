//! A linear layer on patch features, and its training by AdamW. Which loss it is trained by is the caller's: segmentation
//! and depth differ in nothing else but their recipes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::adamw::{AdamW, Step, clip};
use super::features::{ChannelMoments, PatchFeatures, Standard};
use super::recipe::{Normalisation, Recipe, Start};
use crate::draws::{Order, normal};
use crate::linalg::gemm::{Operand, Threads, gemm};

/// Standard deviation of the initial weights (mmseg's `normal_init`).
const INITIAL_DEVIATION: f64 = 0.01;
/// Stream of the seed for the initial weights, apart from those of [`Order`].
const WEIGHT_STREAM: u64 = 1 << 33;
/// Share of a batch's statistics in batch norm's running ones.
const BATCH_SHARE: f64 = 0.1;

/// A loss on the logits of windows.
pub(crate) trait Loss: Sync {
    /// Mean loss of a batch. `logits` holds one `[rows * columns, K]` a window of `windows`; each is replaced by the
    /// gradient of the loss. `iteration` counts from 0.
    fn gradient(&self, windows: &[usize], logits: &mut [Vec<f32>], iteration: usize) -> f64;
}

/// How a head is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Training {
    pub iterations: usize,
    /// Windows of one step.
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub seed: u64,
    pub recipe: Recipe,
}

/// A trained head: `[K, D]` weights and `[K]` biases over channels that are brought to a standard.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    standard: Standard,
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl Head {
    /// Trains on `windows` of `features`.
    pub(crate) fn train(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        loss: &impl Loss,
        training: &Training,
    ) -> Self {
        let mut layer = Layer::new(features, windows, outputs, training.seed, &training.recipe);
        let mut order = Order::new(windows, training.seed);
        let size = training.batch_size.min(windows.len());
        layer.train(features, loss, training, |batch| order.next_batch(size, batch));
        layer.head()
    }

    /// Logits `[n, K]` of patches `[n, D]`.
    pub(crate) fn logits(&self, patches: &[f32]) -> Vec<f32> {
        let mut x = Vec::new();
        self.standard.apply(patches, &mut x);
        forward(&x, &self.weights, &self.biases)
    }
}

/// Logits `[n, K]` of `x` `[n, D]` by weights `[K, D]` and biases `[K]`.
fn forward(x: &[f32], weights: &[f32], biases: &[f32]) -> Vec<f32> {
    let outputs = biases.len();
    let dim = weights.len() / outputs;
    let rows = x.len() / dim;
    // [n, K] = [n, D] x [D, K], on top of the biases.
    let mut logits = Vec::with_capacity(rows * outputs);
    (0..rows).for_each(|_| logits.extend_from_slice(biases));
    gemm(
        &mut logits,
        1.0,
        Operand::row_major(x, rows, dim),
        Operand::row_major(weights, outputs, dim).transposed(),
        1.0,
        Threads::One,
    );
    logits
}

/// Gradients of weights `[K, D]` and biases `[K]` from that of one window's logits `[n, K]`.
fn parameter_gradient(x: &[f32], gradient: &[f32], outputs: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = gradient.len() / outputs;
    let dim = x.len() / rows;
    let (mut weights, mut biases) = (vec![0.0; outputs * dim], vec![0.0; outputs]);
    // [K, D] = [K, n] x [n, D]
    gemm(
        &mut weights,
        1.0,
        Operand::row_major(gradient, rows, outputs).transposed(),
        Operand::row_major(x, rows, dim),
        0.0,
        Threads::One,
    );
    for row in gradient.chunks_exact(outputs) {
        biases.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
    }
    (weights, biases)
}

/// torch's batch norm between channels and layer: `scale * (x - mean) / deviation + shift`. The features are frozen, so
/// its statistics have no gradient.
#[derive(Debug, Clone, PartialEq)]
struct BatchNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl BatchNorm {
    fn new(dim: usize) -> Self {
        Self {
            scale: vec![1.0; dim],
            shift: vec![0.0; dim],
            mean: vec![0.0; dim],
            variance: vec![1.0; dim],
        }
    }

    /// The statistics of a batch, which the running ones follow; their variance is divided by n - 1.
    fn of_batch(&mut self, features: &PatchFeatures, batch: &[usize]) -> Standard {
        let found = ChannelMoments::from_features(features, batch);
        let unbiased = found.n as f64 / found.n.saturating_sub(1).max(1) as f64;
        let follow = |running: &mut f64, new: f64| *running += BATCH_SHARE * (new - *running);
        let means = self.mean.iter_mut().zip(&found.mean);
        means.for_each(|(running, &new)| follow(running, new));
        let variances = self.variance.iter_mut().zip(&found.variance);
        variances.for_each(|(running, &new)| follow(running, unbiased * new));
        Standard::from_moments(&found.mean, &found.variance)
    }

    /// The layer's weights and biases with the affine part in them.
    fn folded(&self, weights: &[f32], biases: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let dim = self.scale.len();
        let scaled = weights.chunks_exact(dim).flat_map(|row| {
            let pairs = row.iter().zip(&self.scale);
            pairs.map(|(weight, scale)| weight * scale)
        });
        let shifted = weights.chunks_exact(dim).zip(biases).map(|(row, bias)| {
            let pairs = row.iter().zip(&self.shift);
            bias + pairs.map(|(weight, shift)| weight * shift).sum::<f32>()
        });
        (scaled.collect(), shifted.collect())
    }

    /// Gradients of weights, scale and shift from those of the folded weights `[K, D]` and biases `[K]`.
    fn unfold(&self, weights: &[f32], gradient: &[f32], of_biases: &[f32]) -> [Vec<f32>; 3] {
        let dim = self.scale.len();
        let mut out = [vec![0.0; weights.len()], vec![0.0; dim], vec![0.0; dim]];
        for (k, of_bias) in of_biases.iter().enumerate() {
            for d in 0..dim {
                let place = k * dim + d;
                out[0][place] = self.scale[d] * gradient[place] + self.shift[d] * of_bias;
                out[1][d] += weights[place] * gradient[place];
                out[2][d] += weights[place] * of_bias;
            }
        }
        out
    }
}

/// What stands before the layer.
#[derive(Debug, Clone, PartialEq)]
enum Before {
    Fixed(Standard),
    BatchNorm(BatchNorm),
}

/// A head in training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layer {
    before: Before,
    /// `[K, D]`.
    weights: Vec<f32>,
    /// `[K]`.
    biases: Vec<f32>,
}

impl Layer {
    /// Initial weights for `outputs` values a patch; statistics of all patches are those of `windows`.
    pub(crate) fn new(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        seed: u64,
        recipe: &Recipe,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(WEIGHT_STREAM);
        let dim = features.dim();
        let bound = 1.0 / (dim as f64).sqrt();
        let (weights, biases) = match recipe.start {
            Start::Normal => {
                let weight = |_| (INITIAL_DEVIATION * normal(&mut rng)) as f32;
                ((0..outputs * dim).map(weight).collect(), vec![0.0; outputs])
            }
            Start::Uniform => {
                let mut value = |_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
                let weights = (0..outputs * dim).map(&mut value).collect();
                (weights, (0..outputs).map(value).collect())
            }
        };
        let before = match recipe.normalisation {
            Normalisation::None => Before::Fixed(Standard::identity(dim)),
            Normalisation::AllPatches => Before::Fixed(Standard::from_features(features, windows)),
            Normalisation::BatchNorm => Before::BatchNorm(BatchNorm::new(dim)),
        };
        Self {
            before,
            weights,
            biases,
        }
    }

    /// Steps of AdamW, on the batches that `next` puts in place of the one before; gives the loss of each.
    pub(crate) fn train(
        &mut self,
        features: &PatchFeatures,
        loss: &impl Loss,
        training: &Training,
        mut next: impl FnMut(&mut Vec<usize>),
    ) -> Vec<f64> {
        let recipe = &training.recipe;
        let mut optimizer = AdamW::new(self.groups().iter().map(|group| group.len()));
        let mut batch = Vec::new();
        let losses = (0..training.iterations).map(|iteration| {
            next(&mut batch);
            let (value, mut gradients) = self.loss_gradient(features, &batch, loss, iteration);
            if let Some(max) = recipe.clip {
                clip(&mut gradients, max);
            }
            let step = Step {
                rate: training.learning_rate * recipe.rate(iteration, training.iterations),
                momentum: recipe.momentum(iteration, training.iterations),
                decay: training.weight_decay,
                decays_all: recipe.decays_all,
            };
            optimizer.step(self.groups(), &gradients, step);
            value
        });
        losses.collect()
    }

    /// What is trained: weights, biases, and batch norm's scale and shift.
    fn groups(&mut self) -> Vec<&mut Vec<f32>> {
        let mut groups = vec![&mut self.weights, &mut self.biases];
        if let Before::BatchNorm(norm) = &mut self.before {
            groups.extend([&mut norm.scale, &mut norm.shift]);
        }
        groups
    }

    /// The head as it stands, batch norm with its running statistics.
    pub(crate) fn head(&self) -> Head {
        let (standard, (weights, biases)) = match &self.before {
            Before::Fixed(standard) => (standard.clone(), (self.weights.clone(), self.biases.clone())),
            Before::BatchNorm(norm) => (
                Standard::from_moments(&norm.mean, &norm.variance),
                norm.folded(&self.weights, &self.biases),
            ),
        };
        Head {
            standard,
            weights,
            biases,
        }
    }

    /// Loss of a batch, and the gradients of [`Self::groups`]. Windows run in parallel, sums are taken in their order.
    fn loss_gradient(
        &mut self,
        features: &PatchFeatures,
        batch: &[usize],
        loss: &impl Loss,
        iteration: usize,
    ) -> (f64, Vec<Vec<f32>>) {
        let (standard, folded) = match &mut self.before {
            Before::Fixed(standard) => (standard.clone(), None),
            Before::BatchNorm(norm) => {
                let standard = norm.of_batch(features, batch);
                (standard, Some(norm.folded(&self.weights, &self.biases)))
            }
        };
        let (weights, biases) = folded
            .as_ref()
            .map_or((&self.weights, &self.biases), |(weights, biases)| {
                (weights, biases)
            });
        let inputs: Vec<Vec<f32>> = batch
            .par_iter()
            .map(|&window| {
                let mut x = Vec::new();
                standard.apply(features.window(window), &mut x);
                x
            })
            .collect();
        let mut logits: Vec<Vec<f32>> = inputs.par_iter().map(|x| forward(x, weights, biases)).collect();
        let value = loss.gradient(batch, &mut logits, iteration);
        let parts: Vec<(Vec<f32>, Vec<f32>)> = inputs
            .par_iter()
            .zip(&logits)
            .map(|(x, gradient)| parameter_gradient(x, gradient, biases.len()))
            .collect();
        let (mut of_weights, mut of_biases) = (vec![0.0; weights.len()], vec![0.0; biases.len()]);
        let add = |sums: &mut [f32], part: &[f32]| {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        };
        for (weights, biases) in &parts {
            add(&mut of_weights, weights);
            add(&mut of_biases, biases);
        }
        let gradients = match &self.before {
            Before::Fixed(_) => vec![of_weights, of_biases],
            Before::BatchNorm(norm) => {
                let [own, scale, shift] = norm.unfold(&self.weights, &of_weights, &of_biases);
                vec![own, of_biases, scale, shift]
            }
        };
        (value, gradients)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::protocols::dense::recipe::Decay;

    /// Standardised over all patches, plain AdamW, no warm-up.
    pub(crate) const PLAIN: Recipe = Recipe {
        normalisation: Normalisation::AllPatches,
        start: Start::Normal,
        decays_all: false,
        warmup: 0.0,
        warmup_ratio: 1.0,
        decay: Decay::Linear,
        min: 0.0,
        clip: None,
        cycles: false,
    };

    impl Layer {
        /// Puts weights and biases in place.
        pub(crate) fn set(&mut self, weights: Vec<f32>, biases: Vec<f32>) {
            assert_eq!(
                (weights.len(), biases.len()),
                (self.weights.len(), self.biases.len())
            );
            (self.weights, self.biases) = (weights, biases);
        }
    }

    impl Head {
        pub(crate) fn parameters(&self) -> (&[f32], &[f32]) {
            (&self.weights, &self.biases)
        }
    }

    /// The largest deviation of the gradient of `loss` from central differences, over all that is trained, relative to the
    /// largest of them; the gradient is of `windows` at the initial weights times 30.
    pub(crate) fn gradient_error(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        loss: &impl Loss,
        iteration: usize,
    ) -> f64 {
        gradient_error_with(
            features,
            windows,
            outputs,
            loss,
            iteration,
            Normalisation::AllPatches,
        )
    }

    pub(crate) fn gradient_error_with(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        loss: &impl Loss,
        iteration: usize,
        normalisation: Normalisation,
    ) -> f64 {
        let recipe = Recipe {
            normalisation,
            ..PLAIN
        };
        let mut layer = Layer::new(features, windows, outputs, 5, &recipe);
        layer.weights.iter_mut().for_each(|weight| *weight *= 30.0);
        layer
            .biases
            .iter_mut()
            .enumerate()
            .for_each(|(k, bias)| *bias = 0.3 - 0.1 * k as f32);
        if let Before::BatchNorm(norm) = &mut layer.before {
            norm.scale.iter_mut().for_each(|scale| *scale = 1.3);
            norm.shift.iter_mut().for_each(|shift| *shift = -0.4);
        }
        let (_, gradients) = layer.clone().loss_gradient(features, windows, loss, iteration);
        let largest = gradients
            .iter()
            .flatten()
            .fold(0.0f64, |max, &g| max.max(f64::from(g.abs())));
        assert!(largest > 1e-4, "a gradient to compare with");
        let step = 3e-4;
        let mut worst = 0.0f64;
        for (group, gradient) in gradients.iter().enumerate() {
            for (place, &gradient) in gradient.iter().enumerate() {
                let value = |by: f32| {
                    let mut moved = layer.clone();
                    moved.groups()[group][place] += by;
                    moved.loss_gradient(features, windows, loss, iteration).0
                };
                let expected = (value(step) - value(-step)) / (2.0 * f64::from(step));
                worst = worst.max((f64::from(gradient) - expected).abs() / largest);
            }
        }
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half the sum of squared logits, whose gradient they are.
    struct Squares;

    impl Loss for Squares {
        fn gradient(&self, _: &[usize], logits: &mut [Vec<f32>], _: usize) -> f64 {
            logits
                .iter()
                .flatten()
                .map(|z| 0.5 * f64::from(*z) * f64::from(*z))
                .sum()
        }
    }

    fn waves(n: usize, dim: usize) -> PatchFeatures {
        let data = (0..n * 4 * dim)
            .map(|i| (i as f32 * 0.9).sin() + i as f32 * 0.05)
            .collect();
        PatchFeatures::new(data, (2, 2), dim).unwrap()
    }

    #[test]
    fn the_gradient_of_the_layer_is_that_of_differences() {
        for normalisation in [
            Normalisation::None,
            Normalisation::AllPatches,
            Normalisation::BatchNorm,
        ] {
            let error = testing::gradient_error_with(&waves(2, 3), &[0, 1], 2, &Squares, 0, normalisation);
            assert!(error < 2e-3, "{normalisation:?}: {error}");
        }
    }

    #[test]
    fn training_goes_down_and_does_not_depend_on_threads() {
        let data = (0..96).map(|i| (i as f32 * 0.7).sin()).collect();
        let features = PatchFeatures::new(data, (2, 2), 3).unwrap();
        let windows: Vec<usize> = (0..8).collect();
        for normalisation in [Normalisation::AllPatches, Normalisation::BatchNorm] {
            // The initial weights are small: a step must not pass by 0, where the loss is least.
            let training = Training {
                iterations: 10,
                batch_size: 3,
                learning_rate: 1e-3,
                weight_decay: 0.0,
                seed: 0,
                recipe: Recipe {
                    normalisation,
                    ..testing::PLAIN
                },
            };
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| Head::train(&features, &windows, 2, &Squares, &training))
            };
            let head = run(1);
            assert_eq!(head, run(3));
            let loss = |head: &Head| {
                let logits = windows.iter().map(|&window| head.logits(features.window(window)));
                Squares.gradient(&windows, &mut logits.collect::<Vec<_>>(), 0)
            };
            let start = Layer::new(&features, &windows, 2, 0, &training.recipe);
            // Batch norm's running statistics are not those of the patches yet.
            if normalisation == Normalisation::AllPatches {
                assert!(loss(&head) < loss(&start.head()));
            }
        }
    }

    #[test]
    fn torchs_convolution_starts_uniform() {
        let recipe = Recipe {
            start: Start::Uniform,
            ..testing::PLAIN
        };
        let layer = Layer::new(&waves(1, 16), &[0], 50, 0, &recipe);
        let (min, max) = layer
            .weights
            .iter()
            .fold((0f32, 0f32), |(min, max), &w| (min.min(w), max.max(w)));
        assert!(
            (-0.25..-0.24).contains(&min) && (0.24..0.25).contains(&max),
            "{min} {max}"
        );
        assert!(layer.biases.iter().any(|bias| *bias != 0.0));
        let before = Layer::new(&waves(1, 16), &[0], 50, 0, &testing::PLAIN);
        assert!(before.biases.iter().all(|bias| *bias == 0.0));
    }

    /// Drawn again from the documented stream: with another one, weights would be the numbers that something else is drawn with.
    #[test]
    fn initial_weights_have_a_stream_of_their_own() {
        let draws = || {
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            rng.set_stream(1 << 33);
            rng
        };
        let layer = Layer::new(&waves(1, 4), &[0], 3, 7, &testing::PLAIN);
        let mut rng = draws();
        let expected: Vec<f32> = (0..12).map(|_| (0.01 * normal(&mut rng)) as f32).collect();
        assert_eq!(layer.weights, expected);
        let recipe = Recipe {
            start: Start::Uniform,
            ..testing::PLAIN
        };
        let layer = Layer::new(&waves(1, 4), &[0], 3, 7, &recipe);
        let mut rng = draws();
        let expected: Vec<f32> = (0..15).map(|_| (rng.random::<f64>() - 0.5) as f32).collect();
        assert_eq!(layer.weights, expected[..12]);
        assert_eq!(layer.biases, expected[12..]);
    }
}
