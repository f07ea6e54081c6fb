//! What a user chooses about an ONNX file: the image size it accepts, its outputs, its metadata.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::numbers::Numbers;
use crate::vit::VitConfig;
use crate::{Error, Result};

/// The image sizes that a file accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageShape {
    /// One size, in pixels; the interpolated position table, or that of rotary angles, is a constant of the file.
    Fixed {
        /// Height H.
        height: usize,
        /// Width W.
        width: usize,
    },
    /// Every multiple of the patch size; the file interpolates the position table, or computes the angles, at each run.
    Dynamic,
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { height, width } => write!(f, "{height}x{width}"),
            Self::Dynamic => f.write_str("dynamic"),
        }
    }
}

impl FromStr for ImageShape {
    type Err = Error;

    /// Reads `518` (square), `98x56` (height x width) or `dynamic`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::config(
                "image-size",
                format!("expected N, HxW or `dynamic`, found `{text}`"),
            )
        };
        if text == "dynamic" {
            return Ok(Self::Dynamic);
        }
        let side = |side: &str| side.parse().ok().filter(|side| *side > 0).ok_or_else(wrong);
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        Ok(Self::Fixed {
            height: side(height)?,
            width: side(width)?,
        })
    }
}

/// One output of a file. All are taken after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputKind {
    /// `cls` `[batch, D]`: the CLS token.
    Cls,
    /// `patch` `[batch, N, D]`: the patch tokens, row by row.
    Patch,
    /// `patch_mean` `[batch, D]`: the mean of the patch tokens, without CLS and registers.
    PatchMean,
    /// `reg` `[batch, R, D]`: the register tokens.
    Reg,
    /// `embedding` `[batch, E]`: what the network pools for the image as a whole, projected where there is a projection (CLIP: the
    /// class token; SigLIP: by attention), which is compared with text; not normalised.
    Embedding,
    /// `layer:I.cls` `[batch, D]`: CLS after block `I` (from 0) and the final norm
    /// (DINOv2 `get_intermediate_layers`, `norm=True`).
    LayerCls(usize),
    /// `layer:I.patch` `[batch, N, D]`: the patch tokens after block `I` (from 0) and the final norm.
    LayerPatch(usize),
}

impl OutputKind {
    /// The outputs of a file whose user names none: `cls`, `patch`, `patch_mean`, `reg` and `embedding`, as far as the network has
    /// them.
    pub fn defaults(config: &VitConfig) -> Vec<Self> {
        let all = [
            (Self::Cls, config.class_token),
            (Self::Patch, true),
            (Self::PatchMean, true),
            (Self::Reg, config.num_registers > 0),
            (Self::Embedding, config.embedding_width().is_some()),
        ];
        all.into_iter()
            .filter_map(|(kind, has)| has.then_some(kind))
            .collect()
    }

    /// The block whose output this is, of a network of `depth` blocks.
    pub fn block(self, depth: usize) -> usize {
        match self {
            Self::LayerCls(block) | Self::LayerPatch(block) => block,
            Self::Cls | Self::Patch | Self::PatchMean | Self::Reg | Self::Embedding => depth - 1,
        }
    }

    /// Shape of one image's output, for a patch grid of `(rows, columns)`.
    pub fn shape(self, config: &VitConfig, (rows, columns): (usize, usize)) -> Vec<usize> {
        match self {
            Self::Cls | Self::PatchMean | Self::LayerCls(_) => vec![config.embed_dim],
            Self::Patch | Self::LayerPatch(_) => vec![rows * columns, config.embed_dim],
            Self::Reg => vec![config.num_registers, config.embed_dim],
            Self::Embedding => vec![config.embedding_width().unwrap_or(0)],
        }
    }

    /// Checks that a network of this geometry has the output.
    ///
    /// # Errors
    /// `cls` without a class token, `reg` without registers, `embedding` of a network that neither pools nor projects, or a block
    /// beyond the last.
    pub fn check(self, config: &VitConfig) -> Result<()> {
        if matches!(self, Self::Cls | Self::LayerCls(_)) && !config.class_token {
            let all: Vec<String> = Self::defaults(config).iter().map(ToString::to_string).collect();
            let reason = format!(
                "expected a network with a class token for `{self}`, found one without; it has {}",
                all.join(", ")
            );
            return Err(Error::config("outputs", reason));
        }
        if self == Self::Reg && config.num_registers == 0 {
            return Err(Error::config(
                "outputs",
                "expected a network with registers for `reg`, found one without",
            ));
        }
        if self == Self::Embedding && config.embedding_width().is_none() {
            return Err(Error::config(
                "outputs",
                "expected a network with a projection for `embedding`, found one without",
            ));
        }
        if self.block(config.depth) >= config.depth {
            return Err(Error::config(
                "outputs",
                format!("expected a block from 0 to {}, found `{self}`", config.depth - 1),
            ));
        }
        Ok(())
    }
}

impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cls => f.write_str("cls"),
            Self::Patch => f.write_str("patch"),
            Self::PatchMean => f.write_str("patch_mean"),
            Self::Reg => f.write_str("reg"),
            Self::Embedding => f.write_str("embedding"),
            Self::LayerCls(block) => write!(f, "layer:{block}.cls"),
            Self::LayerPatch(block) => write!(f, "layer:{block}.patch"),
        }
    }
}

impl FromStr for OutputKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let layer = |rest: &str| {
            let (block, kind) = rest.split_once('.')?;
            let block = block.parse().ok()?;
            match kind {
                "cls" => Some(Self::LayerCls(block)),
                "patch" => Some(Self::LayerPatch(block)),
                _ => None,
            }
        };
        match name {
            "cls" => Some(Self::Cls),
            "patch" => Some(Self::Patch),
            "patch_mean" => Some(Self::PatchMean),
            "reg" => Some(Self::Reg),
            "embedding" => Some(Self::Embedding),
            _ => name.strip_prefix("layer:").and_then(layer),
        }
        .ok_or_else(|| {
            Error::config(
                "outputs",
                format!(
                    "expected cls, patch, patch_mean, reg, embedding, layer:I.cls or layer:I.patch, found `{name}`"
                ),
            )
        })
    }
}

/// The largest total of constants, in bytes, that goes into the `.onnx` file itself. Protobuf cannot hold 2 GiB;
/// what is left below that is room for the nodes.
pub const EMBEDDED_LIMIT: u64 = (2 << 30) - (64 << 20);

/// How to write an ONNX file.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Accepted image sizes.
    pub image: ImageShape,
    /// Outputs, in this order, each once; empty stands for [`OutputKind::defaults`].
    pub outputs: Vec<OutputKind>,
    /// Entries of `metadata_props`.
    pub metadata: BTreeMap<String, String>,
    /// What the matrices are stored in.
    pub numbers: Numbers,
    /// Whether the file also gives what goes into each linear layer, as outputs `input:LAYER`, to find out its range.
    pub layer_inputs: bool,
    /// Constants of more bytes than this go to `NAME.onnx.data` beside the file. At most [`EMBEDDED_LIMIT`] is
    /// honoured.
    pub external_data_over: u64,
}

impl ExportOptions {
    /// The default outputs, no metadata, and constants inside the file as long as they fit.
    pub fn new(image: ImageShape) -> Self {
        Self {
            image,
            outputs: Vec::new(),
            metadata: BTreeMap::new(),
            numbers: Numbers::F32,
            layer_inputs: false,
            external_data_over: EMBEDDED_LIMIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_names_read_back() {
        for output in [
            OutputKind::Cls,
            OutputKind::Patch,
            OutputKind::PatchMean,
            OutputKind::Reg,
            OutputKind::Embedding,
            OutputKind::LayerCls(9),
            OutputKind::LayerPatch(11),
        ] {
            assert_eq!(output.to_string().parse::<OutputKind>().expect("a name"), output);
        }
        assert_eq!(OutputKind::LayerCls(9).to_string(), "layer:9.cls");
        for wrong in ["", "CLS", "layer:9", "layer:.cls", "layer:-1.cls", "layer:1.reg"] {
            assert!(wrong.parse::<OutputKind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn image_shapes_read_back() {
        let fixed = |height, width| ImageShape::Fixed { height, width };
        for (text, shape) in [
            ("518", fixed(518, 518)),
            ("98x56", fixed(98, 56)),
            ("dynamic", ImageShape::Dynamic),
        ] {
            assert_eq!(text.parse::<ImageShape>().expect("a shape"), shape);
            assert_eq!(shape.to_string().parse::<ImageShape>().expect("a shape"), shape);
        }
        for wrong in ["", "x", "98x", "98x56x1", "-1", "Dynamic"] {
            assert!(wrong.parse::<ImageShape>().is_err(), "{wrong}");
        }
    }
}
