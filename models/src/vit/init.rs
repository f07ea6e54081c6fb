//! Initial values of a network that is trained from scratch.

use std::f64::consts::{FRAC_PI_2, PI, SQRT_2};

use candle_core::{Device, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::VitConfig;
use crate::Result;
use crate::weights::Tensors;

/// How far the weights of blocks and the position table spread at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialWeights {
    /// Normal of standard deviation 0.02, truncated at +-2 (DINOv2 `init_weights`): for networks of some hundred values a token. In a
    /// narrow one queries and keys are then so short that every token attends to all alike, and positions next to nothing beside
    /// patches: the class token is a mean of patches until training has changed that.
    #[default]
    Dinov2,
    /// Linear weights uniform by the rule of Xavier, queries, keys and values each a matrix of its own (as in MoCo v3 `vits.py`), and
    /// positions about as large as the patches that they are added to: waves across the grid, so that a table of another size has the
    /// same values in between.
    Xavier,
}

impl InitialWeights {
    /// Whether it is the default, which files leave out.
    pub fn is_dinov2(&self) -> bool {
        *self == Self::Dinov2
    }

    /// The position table [1, C + N, D] of C class tokens and a grid of N patches.
    fn positions(self, config: &VitConfig, shape: &[usize], rng: &mut impl Rng) -> Vec<f32> {
        let count = shape.iter().product();
        match self {
            Self::Dinov2 => draw(count, || truncated_normal(rng, 0.02)),
            Self::Xavier => {
                let mut table = draw(config.class_tokens() * config.embed_dim, || normal(rng));
                table.extend(waves(config.native_grid(), config.embed_dim, rng));
                table
            }
        }
    }

    /// A value of the linear weights called `name`, of `shape` [outputs, inputs].
    fn linear(self, name: &str, shape: &[usize], rng: &mut impl Rng) -> f64 {
        match (self, shape) {
            (Self::Xavier, &[outputs, inputs]) => {
                let outputs = if name.contains("qkv") {
                    outputs / 3
                } else {
                    outputs
                };
                (2. * rng.random::<f64>() - 1.) * (6. / (outputs + inputs) as f64).sqrt()
            }
            _ => truncated_normal(rng, 0.02),
        }
    }
}

/// [`initialise_with`] DINOv2's spread.
///
/// # Errors
/// A configuration that contradicts itself.
pub fn initialise(config: &VitConfig, rng: &mut impl Rng) -> Result<Tensors> {
    initialise_with(config, InitialWeights::Dinov2, rng)
}

