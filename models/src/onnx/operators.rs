//! The layers of the vision transformer as ONNX nodes. Shapes are of batch-first token sequences `[B, T, D]`.
//!
//! Everything is in the standard operator set, in forms that ONNX Runtime's optimiser and kernels know: `Gelu` merges
//! with the bias before it, `LayerNormalization` is one kernel, the scale of attention merges into its product, and the
//! transposed weight of a linear layer is packed once when the session is made.
//!
//! Other forms were measured and are no faster: ViT-S/14 at 224 px, batch 8, ONNX Runtime 1.32 on 2 threads of an EPYC
//! (AVX2), processor time of the fastest of 10 interleaved runs.
//!
//! | attention | linear | seconds |
//! |---|---|---|
//! | standard nodes, one QKV product (this file) | `MatMul`, `Add` | 1.53 |
//! | the same, LayerScale and the scale folded into weights | `MatMul`, `Add` | 1.55 |
//! | standard nodes, three products | `MatMul`, `Add` | 1.61 |
//! | standard nodes, one QKV product | `Gemm` (transB) on `[B T, D]` | 1.51 |
//! | `com.microsoft` MultiHeadAttention | `MatMul`, `Add` | 1.53 |
//! | `Attention` (operator set 23) | `MatMul`, `Add` | 1.59 |
//!
//! The machine was shared, and repetitions differ by about 5 %: the table shows that nothing is to be gained, not an
//! order. So the weights in the file are the network's own.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::graph::{Graph, Value, float, int, ints, text};
use super::numbers::{InputRange, Numbers, weight_scales, weight_steps};
use super::relative::Relative;
use super::rotary::Factors;
use crate::vit::{FeedForwardKind, GeluKind, RELATIVE_TABLE, RelativePositions, VitConfig};
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

/// The input of a layer in 8-bit steps, as floats again.
fn quantised_input(graph: &mut Graph<'_>, name: &str, x: &Value, range: InputRange) -> Value {
    let (scale, zero) = range.scale_and_zero();
    let scale = graph.floats(&format!("{name}.input.scale"), &[], vec![scale]);
    let zero = graph.byte(&format!("{name}.input.zero"), zero);
    let steps = graph.node(
        &format!("{name}.input.steps"),
        "QuantizeLinear",
        &[x, &scale, &zero],
        vec![],
    );
    graph.node(
        &format!("{name}.input"),
        "DequantizeLinear",
        &[&steps, &scale, &zero],
        vec![],
    )
}

/// The weight of a layer, `rows` giving it as [out, in], in 8-bit steps [in, out] of a scale for each output, as floats again.
fn quantised_weight<'a>(
    graph: &mut Graph<'a>,
    name: &str,
    [inputs, outputs]: [usize; 2],
    rows: impl Fn() -> Result<Vec<f32>> + 'a,
) -> Result<Value> {
    let scales = weight_scales(&rows()?, inputs);
    let scale = graph.floats(&format!("{name}.weight.scale"), &[outputs], scales.clone());
    let steps = graph.small_integers(&format!("{name}.weight.steps"), &[inputs, outputs], move || {
        let steps = weight_steps(&rows()?, inputs, &scales); // [out, in]
        let transposed =
            (0..inputs).flat_map(|input| (0..outputs).map(move |output| output * inputs + input));
        Ok(transposed.map(|place| steps[place]).collect())
    });
    Ok(graph.node(
        &format!("{name}.weight"),
        "DequantizeLinear",
        &[&steps, &scale],
        vec![int("axis", 1)],
    ))
}

/// Writes the layers of one network into a graph. Names of layers are the official ones (`blocks.0.attn.qkv`).
pub struct Layers<'a> {
    /// The graph so far.
    pub graph: Graph<'a>,
    config: &'a VitConfig,
    tensors: &'a Tensors,
    /// Parameters that are in the graph, by name: the final norm is applied to several layers.
    parameters: BTreeMap<String, Value>,
    numbers: &'a Numbers,
    /// What queries and keys are turned by, where there are rotary positions.
    pub rotary: Option<Factors>,
    /// What is added to scores, where positions are relative.
    pub relative: Option<Relative>,
    /// The bias that all blocks share, once it is in the graph.
    shared_bias: Option<Value>,
    /// What goes into each linear layer, by the layer's name.
    pub taps: Vec<(String, Value)>,
}

