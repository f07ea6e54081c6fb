//! The layers of the vision transformer as ONNX nodes. Shapes are of batch-first token sequences `[B, T, D]`.
//!
//! Everything is in the standard operator set, in the forms that ONNX Runtime's optimiser and kernels know: `Gelu`
//! merges with the bias before it, `LayerNormalization` is one kernel, a linear layer is `MatMul` by a transposed
//! weight (packed once when the session is made) and `Add`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::graph::{Graph, Value, float, int, ints};
use crate::vit::{FeedForwardKind, VitConfig};
use crate::weights::Tensors;
use crate::{Error, Result};

/// A tensor on any device and of any float type as f32 on the CPU.
pub fn cpu_f32(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Row-major values of a tensor, on any device and of any float type, as f32.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(cpu_f32(tensor)?.flatten_all()?.to_vec1()?)
}

/// Writes the layers of one network into a graph. Names of layers are the official ones (`blocks.0.attn.qkv`).
pub struct Layers<'a> {
    /// The graph so far.
    pub graph: Graph<'a>,
    config: &'a VitConfig,
    tensors: &'a Tensors,
    /// Parameters that are in the graph, by name: the final norm is applied to several layers.
    parameters: BTreeMap<String, Value>,
}

impl<'a> Layers<'a> {
    /// An empty graph for a network, whose parameters must be those of the configuration.
    ///
    /// # Errors
    /// A parameter that is missing or has another shape.
    pub fn new(config: &'a VitConfig, tensors: &'a Tensors) -> Result<Self> {
        config.validate()?;
        for (name, shape) in config.parameters() {
            // The graph is for inference: nothing is masked.
            if name == "mask_token" {
                continue;
            }
            let found = tensors.get(&name).map(|tensor| tensor.dims());
            if found != Some(shape.as_slice()) {
                let found = found.map_or("none".into(), |dims| format!("{dims:?}"));
                return Err(Error::config(
                    name,
                    format!("expected a tensor of shape {shape:?}, found {found}"),
                ));
            }
        }
        Ok(Self {
            graph: Graph::default(),
            config,
            tensors,
            parameters: BTreeMap::new(),
        })
    }

