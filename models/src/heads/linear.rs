//! The linear classifier of the released checkpoints, and the features it reads.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rand::Rng;

use crate::vit::IntermediateLayer;
use crate::vit::layers::Linear;
use crate::vit::{draw, truncated_normal};
use crate::weights::Tensors;
use crate::{Error, Result};

/// A linear layer from features to class scores, names `weight` [classes, features] and `bias` [classes]
/// (DINOv2 `hub/classifiers.py`, `*_linear_head.pth` and `*_linear4_head.pth`).
#[derive(Debug, Clone)]
pub struct LinearClassifier {
    linear: Linear,
}

impl LinearClassifier {
    /// Builds the classifier.
    ///
    /// # Errors
    /// A size of 0, a parameter that `vb` lacks or has in another shape.
    pub fn new(features: usize, classes: usize, vb: VarBuilder) -> Result<Self> {
        for (field, value) in [("classifier.features", features), ("classifier.classes", classes)] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        Ok(Self {
            linear: Linear::new(features, classes, vb)?,
        })
    }

    /// The parameters with their shapes.
    pub fn parameters(features: usize, classes: usize) -> Vec<(String, Vec<usize>)> {
        vec![
            ("weight".into(), vec![classes, features]),
            ("bias".into(), vec![classes]),
        ]
    }

    /// Initial parameters: weights from a normal distribution of deviation 0.02 cut at two deviations, biases 0.
    ///
    /// # Errors
    /// When candle fails.
    pub fn initialise(features: usize, classes: usize, rng: &mut impl Rng) -> Result<Tensors> {
        let weight = draw(features * classes, || truncated_normal(rng, 0.02));
        Ok(Tensors::from([
            (
                "weight".into(),
                Tensor::from_vec(weight, (classes, features), &Device::Cpu)?,
            ),
            (
                "bias".into(),
                Tensor::from_vec(vec![0f32; classes], classes, &Device::Cpu)?,
            ),
        ]))
    }

    /// Features [.., F] to class scores [.., classes].
    ///
    /// # Errors
    /// Features of another width or type.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.linear.forward(features, DType::F32)
    }
}

/// What the released classifiers read, from the normed outputs of the last blocks: the class token of each in the order of
/// the blocks, then the mean patch token of the last, [B, (1 + layers) D].
///
/// # Errors
/// No layer at all.
pub fn classifier_features(layers: &[IntermediateLayer]) -> Result<Tensor> {
    let Some(last) = layers.last() else {
        return Err(Error::config("layers", "expected at least one block, found none"));
    };
    let mut parts: Vec<Tensor> = layers.iter().map(|layer| layer.cls.clone()).collect();
    parts.push(last.patch.mean(1)?);
    Ok(Tensor::cat(&parts, 1)?)
}
