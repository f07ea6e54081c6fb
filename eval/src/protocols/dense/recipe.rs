//! How a head is trained: what the two protocols and the two tasks differ in.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Whose training a dense task follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Short, with a learning rate chosen on held-out training images; the default.
    #[default]
    Fast,
    /// The reference's schedule, optimizer and head, at its one learning rate.
    Paper,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Paper => "paper",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "paper" => Ok(Self::Paper),
            _ => Err(format!("expected fast or paper, found `{text}`")),
        }
    }
}

/// What a patch's channels go through before the linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Normalisation {
    /// Nothing.
    None,
    /// Each less its mean and over its deviation, both of all training patches.
    AllPatches,
    /// torch's batch norm: statistics of the batch in training, running ones afterwards, and an affine part that is trained.
    BatchNorm,
}

/// Where the layer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Weights normal with deviation 0.01, biases 0 (mmseg's heads).
    Normal,
    /// Weights and biases uniform up to `1 / sqrt(D)` (torch's convolution, which the reference's depth head leaves as it is).
    Uniform,
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decay {
    /// In a straight line to 0 (mmcv's `poly` with power 1).
    Linear,
    /// Half a cosine, to `min` of the rate.
    Cosine,
}

/// Optimizer, schedule and form of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Recipe {
    pub normalisation: Normalisation,
    pub start: Start,
    /// Whether biases (and what batch norm trains) decay as the weights do.
    pub decays_all: bool,
    /// Share of the iterations over which the rate rises, from `warmup_ratio` of it.
    pub warmup: f64,
    pub warmup_ratio: f64,
    pub decay: Decay,
    /// What the rate falls to, as a share of it.
    pub min: f64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// Whether AdamW's first momentum goes from 0.95 to 0.85 over 30 % of the iterations and back (mmcv's `OneCycle`).
    pub cycles: bool,
}

impl Recipe {
    /// Of the learning rate, the share that counts in an iteration, from 0, of `iterations`.
    pub(crate) fn rate(&self, iteration: usize, iterations: usize) -> f64 {
        let passed = iteration as f64 / iterations as f64;
        let falling = match self.decay {
            Decay::Linear => 1.0 - passed,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * passed).cos()),
        };
        let rising = if passed < self.warmup {
            self.warmup_ratio + (1.0 - self.warmup_ratio) * passed / self.warmup
        } else {
            1.0
        };
        (self.min + (1.0 - self.min) * falling) * rising
    }

    /// AdamW's first momentum in an iteration.
    pub(crate) fn momentum(&self, iteration: usize, iterations: usize) -> f64 {
        const HIGH: f64 = 0.95;
        const LOW: f64 = 0.85;
        if !self.cycles {
            return 0.9;
        }
        let (place, turn) = (iteration as f64, 0.3 * iterations as f64 - 1.0);
        let (from, to, share) = if place <= turn {
            (HIGH, LOW, place / turn.max(1.0))
        } else {
            let rest = (iterations as f64 - 1.0 - turn.max(0.0)).max(1.0);
            (LOW, HIGH, (place - turn.max(0.0)) / rest)
        };
        to + 0.5 * (from - to) * ((std::f64::consts::PI * share).cos() + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            normalisation: Normalisation::None,
            start: Start::Normal,
            decays_all: false,
            warmup: 0.2,
            warmup_ratio: 1e-6,
            decay: Decay::Linear,
            min: 0.0,
            clip: None,
            cycles: false,
        }
    }

    #[test]
    fn rates_rise_and_fall() {
        let rates: Vec<f64> = (0..10).map(|i| recipe().rate(i, 10)).collect();
        let expected = [1e-6, 0.9 * (0.5 + 0.5e-6), 0.8, 0.7];
        for (found, expected) in rates.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{rates:?}");
        }
        let cosine = Recipe {
            decay: Decay::Cosine,
            warmup: 0.0,
            min: 0.2,
            ..recipe()
        };
        assert!((cosine.rate(0, 10) - 1.0).abs() < 1e-12 && (cosine.rate(5, 10) - 0.6).abs() < 1e-12);
    }

    #[test]
    fn the_momentum_goes_down_and_up_again() {
        assert_eq!(recipe().momentum(7, 10), 0.9);
        let cycle = Recipe {
            cycles: true,
            ..recipe()
        };
        let of = |i: usize| cycle.momentum(i, 100);
        // The turn is at iteration 29.
        for (i, expected) in [(0, 0.95), (29, 0.85), (64, 0.9), (99, 0.95)] {
            assert!((of(i) - expected).abs() < 1e-12, "{i}: {}", of(i));
        }
        assert!(of(28) > of(29) && of(30) > of(29));
        for iterations in 1..6 {
            let all: Vec<f64> = (0..iterations).map(|i| cycle.momentum(i, iterations)).collect();
            assert!(all.iter().all(|m| (0.85..=0.95).contains(m)), "{all:?}");
        }
    }

    #[test]
    fn protocols_read_as_they_are_written() {
        for protocol in [Protocol::Fast, Protocol::Paper] {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        assert!(
            "papers"
                .parse::<Protocol>()
                .unwrap_err()
                .contains("fast or paper")
        );
    }
}
