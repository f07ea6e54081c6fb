//! The projection head of DINO and iBOT: an MLP onto the unit sphere, and cosines with prototypes.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::vit::layers::Linear;
use crate::vit::{draw, truncated_normal, uniform};
use crate::weights::Tensors;
use crate::{Error, Result, ops};

/// The geometry of a projection head (DINOv2 `layers/dino_head.py`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoHeadConfig {
    /// Width D of the tokens.
    pub input: usize,
    /// Width of the two hidden layers. Default: 2048.
    #[serde(default = "hidden")]
    pub hidden: usize,
    /// Width of the normalised bottleneck. Default: 256.
    #[serde(default = "bottleneck")]
    pub bottleneck: usize,
    /// Number K of prototypes. Default: 65536.
    #[serde(default = "prototypes")]
    pub prototypes: usize,
    /// Whether the gains of the prototypes are trained, as in DINOv2; DINO v1 can fix them (`norm_last_layer`).
    /// Default: true.
    #[serde(default = "trainable")]
    pub train_gain: bool,
}

fn hidden() -> usize {
    2048
}
fn bottleneck() -> usize {
    256
}
fn prototypes() -> usize {
    65_536
}
fn trainable() -> bool {
    true
}

impl DinoHeadConfig {
    /// A head of the default sizes for tokens of width `input`.
    pub fn new(input: usize) -> Self {
        Self {
            input,
            hidden: hidden(),
            bottleneck: bottleneck(),
            prototypes: prototypes(),
            train_gain: trainable(),
        }
    }

    /// Checks that no size is 0.
    ///
    /// # Errors
    /// Names the first field that is.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("input", self.input),
            ("hidden", self.hidden),
            ("bottleneck", self.bottleneck),
            ("prototypes", self.prototypes),
        ] {
            if value == 0 {
                return Err(Error::config(
                    format!("dino_head.{field}"),
                    "expected at least 1, found 0",
                ));
            }
        }
        Ok(())
    }

    /// Every parameter with its shape, under its official name, in the order of the network.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        let widths = [self.input, self.hidden, self.hidden, self.bottleneck];
        for (layer, width) in widths.windows(2).enumerate() {
            list.push((format!("mlp.{}.weight", 2 * layer), vec![width[1], width[0]]));
            list.push((format!("mlp.{}.bias", 2 * layer), vec![width[1]]));
        }
        list.push(("last_layer.weight_g".into(), vec![self.prototypes, 1]));
        list.push((
            "last_layer.weight_v".into(),
            vec![self.prototypes, self.bottleneck],
        ));
        list
    }

    /// Initial parameters, f32 on the CPU, drawn in the order of [`Self::parameters`]: MLP weights truncated normal 0.02,
    /// biases 0, gains 1, directions uniform within `1 / sqrt(bottleneck)` (PyTorch's `Linear`).
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn initialise(&self, rng: &mut impl Rng) -> Result<Tensors> {
        self.validate()?;
        let mut tensors = Tensors::new();
        for (name, shape) in self.parameters() {
            let count: usize = shape.iter().product();
            let values = match name.as_str() {
                "last_layer.weight_g" => vec![1.; count],
                "last_layer.weight_v" => draw(count, || uniform(rng, self.bottleneck)),
                _ if name.ends_with(".bias") => vec![0.; count],
                _ => draw(count, || truncated_normal(rng, 0.02)),
            };
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(tensors)
    }
}

/// Three linear layers with GELU between them, L2 normalisation, and a weight-normalised last layer without bias.
#[derive(Debug, Clone)]
pub struct DinoHead {
    config: DinoHeadConfig,
    mlp: [Linear; 3],
    gain: Tensor,       // [K, 1]
    directions: Tensor, // [K, bottleneck]
    compute: DType,
}

impl DinoHead {
    /// Builds the head from parameters under their official names ([`DinoHeadConfig::parameters`]).
    ///
    /// # Errors
    /// A size of 0, a parameter that `vb` lacks or has in another shape.
    pub fn new(config: &DinoHeadConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let (mlp, last) = (vb.pp("mlp"), vb.pp("last_layer"));
        let gain = last.get((config.prototypes, 1), "weight_g")?;
        Ok(Self {
            config: config.clone(),
            mlp: [
                Linear::new(config.input, config.hidden, mlp.pp(0))?,
                Linear::new(config.hidden, config.hidden, mlp.pp(2))?,
                Linear::new(config.hidden, config.bottleneck, mlp.pp(4))?,
            ],
            gain: if config.train_gain { gain } else { gain.detach() },
            directions: last.get((config.prototypes, config.bottleneck), "weight_v")?,
            compute: DType::F32,
        })
    }

    /// The same head with its products in `compute` ([`ops::linear`], [`ops::prototype_logits`]); points, prototypes and
    /// logits stay f32.
    pub fn with_compute(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// What the factors of its products are rounded to.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// The geometry the head was built with.
    pub fn config(&self) -> &DinoHeadConfig {
        &self.config
    }

    /// Tokens [.., D] to logits [.., K]: for gains of 1, cosines with the prototypes. No temperature is applied.
    ///
    /// # Errors
    /// Tokens of another width or type.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let points = self.bottleneck(tokens)?;
        Ok(ops::prototype_logits(&points, &self.prototypes()?, self.compute)?)
    }

    /// What points of the bottleneck are multiplied with to give logits, [K, bottleneck]: directions of unit length times
    /// their gains.
    ///
    /// # Errors
    /// When candle fails.
    pub fn prototypes(&self) -> Result<Tensor> {
        Ok(ops::weight_norm(&self.directions, &self.gain)?)
    }

    /// Tokens [.., D] to points on the unit sphere, [.., bottleneck].
    ///
    /// # Errors
    /// Tokens of another width or type.
    pub fn bottleneck(&self, tokens: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.mlp;
        let x = ops::gelu(&first.forward(tokens, self.compute)?)?;
        let x = ops::gelu(&second.forward(&x, self.compute)?)?;
        Ok(ops::l2_normalize(&third.forward(&x, self.compute)?, 1e-12)?)
    }
}
