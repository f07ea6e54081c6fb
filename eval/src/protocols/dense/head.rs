//! A linear layer on standardised patch features, and its training by AdamW. Which loss it is trained by is the caller's:
//! segmentation and depth differ in nothing else.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::features::{PatchFeatures, Standard};
use crate::draws::{Order, normal};
use crate::linalg::gemm::{Operand, Threads, gemm};

/// Standard deviation of the initial weights (mmseg's and the depth heads' `normal_init`).
const INITIAL_DEVIATION: f64 = 0.01;
/// Stream of the seed for the initial weights, apart from those of [`Order`].
const WEIGHT_STREAM: u64 = 1 << 33;
/// Where the warm-up starts, as a share of the rate (mmseg `warmup_ratio`).
const WARMUP_RATIO: f64 = 1e-6;
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// A loss on the logits of windows.
pub(crate) trait Loss: Sync {
    /// Mean loss of a batch. `logits` holds one `[rows * columns, K]` a window of `windows`; each is replaced by the
    /// gradient of the loss. `iteration` counts from 0.
    fn gradient(&self, windows: &[usize], logits: &mut [Vec<f32>], iteration: usize) -> f64;
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decay {
    /// In a straight line to 0 (`poly` with power 1).
    Linear,
    /// Half a cosine to 0.
    Cosine,
}

/// How a head is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Training {
    pub iterations: usize,
    /// Windows of one step.
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// Share of the iterations over which the rate rises.
    pub warmup: f64,
    pub decay: Decay,
    pub seed: u64,
}

impl Training {
    /// Learning rate of an iteration, from 0.
    fn rate(&self, iteration: usize) -> f64 {
        let passed = iteration as f64 / self.iterations as f64;
        let decay = match self.decay {
            Decay::Linear => 1.0 - passed,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * passed).cos()),
        };
        let warmup = if passed < self.warmup {
            WARMUP_RATIO + (1.0 - WARMUP_RATIO) * passed / self.warmup
        } else {
            1.0
        };
        self.learning_rate * decay * warmup
    }
}

/// A trained head: `[K, D]` weights and `[K]` biases over standardised channels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    standard: Standard,
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl Head {
    /// Initial weights for `outputs` values a patch, standardised over `windows`.
    fn new(features: &PatchFeatures, windows: &[usize], outputs: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(WEIGHT_STREAM);
        let weights = (0..outputs * features.dim()).map(|_| (INITIAL_DEVIATION * normal(&mut rng)) as f32);
        Self {
            standard: Standard::of(features, windows),
            weights: weights.collect(),
            biases: vec![0.0; outputs],
        }
    }

    /// Trains on `windows` of `features`.
    pub(crate) fn train(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        loss: &impl Loss,
        training: &Training,
    ) -> Self {
        let mut head = Self::new(features, windows, outputs, training.seed);
        let mut optimizer = AdamW::new(head.weights.len(), head.biases.len());
        let mut order = Order::new(windows, training.seed);
        let mut batch = Vec::new();
        let size = training.batch_size.min(windows.len());
        for iteration in 0..training.iterations {
            order.next_batch(size, &mut batch);
            let (_, weights, biases) = head.loss_gradient(features, &batch, loss, iteration);
            let rate = training.rate(iteration);
            optimizer.step(&mut head, &weights, &biases, rate, training.weight_decay);
        }
        head
    }

    /// Logits `[n, K]` of patches `[n, D]`.
    pub(crate) fn logits(&self, patches: &[f32]) -> Vec<f32> {
        let mut x = Vec::new();
        self.standard.apply(patches, &mut x);
        self.forward(&x)
    }

    /// Logits of standardised patches.
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let outputs = self.biases.len();
        let dim = self.weights.len() / outputs;
        let rows = x.len() / dim;
        // [n, K] = [n, D] x [D, K], on top of the biases.
        let mut logits = Vec::with_capacity(rows * outputs);
        (0..rows).for_each(|_| logits.extend_from_slice(&self.biases));
        gemm(
            &mut logits,
            1.0,
            Operand::row_major(x, rows, dim),
            Operand::row_major(&self.weights, outputs, dim).transposed(),
            1.0,
            Threads::One,
        );
        logits
    }

    /// Loss of a batch, and its gradients `[K, D]` and `[K]`. Windows run in parallel, sums are taken in their order.
    fn loss_gradient(
        &self,
        features: &PatchFeatures,
        batch: &[usize],
        loss: &impl Loss,
        iteration: usize,
    ) -> (f64, Vec<f32>, Vec<f32>) {
        let inputs: Vec<Vec<f32>> = batch
            .par_iter()
            .map(|&window| {
                let mut x = Vec::new();
                self.standard.apply(features.window(window), &mut x);
                x
            })
            .collect();
        let mut logits: Vec<Vec<f32>> = inputs.par_iter().map(|x| self.forward(x)).collect();
        let value = loss.gradient(batch, &mut logits, iteration);
        let parts: Vec<(Vec<f32>, Vec<f32>)> = inputs
            .par_iter()
            .zip(&logits)
            .map(|(x, gradient)| self.parameter_gradient(x, gradient))
            .collect();
        let (mut weights, mut biases) = (vec![0.0; self.weights.len()], vec![0.0; self.biases.len()]);
        for (of_weights, of_biases) in &parts {
            weights
                .iter_mut()
                .zip(of_weights)
                .for_each(|(sum, part)| *sum += part);
            biases
                .iter_mut()
                .zip(of_biases)
                .for_each(|(sum, part)| *sum += part);
        }
        (value, weights, biases)
    }

    /// Gradients of weights and biases from that of one window's logits `[n, K]`.
    fn parameter_gradient(&self, x: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let outputs = self.biases.len();
        let dim = self.weights.len() / outputs;
        let rows = x.len() / dim;
        let (mut weights, mut biases) = (vec![0.0; self.weights.len()], vec![0.0; outputs]);
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
}

