//! Patches to tokens: DINOv2's strided convolution, as one matrix product over unfolded patches; of pixels, or of the last map of a
//! stem.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::VitConfig;
use super::stem::{Stem, total_stride};
use crate::{Error, Result, ops};

/// The projection of square patches (DINOv2 `layers/patch_embed.py`), names `proj.weight` [D, C, P, P], `proj.bias` [D]; behind a stem
/// of stride s [D, O, P / s, P / s], of its O channels.
#[derive(Debug, Clone)]
pub(super) struct PatchEmbed {
    weight: Tensor, // [D, C, P, P]
    bias: Tensor,
    stem: Option<Stem>,
    channels: usize,
    /// Side of a patch in what is projected: pixels, or places of the stem's map.
    patch: usize,
}

impl PatchEmbed {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, channels) = (config.embed_dim, config.in_channels);
        let patch = config.patch_size / total_stride(&config.stem);
        let projected = config.stem.last().map_or(channels, |layer| layer.channels);
        let stem = (!config.stem.is_empty()).then(|| Stem::new(config, &vb));
        let vb = vb.pp("proj");
        Ok(Self {
            weight: vb.get((dim, projected, patch, patch), "weight")?,
            bias: vb.get(dim, "bias")?,
            stem: stem.transpose()?,
            channels,
            patch,
        })
    }

    /// [B, C, H, W] to [B, N, D], patches row by row.
    pub(super) fn forward(&self, pixels: &Tensor, compute: DType) -> Result<Tensor> {
        let &[batch, channels, _, _] = pixels.dims() else {
            return Err(Error::config(
                "pixels",
                format!(
                    "expected [batch, {}, height, width], found {:?}",
                    self.channels,
                    pixels.dims()
                ),
            ));
        };
        if channels != self.channels || batch == 0 {
            let found = format!("found {:?}", pixels.dims());
            let expected = format!("expected at least one image of {} channels", self.channels);
            return Err(Error::config("pixels", format!("{expected}, {found}")));
        }
        let patches = match &self.stem {
            None => ops::patch_rows(pixels, self.patch, compute)?, // [B, N, depth]
            Some(stem) => {
                let map = stem.forward(pixels, compute)?.permute((0, 3, 1, 2))?; // [B, O, H / s, W / s]
                ops::patch_rows(&map, self.patch, compute)?
            }
        };
        let weight = self.weight.flatten_from(1)?; // [D, C P P]
        let beyond = patches.dim(2)? - weight.dim(1)?;
        let weight = match beyond {
            0 => weight,
            _ => weight.pad_with_zeros(1, 0, beyond)?, // [D, depth]
        };
        let tokens = ops::linear(&patches, &weight, Some(&self.bias), compute)?;
        Ok(tokens.to_dtype(DType::F32)?)
    }
}
