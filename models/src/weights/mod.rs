//! Weight files: readers for every family of checkpoint macula knows, and the writer of official names.
//!
//! [`read_tensors`] opens a file or folder and lists what it holds without reading the numbers (`safetensors_file`,
//! `torch_zip`, `torch_legacy` with the `pickle` machine under them, which calls nothing). [`load`] finds the networks in it
//! (`roots`), tells the family from keys and shapes, checks every tensor against the geometry, and returns the backbone under
//! official names; each family is one file holding one table (`official`, `dino`, `mae`, `hugging_face`, `timm`, `clip`,
//! `dinov3`, `vit`, `tips`, `siglip`, `ijepa`, `beit`, `eva`); what its tensors do not tell stands in a
//! configuration beside it (`hf_config`, `open_clip_config`) or in the options, and `stated` brings them together. What is
//! passed over stands in `extras`, networks that are only recognised in `architecture`, numbers of heads in `heads`, released networks by name in `published`.
//! [`save`] writes.

mod architecture;
mod beit;
mod clip;
mod dino;
mod dinov3;
mod element;
mod eva;
mod extras;
mod family;
mod geometry;
mod globals;
mod heads;
mod hf_config;
mod hugging_face;
mod ijepa;
mod load;
mod mae;
mod network;
mod official;
mod open_clip_config;
mod options;
mod pickle;
mod plan;
mod published;
mod raw;
mod roots;
mod safetensors_file;
mod save;
mod siglip;
mod source;
mod stated;
mod timm;
mod tips;
mod torch_legacy;
mod torch_objects;
mod torch_zip;
mod vit;

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::vit::VitConfig;

pub use element::ElementType;
pub use load::load;
pub use network::{Recognised, recognise};
pub use options::LoadOptions;
pub use published::{OpenClipName, Published, example_names, open_clip_name, published, published_names};
pub use raw::{Format, RawTensor, RawTensors, read_tensors};
pub use save::{Layout, PREPROCESS_KEY, config_metadata, save, save_each};

/// Tensors by name, in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Who wrote a checkpoint, recognised by its keys and shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// facebookresearch/dinov2 backbone, or one written by macula.
    Official,
    /// facebookresearch/dino (v1) backbone, iBOT's, DeiT's, and any other with neither LayerScale nor mask token.
    DinoV1,
    /// transformers `Dinov2Model` or `Dinov2WithRegistersModel`, with or without its classifier.
    HuggingFace,
    /// timm `vit_*_dinov2`.
    Timm,
    /// facebookresearch/mae, encoder and decoder.
    Mae,
    /// The image tower of an open_clip or OpenAI CLIP model.
    OpenClip,
    /// The image tower of transformers `CLIPModel`, with or without its projection.
    HuggingFaceClip,
    /// timm `vit_*_clip_*`.
    TimmClip,
    /// facebookresearch/dinov3 ViT, and EUPE's and LingBot's of the same names.
    Dinov3,
    /// transformers `DINOv3ViTModel`.
    HuggingFaceDinov3,
    /// timm `vit_*_dinov3`.
    TimmDinov3,
    /// transformers `ViTModel` (DINO v1, supervised), `ViTMAEModel`, `ViTMSNModel`, `DeiTModel` and `IJepaModel`.
    HuggingFaceVit,
    /// torchvision `VisionTransformer`.
    Torchvision,
    /// The image tower of TIPSv2.
    Tips,
    /// The image tower of transformers `SiglipModel`: SigLIP, and SigLIP 2 of a fixed size.
    HuggingFaceSiglip,
    /// timm `vit_*_siglip_*`, alone or as the trunk of a tower of open_clip.
    TimmSiglip,
    /// facebookresearch/ijepa, and other plain networks without a class token.
    IJepa,
    /// transformers `BeitModel` and `Data2VecVisionModel`.
    HuggingFaceBeit,
    /// timm `beit*`, and Microsoft's own.
    TimmBeit,
    /// timm `eva*`: EVA and EVA-02, alone or as the trunk of a tower of open_clip.
    TimmEva,
    /// timm `vit_pe_*` (Perception Encoder), alone or as the trunk of a tower of open_clip.
    TimmPe,
}

impl Family {
    /// What messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Official => "DINOv2 backbone",
            Self::DinoV1 => "plain vision transformer (DINO v1, supervised)",
            Self::HuggingFace => "DINOv2 backbone of transformers",
            Self::Timm => "DINOv2 backbone of timm",
            Self::Mae => "masked autoencoder (MAE)",
            Self::OpenClip => "CLIP ViT of open_clip",
            Self::HuggingFaceClip => "CLIP ViT of transformers",
            Self::TimmClip => "CLIP ViT of timm",
            Self::Dinov3 => "DINOv3 ViT",
            Self::HuggingFaceDinov3 => "DINOv3 ViT of transformers",
            Self::TimmDinov3 => "DINOv3 ViT of timm",
            Self::HuggingFaceVit => "plain vision transformer of transformers",
            Self::Torchvision => "plain vision transformer of torchvision",
            Self::Tips => "TIPSv2 ViT",
            Self::HuggingFaceSiglip => "SigLIP ViT of transformers",
            Self::TimmSiglip => "SigLIP ViT of timm",
            Self::IJepa => "plain vision transformer without a class token (I-JEPA)",
            Self::HuggingFaceBeit => "BEiT or data2vec of transformers",
            Self::TimmBeit => "BEiT of timm",
            Self::TimmEva => "EVA ViT of timm",
            Self::TimmPe => "PE ViT (Perception Encoder) of timm",
        }
    }
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
    /// What a user should know of how the file was read, a line each: which copy was taken, what was passed over, what
    /// was assumed. [`load`] has already said them as events of `tracing`.
    pub notices: Vec<String>,
    /// SHA-256 of the weight file, in hexadecimal.
    pub source_sha256: String,
    /// How images are prepared for the network, where the file says ([`PREPROCESS_KEY`]): JSON that this package hands on.
    pub preprocess: Option<String>,
}