/// AdamW (Loshchilov and Hutter 2019) in torch's form; the weights decay, the biases do not.
struct AdamW {
    weights: Moments,
    biases: Moments,
    steps: i32,
}

struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    fn new(weights: usize, biases: usize) -> Self {
        let moments = |n: usize| Moments {
            first: vec![0.0; n],
            second: vec![0.0; n],
        };
        Self {
            weights: moments(weights),
            biases: moments(biases),
            steps: 0,
        }
    }

    fn step(&mut self, head: &mut Head, weights: &[f32], biases: &[f32], rate: f64, decay: f64) {
        self.steps = self.steps.saturating_add(1);
        let shrink = (1.0 - rate * decay) as f32;
        head.weights.iter_mut().for_each(|weight| *weight *= shrink);
        self.weights.descend(&mut head.weights, weights, rate, self.steps);
        self.biases.descend(&mut head.biases, biases, rate, self.steps);
    }
}

impl Moments {
    fn descend(&mut self, values: &mut [f32], gradient: &[f32], rate: f64, steps: i32) {
        let step = (rate / (1.0 - BETAS.0.powi(steps))) as f32;
        let correction = (1.0 / (1.0 - BETAS.1.powi(steps))) as f32;
        let (keep, keep_square) = (BETAS.0 as f32, BETAS.1 as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = keep * *first + (1.0 - keep) * gradient;
            *second = keep_square * *second + (1.0 - keep_square) * gradient * gradient;
            *value -= step * *first / ((*second * correction).sqrt() + EPSILON as f32);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The largest deviation of the gradient of `loss` from central differences, over weights and biases, relative to the
    /// largest of them; the gradient is of `windows` at the initial weights times 30.
    pub(crate) fn gradient_error(
        features: &PatchFeatures,
        windows: &[usize],
        outputs: usize,
        loss: &impl Loss,
        iteration: usize,
    ) -> f64 {
        let mut head = Head::new(features, windows, outputs, 5);
        head.weights.iter_mut().for_each(|weight| *weight *= 30.0);
        head.biases
            .iter_mut()
            .enumerate()
            .for_each(|(k, bias)| *bias = 0.3 - 0.1 * k as f32);
        let (_, weights, biases) = head.loss_gradient(features, windows, loss, iteration);
        let n = weights.len();
        let gradient = [weights, biases].concat();
        let largest = gradient
            .iter()
            .fold(0.0f64, |most, &g| most.max(f64::from(g.abs())));
        assert!(largest > 1e-4, "a gradient to compare with");
        let step = 3e-4;
        let mut worst = 0.0f64;
        for (place, &gradient) in gradient.iter().enumerate() {
            let value = |by: f32| {
                let mut moved = head.clone();
                match place.checked_sub(n) {
                    None => moved.weights[place] += by,
                    Some(bias) => moved.biases[bias] += by,
                }
                moved.loss_gradient(features, windows, loss, iteration).0
            };
            let expected = (value(step) - value(-step)) / (2.0 * f64::from(step));
            worst = worst.max((f64::from(gradient) - expected).abs() / largest);
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

    fn training() -> Training {
        Training {
            iterations: 10,
            batch_size: 2,
            learning_rate: 0.1,
            weight_decay: 0.0,
            warmup: 0.2,
            decay: Decay::Linear,
            seed: 0,
        }
    }

    #[test]
    fn rates_rise_and_fall() {
        let linear = training();
        let rates: Vec<f64> = (0..10).map(|i| linear.rate(i)).collect();
        let expected = [1e-7, 0.1 * 0.9 * (0.5 + 0.5e-6), 0.08, 0.07];
        for (found, expected) in rates.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{rates:?}");
        }
        let cosine = Training {
            decay: Decay::Cosine,
            warmup: 0.0,
            ..linear
        };
        assert!((cosine.rate(0) - 0.1).abs() < 1e-12 && (cosine.rate(5) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn two_steps_of_adamw_by_hand() {
        let features = PatchFeatures::new(vec![1.0, 3.0], (1, 2), 1).unwrap();
        let mut head = Head::new(&features, &[0], 1, 0);
        (head.weights[0], head.biases[0]) = (2.0, 1.0);
        let mut optimizer = AdamW::new(1, 1);
        optimizer.step(&mut head, &[0.5], &[-0.1], 0.1, 0.2);
        // 2 * (1 - 0.02), then one whole step down; the bias does not decay and goes up.
        assert!((head.weights[0] - 1.86).abs() < 1e-6 && (head.biases[0] - 1.1).abs() < 1e-6);
        optimizer.step(&mut head, &[1.0], &[-0.1], 0.1, 0.2);
        // m = 0.045 + 0.1 over 1 - 0.81, v = 0.00024975 + 0.001 over 1 - 0.998001
        let (m, v): (f64, f64) = (0.145 / 0.19, (0.999 * 0.00025 + 0.001) / (1.0 - 0.998_001));
        let expected = 1.86 * 0.98 - 0.1 * m / v.sqrt();
        assert!(
            (f64::from(head.weights[0]) - expected).abs() < 1e-5,
            "{} {expected}",
            head.weights[0]
        );
    }

    #[test]
    fn the_gradient_of_the_layer_is_that_of_differences() {
        let data = (0..24)
            .map(|i| (i as f32 * 0.9).sin() + i as f32 * 0.05)
            .collect();
        let features = PatchFeatures::new(data, (2, 2), 3).unwrap();
        let error = testing::gradient_error(&features, &[0, 1], 2, &Squares, 0);
        assert!(error < 2e-3, "{error}");
    }

    #[test]
    fn training_goes_down_and_does_not_depend_on_threads() {
        let data = (0..96).map(|i| (i as f32 * 0.7).sin()).collect();
        let features = PatchFeatures::new(data, (2, 2), 3).unwrap();
        let windows: Vec<usize> = (0..8).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            // The initial weights are small: a step must not pass by 0, where the loss is least.
            let training = Training {
                learning_rate: 1e-3,
                ..training()
            };
            pool.install(|| Head::train(&features, &windows, 2, &Squares, &training))
        };
        let head = run(1);
        assert_eq!(head, run(3));
        let loss = |head: &Head| head.loss_gradient(&features, &windows, &Squares, 0).0;
        let start = Head::new(&features, &windows, 2, 0);
        assert!(loss(&head) < loss(&start));
    }
}
