//! Weight files: readers for every family of checkpoint macula knows, and the writer of official names.
//!
//! [`read_tensors`] opens a file or folder and lists what it holds without reading the numbers (`safetensors_file`,
//! `torch_zip`, `torch_legacy` with the strict `pickle` machine under them). [`load`] tells the family from keys
//! and shapes, checks every tensor against the geometry, and returns the backbone under official names; each family is
//! one file holding one table (`official`, `dino`, `hugging_face`, `timm`). [`save`] writes.

mod dino;
mod element;
mod family;
mod geometry;
mod hf_config;
mod hugging_face;
mod load;
mod official;
mod options;
mod pickle;
mod raw;
mod safetensors_file;
mod save;
mod source;
mod timm;
mod torch_legacy;
mod torch_objects;
mod torch_zip;
mod wrappers;

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::vit::VitConfig;

pub use element::ElementType;
pub use load::load;
pub use options::LoadOptions;
pub use raw::{Format, RawTensor, RawTensors, read_tensors};
pub use save::{PREPROCESS_KEY, config_metadata, save};

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
    /// How images are prepared for the network, where the file says ([`PREPROCESS_KEY`]): JSON that this package hands on.
    pub preprocess: Option<String>,
}
