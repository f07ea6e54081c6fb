//! The projection of contrastive learning: a small MLP.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::vit::{draw, truncated_normal};
use crate::weights::Tensors;
use crate::{Error, Result, ops};

/// The geometry of a [`ProjectionHead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionHeadConfig {
    /// Width D of the tokens.
    pub input: usize,
    /// Width of the hidden layer; 0 for none, which leaves one linear layer.
    pub hidden: usize,
    /// Width of the result; 128 in MoCo.
    pub output: usize,
    /// Whether each layer's outputs are brought to mean 0 and variance 1 over the batch (MoCo v3, there with gains and offsets
    /// in the first). Class tokens of a fresh network are nearly the same for all images, and so are projections of them:
    /// without this the loss first has to find out what differs. Default: false, as in MoCo v2.
    #[serde(default)]
    pub batch_norm: bool,
}

impl ProjectionHeadConfig {
    /// Every parameter with its shape, in the order of the network.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let layer = |place: usize, inputs: usize, outputs: usize| {
            [
                (format!("mlp.{place}.weight"), vec![outputs, inputs]),
                (format!("mlp.{place}.bias"), vec![outputs]),
            ]
        };
        let mut list: Vec<(String, Vec<usize>)> = match self.hidden {
            0 => layer(0, self.input, self.output).into(),
            hidden => [layer(0, self.input, hidden), layer(2, hidden, self.output)].concat(),
        };
        if self.batch_norm {
            // What a bias adds to every row, batch norm takes away.
            list.retain(|(name, _)| !name.ends_with(".bias"));
        }
        list
    }

    /// Initial parameters, f32 on the CPU: weights truncated normal 0.02 as in the other heads, biases 0.
    ///
    /// # Errors
    /// An input or output of 0.
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
            ("projection.output", self.output),
        ] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        Ok(())
    }
}

/// Added to the variance, as PyTorch's `BatchNorm1d` does.
const BATCH_NORM_EPS: f64 = 1e-5;

/// A batch of which other processes have rows too.
#[derive(Clone, Copy)]
pub struct SharedBatch<'a> {
    /// Rows of all processes.
    pub rows: usize,
    /// The sum of a tensor over all processes, with the gradient that each of them has for it.
    pub sum: &'a dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
}

/// MoCo v2's projection (Chen et al. 2020, `moco/builder.py` with `mlp`): linear, non-linearity, linear; the caller brings the points
/// onto the unit sphere. MoCo v3's predictor is another one, behind it. The non-linearity is GELU, as everywhere in the transformer, where MoCo's ResNet has ReLU.
///
/// With batch norm a result depends on all rows that it was computed with; there are no running statistics, since the head
/// only ever sees batches of training.
#[derive(Debug, Clone)]
pub struct ProjectionHead {
    batch_norm: bool,
    first: Layer,
    second: Option<Layer>,
}

/// A linear layer, without bias where batch norm follows.
#[derive(Debug, Clone)]
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer {
    fn new(inputs: usize, outputs: usize, with_bias: bool, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get((outputs, inputs), "weight")?,
            bias: with_bias.then(|| vb.get(outputs, "bias")).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, self.bias.as_ref(), DType::F32)?)
    }
}

impl ProjectionHead {
    /// Builds the head from parameters named as in [`ProjectionHeadConfig::parameters`].
    ///
    /// # Errors
    /// An input or output of 0, a parameter that `vb` lacks or has in another shape.
    pub fn new(config: &ProjectionHeadConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let mlp = vb.pp("mlp");
        let layer =
            |place: usize, inputs, outputs| Layer::new(inputs, outputs, !config.batch_norm, mlp.pp(place));
        let (first, second) = match config.hidden {
            0 => (layer(0, config.input, config.output)?, None),
            hidden => (
                layer(0, config.input, hidden)?,
                Some(layer(2, hidden, config.output)?),
            ),
        };
        Ok(Self {
            batch_norm: config.batch_norm,
            first,
            second,
        })
    }

    /// Tokens [B, D] to points [B, output].
    ///
    /// # Errors
    /// Tokens of another width or type; a single row with batch norm, which would make it 0.
    pub fn project(&self, tokens: &Tensor) -> Result<Tensor> {
        let first = self.normed(self.first.forward(tokens)?)?;
        match &self.second {
            None => Ok(first),
            Some(second) => self.normed(second.forward(&ops::gelu(&first)?)?),
        }
    }

    /// As [`Self::project`], where batch norm is over the rows of a batch that processes share.
    ///
    /// # Errors
    /// As [`Self::project`]; processes that cannot reach each other.
    pub fn project_shared(&self, tokens: &Tensor, batch: &SharedBatch<'_>) -> Result<Tensor> {
        let first = self.normed_over(self.first.forward(tokens)?, batch)?;
        match &self.second {
            None => Ok(first),
            Some(second) => self.normed_over(second.forward(&ops::gelu(&first)?)?, batch),
        }
    }

