//! The whole network as an ONNX file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::file::{self, entry};
use super::graph::{Graph, Side, Value, int, ints};
use super::operators::Layers;
use super::options::{ExportOptions, ImageShape, OutputKind};
use super::proto::{ModelProto, OperatorSetIdProto};
use super::relative::Relative;
use super::{position_table, rotary};
use crate::vit::{FinalNorm, Pool, VitConfig};
use crate::weights::Tensors;
use crate::{Error, Result};

/// Version of the standard operator set: the first with `Gelu`.
///
/// ONNX Runtime 1.20 takes up to 21, so the `Attention` operator (23) is out of reach.
pub const OPSET: i64 = 20;

/// Version of the file format; ONNX Runtime 1.20 takes up to 10.
pub const IR_VERSION: i64 = 9;

/// What the names of outputs begin with that are the input of a linear layer ([`ExportOptions::layer_inputs`]).
pub const LAYER_INPUT: &str = "input:";

/// Name of the one input, float32 `[batch, C, H, W]`, normalised pixels.
pub const INPUT: &str = "pixel_values";

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// The model.
    pub path: PathBuf,
    /// The file of its weights, where they are not in the model.
    pub external_data: Option<PathBuf>,
    /// Names of the outputs, in their order.
    pub outputs: Vec<String>,
    /// Number of nodes.
    pub nodes: usize,
    /// Size of all constants, in bytes.
    pub constant_bytes: u64,
}

/// Writes the network of `config` with the parameters `backbone` (official names) to `path`, replacing what is there.
///
/// Parameters of any float type are written as [`ExportOptions::numbers`] says, one at a time. The mask token is not part of the file.
///
/// # Errors
/// Outputs that the network does not have or that are named twice, an image size that is no multiple of the patch
/// size, a parameter that is missing or misshapen, or a refusal of the file system. Nothing is written then.
pub fn export(
    config: &VitConfig,
    backbone: &Tensors,
    options: &ExportOptions,
    path: &Path,
) -> Result<ExportReport> {
    let mut layers = Layers::new(config, backbone, &options.numbers)?;
    let outputs = checked_outputs(config, options)?;
    let shape = Shape::new(config, options.image)?;
    let pixels = layers.graph.input(
        INPUT,
        &[
            Side::Symbol("batch"),
            Side::Size(config.in_channels),
            shape.height,
            shape.width,
        ],
    );
    let (tokens, grid) = embed(&mut layers, config, &shape, &pixels)?;
    if let Some(rope) = config.rope {
        layers.rotary = Some(match shape.grid {
            Some(grid) => rotary::fixed(&mut layers.graph, config, rope, grid)?,
            None => rotary::dynamic(&mut layers.graph, config, rope, &grid),
        });
    }
    if config.relative_positions.is_some() {
        layers.relative = Some(match shape.grid {
            Some((rows, columns)) => Relative::fixed(&mut layers.graph, rows, columns),
            None => Relative::dynamic(&mut layers.graph, config, &grid),
        });
    }
    let states = run_blocks(&mut layers, config, &outputs, tokens)?;
    add_outputs(&mut layers, config, &shape, &outputs, &states)?;
    if options.layer_inputs {
        for (layer, value) in std::mem::take(&mut layers.taps) {
            let sides = [Side::Symbol("batch"), Side::Symbol(""), Side::Symbol("")];
            layers
                .graph
                .output(&format!("{LAYER_INPUT}{layer}"), &value, &sides);
        }
    }

    let (graph, constants) = layers.graph.finish("dinov2_vit");
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "macula".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: None,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: options
            .metadata
            .iter()
            .map(|(key, value)| entry(key, value))
            .collect(),
    };
    let written = file::write(&model, &graph, &constants, path, options.external_data_over)?;
    Ok(ExportReport {
        path: path.to_owned(),
        external_data: written.data,
        outputs: outputs.iter().map(ToString::to_string).collect(),
        nodes: graph.node.len(),
        constant_bytes: written.constant_bytes,
    })
}

/// The outputs asked for, or the default ones.
fn checked_outputs(config: &VitConfig, options: &ExportOptions) -> Result<Vec<OutputKind>> {
    if options.outputs.is_empty() {
        return Ok(OutputKind::defaults(config));
    }
    let mut seen = BTreeSet::new();
    for &output in &options.outputs {
        output.check(config)?;
        if !seen.insert(output) {
            return Err(Error::config(
                "outputs",
                format!("expected each output once, found `{output}` twice"),
            ));
        }
    }
    Ok(options.outputs.clone())
}