/// Initial parameters under official names, f32 on the CPU (DINOv2 `init_weights` and what PyTorch gives before it).
///
/// Position table and linear weights: as `spread` says. Class and register tokens: normal of 1e-6. Mask token and biases: 0. Patch projection and stem: PyTorch's `Conv2d`, uniform within `1 / sqrt(fan in)`.
/// LayerNorm: 1 and 0. LayerScale: the configured value. Drawn in the order of [`VitConfig::parameters`], so a seed decides
/// every value.
///
/// # Errors
/// A configuration that contradicts itself.
pub fn initialise_with(config: &VitConfig, spread: InitialWeights, rng: &mut impl Rng) -> Result<Tensors> {
    config.validate()?;
    let parameters = config.parameters();
    // A bias is as wide as its weights.
    let fan_in_of = |name: &str| {
        let weights = name.replace(".bias", ".weight");
        let weight = parameters.iter().find(|(other, _)| *other == weights);
        weight.map_or(1, |(_, shape)| shape[1..].iter().product())
    };
    let mut tensors = Tensors::new();
    for (name, shape) in parameters.clone() {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = match name.as_str() {
            "cls_token" | "register_tokens" | "attn_pool.latent" => draw(count, || 1e-6 * normal(rng)),
            "mask_token" => vec![0.; count],
            "pos_embed" => spread.positions(config, &shape, rng),
            _ if is_convolution(&name) => {
                let fan_in = fan_in_of(&name);
                draw(count, || uniform(rng, fan_in))
            }
            _ if name.ends_with(".gamma") => vec![config.layer_scale.unwrap_or(1.) as f32; count],
            _ if name.ends_with(".bias") || name.ends_with("relative_position_bias_table") => vec![0.; count],
            _ if name.contains("norm") => vec![1.; count],
            _ => draw(count, || spread.linear(&name, &shape, rng)),
        };
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(tensors)
}

/// Whether `name` is a weight or bias of the patch projection or of a convolution before it.
fn is_convolution(name: &str) -> bool {
    name.starts_with("patch_embed.") && !name.contains("norm")
}

/// A wave for each of `width` values across a grid of `side` x `side` patches, row by row: of random direction and phase, at least four
/// patches long, and of variance 1 over phases.
fn waves(side: usize, width: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut uniform = |bound: f64| bound * (2. * rng.random::<f64>() - 1.);
    let drawn: Vec<[f64; 3]> = (0..width)
        .map(|_| [uniform(FRAC_PI_2), uniform(FRAC_PI_2), uniform(PI)])
        .collect();
    let places = (0..side * side).map(|place| ((place / side) as f64, (place % side) as f64));
    let values = |(row, column): (f64, f64)| {
        let value =
            move |[down, across, phase]: &[f64; 3]| SQRT_2 * (down * row + across * column + phase).sin();
        drawn.iter().map(value)
    };
    places.flat_map(values).map(|value| value as f32).collect()
}

/// `count` values, rounded to f32.
pub(crate) fn draw(count: usize, mut value: impl FnMut() -> f64) -> Vec<f32> {
    (0..count).map(|_| value() as f32).collect()
}

/// A standard normal value (Box-Muller).
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2. * (1. - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A normal value of standard deviation `std`, drawn anew while beyond +-2 (PyTorch `trunc_normal_`).
pub(crate) fn truncated_normal(rng: &mut impl Rng, std: f64) -> f64 {
    loop {
        let value = std * normal(rng);
        if value.abs() <= 2. {
            return value;
        }
    }
}

/// A uniform value within `1 / sqrt(fan_in)` (PyTorch's default for weights and biases of `Linear` and `Conv2d`).
pub(crate) fn uniform(rng: &mut impl Rng, fan_in: usize) -> f64 {
    (2. * rng.random::<f64>() - 1.) / (fan_in as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn drawn(seed: u64) -> Tensors {
        let config = VitConfig::named("vit-tiny/16-reg4", 224).unwrap();
        initialise(&config, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
    }

    fn spread(tensors: &Tensors, name: &str) -> (f64, f64) {
        let values = values(&tensors[name]);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    /// Fails unless the values' standard deviation is `std`, within five of its own.
    fn assert_spread(tensors: &Tensors, name: &str, std: f64) {
        let (_, found) = spread(tensors, name);
        let count = tensors[name].elem_count() as f64;
        let five_sigma = 5. / (2. * count).sqrt();
        assert!(
            (found - std).abs() <= std * five_sigma,
            "{name}: expected {std}, found {found}"
        );
    }

    #[test]
    fn every_parameter_has_its_distribution() {
        let tensors = drawn(1);
        let config = VitConfig::named("vit-tiny/16-reg4", 224).unwrap();
        assert_eq!(tensors.len(), config.parameters().len());
        for (name, std) in [
            ("pos_embed", 0.02),
            ("blocks.0.attn.qkv.weight", 0.02),
            ("blocks.11.mlp.fc2.weight", 0.02),
            ("cls_token", 1e-6),
            ("register_tokens", 1e-6),
            ("patch_embed.proj.weight", 1. / (3f64 * 768.).sqrt()),
            ("mask_token", 0.),
            ("blocks.3.attn.qkv.bias", 0.),
            ("norm.weight", 0.),
            ("blocks.0.ls1.gamma", 0.),
        ] {
            assert_spread(&tensors, name, std);
        }
        let bound = 1. / 768f64.sqrt();
        for name in ["patch_embed.proj.weight", "patch_embed.proj.bias"] {
            let largest = values(&tensors[name])
                .iter()
                .fold(0f64, |best, v| best.max(v.abs()));
            assert!(
                largest <= bound + 1e-9 && largest > 0.9 * bound,
                "{name}: {largest}"
            );
        }
        assert_eq!(spread(&tensors, "norm.weight").0, 1.);
        assert!((spread(&tensors, "blocks.0.ls1.gamma").0 - 1e-5).abs() < 1e-12);
    }

    #[test]
    fn xavier_spreads_with_the_width() {
        let config = VitConfig::named("vit-tiny/16", 224).unwrap();
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let tensors = initialise_with(&config, InitialWeights::Xavier, rng).unwrap();
        for (name, std) in [
            // sqrt(2 / (inputs + outputs)), 192 of each for queries, keys and values.
            ("blocks.0.attn.qkv.weight", (2f64 / 384.).sqrt()),
            ("blocks.0.attn.proj.weight", (2f64 / 384.).sqrt()),
            ("blocks.11.mlp.fc2.weight", (2f64 / 960.).sqrt()),
            ("cls_token", 1e-6),
            ("blocks.3.attn.qkv.bias", 0.),
        ] {
            assert_spread(&tensors, name, std);
        }
    }

    #[test]
    fn xaviers_positions_are_waves() {
        let config = VitConfig::named("vit-tiny/16", 224).unwrap();
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let tensors = initialise_with(&config, InitialWeights::Xavier, rng).unwrap();
        let (mean, std) = spread(&tensors, "pos_embed");
        assert!(mean.abs() < 0.05 && (std - 1.).abs() < 0.05, "{mean}, {std}");
        let table: Vec<Vec<f32>> = tensors["pos_embed"].squeeze(0).unwrap().to_vec2().unwrap();
        let apart = |a: usize, b: usize| {
            let squares = table[a]
                .iter()
                .zip(&table[b])
                .map(|(a, b)| f64::from(a - b).powi(2));
            (squares.sum::<f64>() / 192.).sqrt()
        };
        // Neighbours across and down are nearer than patches that are far from each other, which are strangers (sqrt 2).
        assert!(
            apart(1, 2) < 1.1 && apart(1, 15) < 1.1,
            "{} {}",
            apart(1, 2),
            apart(1, 15)
        );
        assert!((apart(1, 106) - 2f64.sqrt()).abs() < 0.2, "{}", apart(1, 106));
    }

    #[test]
    fn a_seed_decides_every_value() {
        let (a, b, c) = (drawn(1), drawn(1), drawn(2));
        for (name, tensor) in &a {
            assert_eq!(values(tensor), values(&b[name]), "{name}");
        }
        assert_ne!(values(&a["pos_embed"]), values(&c["pos_embed"]));
    }
}