impl<'a> Layers<'a> {
    /// An empty graph for a network, whose parameters must be those of the configuration.
    ///
    /// # Errors
    /// A parameter that is missing or has another shape.
    pub fn new(config: &'a VitConfig, tensors: &'a Tensors, numbers: &'a Numbers) -> Result<Self> {
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
            numbers,
            rotary: None,
            relative: None,
            shared_bias: None,
            taps: Vec::new(),
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
        let make = move || values(tensor);
        // Vectors stay as they are: they are few.
        let value = match self.numbers {
            Numbers::F16 if tensor.rank() > 1 => self.graph.half_weight(name, tensor.dims(), make),
            _ => self.graph.weight(name, tensor.dims(), make),
        };
        self.parameters.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    /// `x W^T + b`.
    fn linear(&mut self, name: &str, x: &Value) -> Result<Value> {
        let (out, _) = self.tensor(&format!("{name}.weight"))?.dims2()?;
        self.linear_rows(name, name, 0..out, x)
    }

    /// `x W^T + b` with the outputs `rows` of `layer` only, under another name.
    ///
    /// The weight is stored as the `[in, out]` matrix of a product from the right.
    fn linear_rows(&mut self, layer: &str, name: &str, rows: Range<usize>, x: &Value) -> Result<Value> {
        let weight = self.tensor(&format!("{layer}.weight"))?;
        let bias = self.tensor(&format!("{layer}.bias"))?;
        let (_, inputs) = weight.dims2()?;
        let (first, count) = (rows.start, rows.len());
        self.taps.push((name.to_owned(), x.clone()));
        let graph = &mut self.graph;
        let transposed = format!("{name}.weight.transposed");
        let make = move || values(&weight.narrow(0, first, count)?.t()?);
        let (x, weight) = match self.numbers {
            Numbers::F32 => (x.clone(), graph.weight(&transposed, &[inputs, count], make)),
            Numbers::F16 => (x.clone(), graph.half_weight(&transposed, &[inputs, count], make)),
            Numbers::Int8(ranges) => match ranges.get(name) {
                None => (x.clone(), graph.weight(&transposed, &[inputs, count], make)),
                Some(range) => {
                    let rows = move || values(&weight.narrow(0, first, count)?);
                    (
                        quantised_input(graph, name, x, *range),
                        quantised_weight(graph, name, [inputs, count], rows)?,
                    )
                }
            },
        };
        let bias = graph.weight(&format!("{name}.bias"), &[count], move || {
            values(&bias.narrow(0, first, count)?)
        });
        let product = graph.node(&format!("{name}.product"), "MatMul", &[&x, &weight], vec![]);
        Ok(graph.node(name, "Add", &[&product, &bias], vec![]))
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
    ///
    /// With `kept`, only that many first tokens come out: the others are keys and values, and no more is computed for
    /// them.
    pub fn block(&mut self, index: usize, x: &Value, kept: Option<usize>) -> Result<Value> {
        let block = format!("blocks.{index}");
        let y = self.layer_norm(&format!("{block}.norm1"), x)?;
        let y = self.attention(&format!("{block}.attn"), &y, kept)?;
        let x = match kept {
            Some(kept) => self.graph.tokens(&format!("{block}.kept"), x, 0, kept as i64),
            None => x.clone(),
        };
        let x = self.residual(&block, 1, &x, &y)?;
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

    /// Queries, keys and values `[B, T, D]` of tokens; queries of the first `kept` ones only.
    fn queries_keys_values(&mut self, name: &str, x: &Value, kept: Option<usize>) -> Result<[Value; 3]> {
        let layer = format!("{name}.qkv");
        let split = format!("{name}.split");
        let Some(kept) = kept else {
            let qkv = self.linear(&layer, x)?; // [B, T, 3D]
            return Ok(self.graph.split(&split, &qkv));
        };
        let d = self.config.embed_dim;
        let first = self.graph.tokens(&format!("{name}.kept"), x, 0, kept as i64);
        let q = self.linear_rows(&layer, &format!("{name}.qkv.q"), 0..d, &first)?; // [B, kept, D]
        let kv = self.linear_rows(&layer, &format!("{name}.qkv.kv"), d..3 * d, x)?; // [B, T, 2D]
        let [k, v] = self.graph.split(&split, &kv);
        Ok([q, k, v])
    }

    /// The bias of a block's scores `[heads, T, T]`, its first `kept` rows, where positions are relative.
    fn relative_bias(&mut self, name: &str, kept: Option<usize>) -> Result<Option<Value>> {
        let shared = self.config.relative_positions == Some(RelativePositions::Shared);
        let (bias, table) = match shared {
            true => ("relative.bias".to_owned(), RELATIVE_TABLE.to_owned()),
            false => (format!("{name}.bias"), format!("{name}.{RELATIVE_TABLE}")),
        };
        let bias = match (&self.relative, &self.shared_bias) {
            (None, _) => return Ok(None),
            (Some(_), Some(bias)) if shared => bias.clone(),
            (Some(relative), _) => {
                let table = self.tensors.get(&table);
                let table =
                    table.ok_or_else(|| Error::config(bias.as_str(), "expected a table, found none"))?;
                relative.bias(&mut self.graph, &bias, table)?
            }
        };
        if shared {
            self.shared_bias = Some(bias.clone());
        }
        Ok(Some(match kept {
            Some(kept) => self
                .graph
                .tokens(&format!("{name}.bias.kept"), &bias, 0, kept as i64),
            None => bias,
        }))
    }

    /// Multi-head self-attention; the result is that of the first `kept` tokens.
    fn attention(&mut self, name: &str, x: &Value, kept: Option<usize>) -> Result<Value> {
        let (heads, width) = (self.config.num_heads as i64, self.config.head_dim() as i64);
        let [q, k, v] = self.queries_keys_values(name, x, kept)?;
        let bias = self.relative_bias(name, kept)?;
        let graph = &mut self.graph;
        let rotary = self.rotary.as_ref();
        // What is kept are CLS and registers, whose queries are not turned.
        let turned = rotary.filter(|_| kept.is_none());
        let per_head = graph.integers(&[0, 0, heads, width]);
        let mut head = |part: &str, value: &Value, order: [i64; 4], rotary: Option<&Factors>| {
            let part = format!("{name}.{part}");
            let mut value = graph.node(&format!("{part}.heads"), "Reshape", &[value, &per_head], vec![]);
            if let Some(rotary) = rotary {
                value = rotary.turn(graph, &part, &value);
            }
            graph.node(&part, "Transpose", &[&value], vec![ints("perm", &order)])
        };
        let q = head("q", &q, [0, 2, 1, 3], turned); // [B, heads, T, width]
        let k = head("k", &k, [0, 2, 3, 1], rotary); // [B, heads, width, T]
        let v = head("v", &v, [0, 2, 1, 3], None); // [B, heads, T, width]
        let scale = graph.floats(&format!("{name}.scale"), &[], vec![(width as f32).sqrt().recip()]);
        let q = graph.node(&format!("{name}.q.scaled"), "Mul", &[&q, &scale], vec![]);
        let scores = graph.node(&format!("{name}.scores"), "MatMul", &[&q, &k], vec![]); // [B, heads, T, T]
        let scores = match &bias {
            Some(bias) => graph.node(&format!("{name}.biased"), "Add", &[&scores, bias], vec![]),
            None => scores,
        };
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
        let mixed = match self.config.attention_norm {
            true => self.layer_norm(&format!("{name}.norm"), &mixed)?,
            false => mixed,
        };
        self.linear(&format!("{name}.proj"), &mixed)
    }

    /// GELU of this kind.
    fn gelu(&mut self, name: &str, kind: GeluKind, x: &Value) -> Value {
        let graph = &mut self.graph;
        let gelu = format!("{name}.gelu");
        match kind {
            // `approximate` is left at `none`: the exact form, with erf.
            GeluKind::Gelu => graph.node(&gelu, "Gelu", &[x], vec![]),
            GeluKind::GeluTanh => graph.node(&gelu, "Gelu", &[x], vec![text("approximate", "tanh")]),
            GeluKind::QuickGelu => {
                let factor = graph.floats(&format!("{gelu}.factor"), &[], vec![1.702]);
                let scaled = graph.node(&format!("{gelu}.scaled"), "Mul", &[x, &factor], vec![]);
                let gate = graph.node(&format!("{gelu}.gate"), "Sigmoid", &[&scaled], vec![]);
                graph.node(&gelu, "Mul", &[x, &gate], vec![])
            }
        }
    }

    /// Pooling by attention of tokens `[B, T, D]`: `[B, D]`. The query is a constant.
    pub fn attention_pool(&mut self, tokens: &Value) -> Result<Value> {
        const NAME: &str = "attn_pool";
        let d = self.config.embed_dim;
        let heads = self.config.pool_heads();
        let width = d / heads;
        let of = |name: &str| cpu_f32(self.tensor(&format!("{NAME}.{name}"))?);
        let (latent, weight, bias) = (of("latent")?, of("qkv.weight")?, of("qkv.bias")?);
        let query = latent.reshape((1, d))?.matmul(&weight.narrow(0, 0, d)?.t()?)?;
        let query = query.broadcast_add(&bias.narrow(0, 0, d)?)?;
        let query = (query / (width as f64).sqrt())?.flatten_all()?.to_vec1()?;
        let both = self.linear_rows("attn_pool.qkv", "attn_pool.qkv.kv", d..3 * d, tokens)?; // [B, T, 2D]
        let graph = &mut self.graph;
        let query = graph.floats("attn_pool.query", &[1, heads, 1, width], query);
        let [k, v] = graph.split("attn_pool.split", &both);
        let per_head = graph.integers(&[0, 0, heads as i64, width as i64]);
        let mut head = |part: &str, value: &Value, order: [i64; 4]| {
            let value = graph.node(
                &format!("{NAME}.{part}.heads"),
                "Reshape",
                &[value, &per_head],
                vec![],
            );
            graph.node(
                &format!("{NAME}.{part}"),
                "Transpose",
                &[&value],
                vec![ints("perm", &order)],
            )
        };
        let k = head("k", &k, [0, 2, 3, 1]); // [B, heads, width, T]
        let v = head("v", &v, [0, 2, 1, 3]); // [B, heads, T, width]
        let scores = graph.node("attn_pool.scores", "MatMul", &[&query, &k], vec![]); // [B, heads, 1, T]
        let weights = graph.node("attn_pool.softmax", "Softmax", &[&scores], vec![int("axis", -1)]);
        let mixed = graph.node("attn_pool.mixed", "MatMul", &[&weights, &v], vec![]); // [B, heads, 1, width]
        let flat = graph.integers(&[0, 1, d as i64]);
        let mixed = graph.node("attn_pool.mixed.flat", "Reshape", &[&mixed, &flat], vec![]); // [B, 1, D]
        let pooled = self.linear("attn_pool.proj", &mixed)?;
        let hidden = self.layer_norm("attn_pool.norm", &pooled)?;
        let hidden = self.linear("attn_pool.mlp.fc1", &hidden)?;
        let hidden = self.gelu("attn_pool.mlp", self.config.pool_activation(), &hidden);
        let hidden = self.linear("attn_pool.mlp.fc2", &hidden)?;
        let graph = &mut self.graph;
        let pooled = graph.node("attn_pool.sum", "Add", &[&pooled, &hidden], vec![]); // [B, 1, D]
        let flat = graph.integers(&[-1, d as i64]);
        Ok(graph.node("attn_pool", "Reshape", &[&pooled, &flat], vec![]))
    }

    /// The projection of what is pooled `[B, D]`: `[B, E]`. It stays in floats whatever the numbers of other layers.
    pub fn projection(&mut self, x: &Value) -> Result<Value> {
        let weight = self.tensor("projection.weight")?;
        let (out, inputs) = weight.dims2()?;
        let make = move || values(&weight.t()?);
        let name = "projection.weight.transposed";
        let weight = match self.numbers {
            Numbers::F16 => self.graph.half_weight(name, &[inputs, out], make),
            _ => self.graph.weight(name, &[inputs, out], make),
        };
        let product = self.graph.node("projection", "MatMul", &[x, &weight], vec![]);
        if !self.config.projection_bias {
            return Ok(product);
        }
        let bias = self.parameter("projection.bias")?;
        Ok(self
            .graph
            .node("projection.sum", "Add", &[&product, &bias], vec![]))
    }

    /// The feed-forward network of a block.
    fn feed_forward(&mut self, name: &str, x: &Value) -> Result<Value> {
        match self.config.feed_forward {
            FeedForwardKind::Mlp => {
                let hidden = self.linear(&format!("{name}.fc1"), x)?;
                let hidden = self.gelu(name, self.config.activation, &hidden);
                let hidden = self.ffn_norm(name, hidden)?;
                self.linear(&format!("{name}.fc2"), &hidden)
            }
            FeedForwardKind::Swiglu => {
                let both = self.linear(&format!("{name}.w12"), x)?; // [B, T, 2 hidden]
                let [gate, value] = self.graph.split(&format!("{name}.split"), &both);
                let graph = &mut self.graph;
                let sigmoid = graph.node(&format!("{name}.sigmoid"), "Sigmoid", &[&gate], vec![]);
                let silu = graph.node(&format!("{name}.silu"), "Mul", &[&gate, &sigmoid], vec![]);
                let hidden = graph.node(&format!("{name}.gated"), "Mul", &[&silu, &value], vec![]);
                let hidden = self.ffn_norm(name, hidden)?;
                self.linear(&format!("{name}.w3"), &hidden)
            }
        }
    }

    /// The norm before the second projection, where there is one.
    fn ffn_norm(&mut self, name: &str, hidden: Value) -> Result<Value> {
        match self.config.ffn_norm {
            true => self.layer_norm(&format!("{name}.norm"), &hidden),
            false => Ok(hidden),
        }
    }
}