/// The sides of an image and of its patch grid, as far as they are known.
struct Shape {
    height: Side,
    width: Side,
    patches: Side,
    /// Rows and columns of the patch grid of a fixed size.
    grid: Option<(usize, usize)>,
}

impl Shape {
    fn new(config: &VitConfig, image: ImageShape) -> Result<Self> {
        Ok(match image {
            ImageShape::Fixed { height, width } => {
                let grid = config.grid(height, width)?;
                Self {
                    height: Side::Size(height),
                    width: Side::Size(width),
                    patches: Side::Size(grid.0 * grid.1),
                    grid: Some(grid),
                }
            }
            ImageShape::Dynamic => Self {
                height: Side::Symbol("height"),
                width: Side::Symbol("width"),
                patches: Side::Symbol("patches"),
                grid: None,
            },
        })
    }
}

/// Pixels to tokens `[B, T, D]` in the order CLS, registers, patches; position codes added, and normalised where CLIP does. With
/// them the patches as a map `[B, D, rows, columns]`.
fn embed(
    layers: &mut Layers<'_>,
    config: &VitConfig,
    shape: &Shape,
    pixels: &Value,
) -> Result<(Value, Value)> {
    let map = layers.patch_embed(pixels)?; // [B, D, rows, columns]
    let table = match (config.has_position_table(), shape.grid) {
        (false, _) => position_table::without_positions(layers, config, &map, shape.grid)?,
        (true, Some((rows, columns))) => Some(position_table::fixed(layers, config, rows, columns)?),
        (true, None) => Some(position_table::dynamic(layers, config, &map)?),
    }; // [1, T, D]
    let graph = &mut layers.graph;
    let flat = graph.integers(&[0, config.embed_dim as i64, -1]);
    let patches = graph.node("patch_embed.flat", "Reshape", &[&map, &flat], vec![]); // [B, D, N]
    let patches = graph.node(
        "patch_embed",
        "Transpose",
        &[&patches],
        vec![ints("perm", &[0, 2, 1])],
    ); // [B, N, D]
    // Zeros in the places of CLS and registers, whose values are in the table: no tensor is repeated over the batch.
    let tokens = match config.prefix() {
        0 => patches,
        prefix => {
            let pads = graph.integers(&[0, prefix as i64, 0, 0, 0, 0]);
            graph.node("tokens.patches", "Pad", &[&patches, &pads], vec![]) // [B, T, D]
        }
    };
    let tokens = match table {
        Some(table) => graph.node("tokens", "Add", &[&tokens, &table], vec![]),
        None => tokens,
    };
    let tokens = match config.pre_norm {
        true => layers.layer_norm("norm_pre", &tokens)?,
        false => tokens,
    };
    Ok((tokens, map))
}

/// Runs the blocks as far as an output needs them. Returns the tokens `[B, T, D]` after each block that has outputs,
/// without the patch tokens where no output needs those.
fn run_blocks(
    layers: &mut Layers<'_>,
    config: &VitConfig,
    outputs: &[OutputKind],
    mut tokens: Value,
) -> Result<BTreeMap<usize, Value>> {
    let wanted: BTreeSet<usize> = outputs.iter().map(|output| output.block(config.depth)).collect();
    let last = wanted.last().copied().unwrap_or(0);
    let mut states = BTreeMap::new();
    for index in 0..=last {
        let kept = kept_tokens(config, outputs, index);
        if index == last {
            states.insert(index, layers.block(index, &tokens, kept)?);
            break;
        }
        // Blocks that follow need every token.
        tokens = layers.block(index, &tokens, None)?;
        if wanted.contains(&index) {
            let state = match kept {
                Some(kept) => {
                    let name = format!("blocks.{index}.kept");
                    layers.graph.tokens(&name, &tokens, 0, kept as i64)
                }
                None => tokens.clone(),
            };
            states.insert(index, state);
        }
    }
    Ok(states)
}

/// How many first tokens the outputs of a block are taken from, if not from all.
fn kept_tokens(config: &VitConfig, outputs: &[OutputKind], block: usize) -> Option<usize> {
    let mut kept = 1;
    for output in outputs
        .iter()
        .filter(|output| output.block(config.depth) == block)
    {
        match output {
            OutputKind::Embedding if config.pool != Pool::Class => return None,
            OutputKind::Cls | OutputKind::Embedding | OutputKind::LayerCls(_) => {}
            OutputKind::Reg => kept = config.prefix(),
            OutputKind::Patch | OutputKind::PatchMean | OutputKind::LayerPatch(_) => return None,
        }
    }
    Some(kept)
}

