//! The outputs of a file as the candle network gives them: what an exported file is compared with, and what a
//! checkpoint gives without an export.

use candle_core::Tensor;

use super::OutputKind;
use crate::vit::{Layers, VisionTransformer};
use crate::{Error, Result};

/// The outputs `kinds` of `network` on `pixels` `[B, C, H, W]`, in the order of `kinds`.
///
/// # Errors
/// An output that the network does not have, or pixels of another shape.
pub fn reference_outputs(
    network: &VisionTransformer,
    pixels: &Tensor,
    kinds: &[OutputKind],
) -> Result<Vec<Tensor>> {
    let depth = network.config().depth;
    for kind in kinds {
        kind.check(network.config())?;
    }
    let of_layers = |kind: &&OutputKind| matches!(kind, OutputKind::LayerCls(_) | OutputKind::LayerPatch(_));
    let mut blocks: Vec<usize> = kinds
        .iter()
        .filter(of_layers)
        .map(|kind| kind.block(depth))
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    let layers = match blocks.is_empty() {
        true => Vec::new(),
        false => network.intermediate_layers(pixels, &Layers::Indices(blocks), true)?,
    };
    let last = match kinds.iter().all(|kind| of_layers(&kind)) {
        true => None,
        false => Some(network.forward(pixels, None)?),
    };
    let mut outputs = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let layer = layers.iter().find(|layer| layer.block == kind.block(depth));
        outputs.push(match (kind, &last, layer) {
            (OutputKind::Cls, Some(last), _) => last.cls.clone(),
            (OutputKind::Patch, Some(last), _) => last.patch.clone(),
            (OutputKind::PatchMean, Some(last), _) => last.patch_mean()?,
            (OutputKind::Reg, Some(last), _) => last.reg.clone(),
            (OutputKind::Embedding, Some(last), _) => last.embedding.clone().ok_or_else(|| {
                Error::config(
                    "outputs",
                    "expected a network with a projection for `embedding`, found one without",
                )
            })?,
            (OutputKind::LayerCls(_), _, Some(layer)) => layer.cls.clone(),
            (OutputKind::LayerPatch(_), _, Some(layer)) => layer.patch.clone(),
            _ => unreachable!("every kind has its forward pass above"),
        });
    }
    Ok(outputs)
}