    /// Batch norm without gain and offset, where it is on: [B, width].
    fn normed(&self, x: Tensor) -> Result<Tensor> {
        if !self.batch_norm {
            return Ok(x);
        }
        let (rows, _) = x.dims2()?;
        enough(rows)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(0)? + BATCH_NORM_EPS)?.sqrt()?;
        Ok(centred.broadcast_div(&deviation)?)
    }

    /// [`Self::normed`] by the mean and the variance of all processes' rows.
    fn normed_over(&self, x: Tensor, batch: &SharedBatch<'_>) -> Result<Tensor> {
        if !self.batch_norm {
            return Ok(x);
        }
        enough(batch.rows)?;
        let rows = batch.rows as f64;
        let mean = ((batch.sum)(&x.sum_keepdim(0)?)? / rows)?; // [1, width]
        let centred = x.broadcast_sub(&mean)?;
        let squares = (batch.sum)(&centred.sqr()?.sum_keepdim(0)?)?;
        let deviation = ((squares / rows)? + BATCH_NORM_EPS)?.sqrt()?;
        Ok(centred.broadcast_div(&deviation)?)
    }
}

/// Fails where batch norm would make a batch of `rows` 0.
fn enough(rows: usize) -> Result<()> {
    if rows < 2 {
        let found = format!("expected at least 2 rows for batch norm, found {rows}");
        return Err(Error::config("projection", found));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::testing::{check, random, values};

    /// A head of weights `x[1]` and `x[2]`, and where it has any of biases `x[3]` and `x[4]`.
    fn head(x: &[Tensor]) -> ProjectionHead {
        let config = ProjectionHeadConfig {
            input: 3,
            hidden: 4,
            output: 2,
            batch_norm: x.len() == 3,
        };
        let names = ["mlp.0.weight", "mlp.2.weight", "mlp.0.bias", "mlp.2.bias"].map(str::to_owned);
        let named = names.into_iter().zip(x[1..].iter().cloned()).collect();
        let vb = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
        ProjectionHead::new(&config, vb).unwrap()
    }

    fn inputs(rows: usize, batch_norm: bool) -> Vec<Tensor> {
        let mut inputs = vec![random(1, &[rows, 3]), random(2, &[4, 3]), random(4, &[2, 4])];
        if !batch_norm {
            inputs.extend([random(3, &[4]), random(5, &[2])]);
        }
        inputs
    }

    #[test]
    fn without_a_hidden_layer_a_head_is_linear() {
        for batch_norm in [false, true] {
            let config = ProjectionHeadConfig {
                input: 3,
                hidden: 0,
                output: 2,
                batch_norm,
            };
            let (weight, bias) = (random(2, &[2, 3]), random(3, &[2]));
            let named = [
                ("mlp.0.weight".to_owned(), weight.clone()),
                ("mlp.0.bias".to_owned(), bias.clone()),
            ];
            let vb = VarBuilder::from_tensors(named.into(), DType::F32, &Device::Cpu);
            let head = ProjectionHead::new(&config, vb).unwrap();
            let names: Vec<String> = config.parameters().into_iter().map(|(name, _)| name).collect();
            let expected = if batch_norm {
                &["mlp.0.weight"][..]
            } else {
                &["mlp.0.weight", "mlp.0.bias"]
            };
            assert_eq!(names, expected);
            let tokens = random(1, &[5, 3]);
            let linear = tokens.matmul(&weight.t().unwrap()).unwrap();
            let expected = if batch_norm {
                head.normed(linear).unwrap()
            } else {
                linear.broadcast_add(&bias).unwrap()
            };
            for (a, b) in values(&head.project(&tokens).unwrap())
                .iter()
                .zip(values(&expected))
            {
                assert!((a - b).abs() < 1e-6, "found {a}, expected {b}");
            }
        }
    }

    #[test]
    fn batch_norm_agrees_with_the_composition() {
        let norm = |x: &[Tensor]| head(&inputs(2, true)).normed(x[0].clone());
        check(
            &[random(1, &[5, 3])],
            &|x| norm(x).map_err(candle_core::Error::wrap),
            &|x| {
                let centred = x[0].broadcast_sub(&x[0].mean_keepdim(0)?)?;
                let variance = (centred.sqr()?.mean_keepdim(0)? + BATCH_NORM_EPS)?;
                centred.broadcast_div(&variance.sqrt()?)
            },
        );
    }

    #[test]
    fn a_shared_batch_of_one_process_is_its_own() {
        let x = inputs(5, true);
        let own = head(&x).project(&x[0]).unwrap();
        let batch = SharedBatch {
            rows: 5,
            sum: &|tensor| Ok(tensor.clone()),
        };
        let shared = head(&x).project_shared(&x[0], &batch).unwrap();
        for (a, b) in values(&shared).iter().zip(values(&own)) {
            assert!((a - b).abs() < 1e-6, "found {a}, expected {b}");
        }
    }

    #[test]
    fn batch_norm_takes_out_what_all_rows_share() {
        let spread = |batch_norm| {
            let x = inputs(6, batch_norm);
            let alike = (&x[0] + 50.).unwrap();
            let points = head(&x).project(&alike).unwrap();
            let mean = values(&ops::l2_normalize(&points, 1e-12).unwrap().mean(0).unwrap());
            1. - mean.iter().map(|value| value * value).sum::<f64>()
        };
        assert!(spread(false) < 0.1 && spread(true) > 0.5);
        let one = inputs(1, true);
        let error = head(&one).project(&one[0]).unwrap_err().to_string();
        assert!(error.contains("expected at least 2 rows"), "{error}");
    }
}