/// Normalises the states that have outputs and takes the outputs from them.
fn add_outputs(
    layers: &mut Layers<'_>,
    config: &VitConfig,
    shape: &Shape,
    outputs: &[OutputKind],
    states: &BTreeMap<usize, Value>,
) -> Result<()> {
    let mut taken = BTreeMap::new();
    for (&block, state) in states {
        let normed = match config.final_norm {
            FinalNorm::Tokens => layers.layer_norm("norm", state)?, // [B, T, D]
            FinalNorm::Pooled | FinalNorm::None => state.clone(),
        };
        taken.insert(block, Taken::new(normed));
    }
    let (batch, width) = (Side::Symbol("batch"), Side::Size(config.embed_dim));
    for output in outputs {
        let graph = &mut layers.graph;
        let Some(taken) = taken.get_mut(&output.block(config.depth)) else {
            continue;
        };
        let (value, sides) = match output {
            OutputKind::Cls | OutputKind::LayerCls(_) => (taken.cls(graph), vec![batch, width]),
            OutputKind::Patch | OutputKind::LayerPatch(_) => {
                (taken.patch(graph, config), vec![batch, shape.patches, width])
            }
            OutputKind::PatchMean => (taken.patch_mean(graph, config), vec![batch, width]),
            OutputKind::Reg => {
                let (first, last) = (config.class_tokens() as i64, config.prefix() as i64);
                let value = graph.tokens("reg.value", &taken.tokens, first, last);
                (value, vec![batch, Side::Size(config.num_registers), width])
            }
            OutputKind::Embedding => {
                let sides = vec![batch, Side::Size(config.embedding_width().unwrap_or(0))];
                (embedding(layers, config, taken)?, sides)
            }
        };
        layers.graph.output(&output.to_string(), &value, &sides);
    }
    Ok(())
}

/// What is pooled of the tokens after the last block, and projected, `[B, E]`.
fn embedding(layers: &mut Layers<'_>, config: &VitConfig, taken: &mut Taken) -> Result<Value> {
    let pooled = match config.pool {
        Pool::Class => taken.cls(&mut layers.graph),
        Pool::Mean => taken.patch_mean(&mut layers.graph, config),
        Pool::Attention(_) => layers.attention_pool(&taken.tokens)?,
    };
    let pooled = match config.final_norm {
        FinalNorm::Pooled => layers.layer_norm("fc_norm", &pooled)?,
        FinalNorm::Tokens | FinalNorm::None => pooled,
    };
    match config.projection {
        Some(_) => layers.projection(&pooled),
        None => Ok(pooled),
    }
}

/// The tokens after one block and the final norm, and the parts of them that are taken already.
struct Taken {
    tokens: Value,
    cls: Option<Value>,
    patch: Option<Value>,
    patch_mean: Option<Value>,
}

impl Taken {
    fn new(tokens: Value) -> Self {
        Self {
            tokens,
            cls: None,
            patch: None,
            patch_mean: None,
        }
    }

    /// `[B, D]`.
    fn patch_mean(&mut self, graph: &mut Graph<'_>, config: &VitConfig) -> Value {
        let patch = self.patch(graph, config);
        self.patch_mean
            .get_or_insert_with(|| {
                let axes = graph.integers(&[1]);
                let attributes = vec![int("keepdims", 0)];
                graph.node("patch_mean.value", "ReduceMean", &[&patch, &axes], attributes)
            })
            .clone()
    }

    /// `[B, D]`.
    fn cls(&mut self, graph: &mut Graph<'_>) -> Value {
        let tokens = &self.tokens;
        self.cls
            .get_or_insert_with(|| {
                let first = graph.integer(0);
                graph.node("norm.cls", "Gather", &[tokens, &first], vec![int("axis", 1)])
            })
            .clone()
    }

    /// `[B, N, D]`.
    fn patch(&mut self, graph: &mut Graph<'_>, config: &VitConfig) -> Value {
        let tokens = &self.tokens;
        self.patch
            .get_or_insert_with(|| match config.prefix() {
                0 => tokens.clone(),
                first => graph.tokens("norm.patch", tokens, first as i64, i64::MAX),
            })
            .clone()
    }
}