    /// A parameter of the network.
    pub fn tensor(&self, name: &str) -> Result<&'a Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::config(name, "expected a tensor of this name, found none"))
    }

    /// A parameter as it is.
    fn parameter(&mut self, name: &str) -> Result<Value> {
        if let Some(value) = self.parameters.get(name) {
            return Ok(value.clone());
        }
        let tensor = self.tensor(name)?;
        let value = self.graph.weight(name, tensor.dims(), move || values(tensor));
        self.parameters.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    /// A `[out, in]` weight as the `[in, out]` matrix of a product from the right.
    fn transposed(&mut self, name: &str) -> Result<Value> {
        let tensor = self.tensor(name)?;
        let (rows, columns) = tensor.dims2()?;
        let name = format!("{name}.transposed");
        Ok(self
            .graph
            .weight(&name, &[columns, rows], move || values(&tensor.t()?)))
    }

    /// `x W^T + b`.
    fn linear(&mut self, name: &str, x: &Value) -> Result<Value> {
        let weight = self.transposed(&format!("{name}.weight"))?;
        let bias = self.parameter(&format!("{name}.bias"))?;
        let product = self
            .graph
            .node(&format!("{name}.product"), "MatMul", &[x, &weight], vec![]);
        Ok(self.graph.node(name, "Add", &[&product, &bias], vec![]))
    }

    /// Layer norm over the last axis.
    pub fn layer_norm(&mut self, name: &str, x: &Value) -> Result<Value> {
        let weight = self.parameter(&format!("{name}.weight"))?;
        let bias = self.parameter(&format!("{name}.bias"))?;
        let epsilon = float("epsilon", self.config.layer_norm_eps as f32);
        let attributes = vec![int("axis", -1), epsilon];
        Ok(self
            .graph
            .node(name, "LayerNormalization", &[x, &weight, &bias], attributes))
    }

    /// Patch embedding of pixels `[B, C, H, W]`: `[B, D, rows, columns]`.
    pub fn patch_embed(&mut self, pixels: &Value) -> Result<Value> {
        let patch = self.config.patch_size as i64;
        let weight = self.parameter("patch_embed.proj.weight")?;
        let bias = self.parameter("patch_embed.proj.bias")?;
        let attributes = vec![
            ints("kernel_shape", &[patch, patch]),
            ints("strides", &[patch, patch]),
        ];
        Ok(self
            .graph
            .node("patch_embed.proj", "Conv", &[pixels, &weight, &bias], attributes))
    }

    /// One block: `x + ls1 attn(norm1 x)`, then `x + ls2 mlp(norm2 x)`.
    pub fn block(&mut self, index: usize, x: &Value) -> Result<Value> {
        let block = format!("blocks.{index}");
        let y = self.layer_norm(&format!("{block}.norm1"), x)?;
        let y = self.attention(&format!("{block}.attn"), &y)?;
        let x = self.residual(&block, 1, x, &y)?;
        let y = self.layer_norm(&format!("{block}.norm2"), &x)?;
        let y = self.feed_forward(&format!("{block}.mlp"), &y)?;
        self.residual(&block, 2, &x, &y)
    }

    /// `x + ls y`, or `x + y` without LayerScale.
    fn residual(&mut self, block: &str, number: usize, x: &Value, y: &Value) -> Result<Value> {
        let mut branch = y.clone();
        if self.config.layer_scale.is_some() {
            let layer = format!("{block}.ls{number}");
            let gamma = self.parameter(&format!("{layer}.gamma"))?;
            branch = self.graph.node(&layer, "Mul", &[y, &gamma], vec![]);
        }
        let name = format!("{block}.residual{number}");
        Ok(self.graph.node(&name, "Add", &[x, &branch], vec![]))
    }

    /// Multi-head self-attention.
    fn attention(&mut self, name: &str, x: &Value) -> Result<Value> {
        let (heads, width) = (self.config.num_heads as i64, self.config.head_dim() as i64);
        let qkv = self.linear(&format!("{name}.qkv"), x)?; // [B, T, 3D]
        let thirds = self.graph.split(&format!("{name}.split"), &qkv, 3);
        let per_head = self.graph.integers(&[0, 0, heads, width]);
        let mut head = |part: &str, value: &Value, order: [i64; 4]| {
            let part = format!("{name}.{part}");
            let value = self
                .graph
                .node(&format!("{part}.heads"), "Reshape", &[value, &per_head], vec![]);
            self.graph
                .node(&part, "Transpose", &[&value], vec![ints("perm", &order)])
        };
        let q = head("q", &thirds[0], [0, 2, 1, 3]); // [B, heads, T, width]
        let k = head("k", &thirds[1], [0, 2, 3, 1]); // [B, heads, width, T]
        let v = head("v", &thirds[2], [0, 2, 1, 3]); // [B, heads, T, width]
        let graph = &mut self.graph;
        let scale = graph.floats(&format!("{name}.scale"), &[], vec![(width as f32).sqrt().recip()]);
        let q = graph.node(&format!("{name}.q.scaled"), "Mul", &[&q, &scale], vec![]);
        let scores = graph.node(&format!("{name}.scores"), "MatMul", &[&q, &k], vec![]); // [B, heads, T, T]
        let weights = graph.node(
            &format!("{name}.softmax"),
            "Softmax",
            &[&scores],
            vec![int("axis", -1)],
        );
        let mixed = graph.node(&format!("{name}.mixed"), "MatMul", &[&weights, &v], vec![]);
        let mixed = graph.node(
            &format!("{name}.mixed.tokens"),
            "Transpose",
            &[&mixed],
            vec![ints("perm", &[0, 2, 1, 3])],
        );
        let flat = graph.integers(&[0, 0, heads * width]);
        let mixed = graph.node(&format!("{name}.mixed.flat"), "Reshape", &[&mixed, &flat], vec![]); // [B, T, D]
        self.linear(&format!("{name}.proj"), &mixed)
    }

    /// The feed-forward network of a block.
    fn feed_forward(&mut self, name: &str, x: &Value) -> Result<Value> {
        match self.config.feed_forward {
            FeedForwardKind::Mlp => {
                let hidden = self.linear(&format!("{name}.fc1"), x)?;
                // `approximate` is left at `none`: the exact form, with erf.
                let hidden = self
                    .graph
                    .node(&format!("{name}.gelu"), "Gelu", &[&hidden], vec![]);
                self.linear(&format!("{name}.fc2"), &hidden)
            }
            FeedForwardKind::Swiglu => {
                let both = self.linear(&format!("{name}.w12"), x)?; // [B, T, 2 hidden]
                let halves = self.graph.split(&format!("{name}.split"), &both, 2);
                let graph = &mut self.graph;
                let sigmoid = graph.node(&format!("{name}.sigmoid"), "Sigmoid", &[&halves[0]], vec![]);
                let gate = graph.node(&format!("{name}.silu"), "Mul", &[&halves[0], &sigmoid], vec![]);
                let hidden = graph.node(&format!("{name}.gated"), "Mul", &[&gate, &halves[1]], vec![]);
                self.linear(&format!("{name}.w3"), &hidden)
            }
        }
    }
}
