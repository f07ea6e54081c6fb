//! Weight files: readers for every family of checkpoint macula knows, and the writer of official names.

mod options;

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::vit::VitConfig;

pub use options::LoadOptions;

/// Tensors by name, in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Who wrote a checkpoint, told from its keys and shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// facebookresearch/dinov2 backbone, or one written by macula.
    Official,
    /// facebookresearch/dino (v1) backbone: neither LayerScale nor mask token.
    DinoV1,
    /// transformers `Dinov2Model` or `Dinov2WithRegistersModel`, with or without its classifier.
    HuggingFace,
    /// timm `vit_*_dinov2`.
    Timm,
}

/// A backbone as read from a file: its geometry and its parameters under official names, plus what else the file held.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Geometry, with the position rule of the family (or of the override).
    pub config: VitConfig,
    /// Exactly the tensors of [`VitConfig::parameters`], f32, on the CPU.
    pub backbone: Tensors,
    /// Heads and classifiers under their full names (`dino_head.mlp.0.weight`, `classifier.weight`).
    pub heads: Tensors,
    /// Where the names came from.
    pub family: Family,
    /// SHA-256 of the weight file, in hexadecimal.
    pub source_sha256: String,
}
