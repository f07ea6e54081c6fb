//! The projection of contrastive learning: a small MLP onto the unit sphere.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::vit::layers::Linear;
use crate::vit::{draw, truncated_normal};
use crate::weights::Tensors;
use crate::{Error, Result, ops};

/// The geometry of a [`ProjectionHead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionHeadConfig {
    /// Width D of the tokens.
    pub input: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Width of the result; 128 in MoCo.
    pub output: usize,
}

impl ProjectionHeadConfig {
    /// Every parameter with its shape, in the order of the network.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        vec![
            ("mlp.0.weight".into(), vec![self.hidden, self.input]),
            ("mlp.0.bias".into(), vec![self.hidden]),
            ("mlp.2.weight".into(), vec![self.output, self.hidden]),
            ("mlp.2.bias".into(), vec![self.output]),
        ]
    }

    /// Initial parameters, f32 on the CPU: weights truncated normal 0.02 as in the other heads, biases 0.
    ///
    /// # Errors
    /// A size of 0.
    pub fn initialise(&self, rng: &mut impl Rng) -> Result<Tensors> {
        self.validate()?;
        let mut tensors = Tensors::new();
        for (name, shape) in self.parameters() {
            let count: usize = shape.iter().product();
            let values = if name.ends_with(".bias") {
                vec![0.; count]
            } else {
                draw(count, || truncated_normal(rng, 0.02))
            };
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(tensors)
    }

    fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("projection.input", self.input),
            ("projection.hidden", self.hidden),
            ("projection.output", self.output),
        ] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        Ok(())
    }
}

/// MoCo v2's projection (Chen et al. 2020, `moco/builder.py` with `mlp`): linear, non-linearity, linear, L2 normalisation.
/// The non-linearity is GELU, as everywhere in the transformer, where MoCo's ResNet has ReLU.
#[derive(Debug, Clone)]
pub struct ProjectionHead {
    first: Linear,
    second: Linear,
}

impl ProjectionHead {
    /// Builds the head from parameters named as in [`ProjectionHeadConfig::parameters`].
    ///
    /// # Errors
    /// A size of 0, a parameter that `vb` lacks or has in another shape.
    pub fn new(config: &ProjectionHeadConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let mlp = vb.pp("mlp");
        Ok(Self {
            first: Linear::new(config.input, config.hidden, mlp.pp(0))?,
            second: Linear::new(config.hidden, config.output, mlp.pp(2))?,
        })
    }

    /// Tokens [.., D] to points on the unit sphere [.., output].
    ///
    /// # Errors
    /// Tokens of another width or type.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let hidden = ops::gelu(&self.first.forward(tokens)?)?;
        Ok(ops::l2_normalize(&self.second.forward(&hidden)?, 1e-12)?)
    }
}
