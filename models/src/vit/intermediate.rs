//! Outputs of chosen blocks: DINOv2 `get_intermediate_layers`, and the hidden states under it.

use candle_core::Tensor;

use super::VisionTransformer;
use crate::{Error, Result};

/// Which blocks to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// The last n blocks.
    Last(usize),
    /// Blocks by index from 0. Results come in the order of the blocks, whatever the order here.
    Indices(Vec<usize>),
}

impl Layers {
    /// The indices in ascending order, for a network of `depth` blocks.
    ///
    /// # Errors
    /// No block at all, one beyond the last, one named twice.
    pub fn indices(&self, depth: usize) -> Result<Vec<usize>> {
        let indices = match self {
            Self::Last(count) if *count > depth => {
                return Err(Error::config(
                    "layers",
                    format!("expected at most {depth}, found {count}"),
                ));
            }
            Self::Last(count) => (depth - count..depth).collect(),
            Self::Indices(indices) => {
                let mut sorted = indices.clone();
                sorted.sort_unstable();
                sorted
            }
        };
        if indices.is_empty() {
            return Err(Error::config("layers", "expected at least one block, found none"));
        }
        if let Some(beyond) = indices.iter().find(|&&index| index >= depth) {
            return Err(Error::config(
                "layers",
                format!("expected indices below {depth}, found {beyond}"),
            ));
        }
        if let Some(pair) = indices.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config(
                "layers",
                format!("expected each block once, found {} twice", pair[0]),
            ));
        }
        Ok(indices)
    }
}

/// The tokens after one block, registers left out.
#[derive(Debug, Clone)]
pub struct IntermediateLayer {
    /// Index of the block, from 0.
    pub block: usize,
    /// Patch tokens row by row, [B, N, D].
    pub patch: Tensor,
    /// Class token, [B, D].
    pub cls: Tensor,
    /// The patch grid (rows, columns), rows * columns = N.
    pub grid: (usize, usize),
}

impl IntermediateLayer {
    /// The patch tokens as a feature map, [B, D, rows, columns] (`reshape=True` in the reference).
    ///
    /// # Errors
    /// When candle fails.
    pub fn patch_map(&self) -> Result<Tensor> {
        let (batch, _, dim) = self.patch.dims3()?;
        let (rows, columns) = self.grid;
        Ok(self.patch.transpose(1, 2)?.reshape((batch, dim, rows, columns))?)
    }
}

impl VisionTransformer {
    /// Patch and class tokens after chosen blocks, in the order of the blocks (DINOv2 `get_intermediate_layers`).
    ///
    /// `norm` applies the network's one final norm to each: true for classification and segmentation heads, false for depth
    /// heads. Each item is (patches, class token), as with `return_class_token=True`.
    ///
    /// # Errors
    /// Pixels of another shape or type; layers as in [`Layers::indices`].
    pub fn intermediate_layers(
        &self,
        pixels: &Tensor,
        layers: &Layers,
        norm: bool,
    ) -> Result<Vec<IntermediateLayer>> {
        let indices = layers.indices(self.config.depth)?;
        let grid = self.grid(pixels)?;
        self.block_outputs(pixels, layers)?
            .iter()
            .zip(indices)
            .map(|(tokens, block)| {
                let (cls, _, patch) = match norm {
                    true => self.split(&self.final_norm(tokens)?)?,
                    false => self.split(tokens)?,
                };
                Ok(IntermediateLayer {
                    block,
                    patch,
                    cls,
                    grid,
                })
            })
            .collect()
    }

    /// All tokens after chosen blocks, before any final norm, each [B, 1 + R + N, D] (Hugging Face `hidden_states[1 + i]`;
    /// its `hidden_states[0]` is [`Self::embed`]).
    ///
    /// # Errors
    /// As [`Self::intermediate_layers`].
    pub fn block_outputs(&self, pixels: &Tensor, layers: &Layers) -> Result<Vec<Tensor>> {
        let indices = layers.indices(self.config.depth)?;
        let mut outputs = Vec::with_capacity(indices.len());
        self.run_blocks(pixels, |block, tokens| {
            if indices.binary_search(&block).is_ok() {
                outputs.push(tokens.clone());
            }
            Ok(())
        })?;
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_sorted_and_checked() {
        assert_eq!(Layers::Last(2).indices(5).unwrap(), [3, 4]);
        assert_eq!(Layers::Indices(vec![4, 0, 2]).indices(5).unwrap(), [0, 2, 4]);
        for layers in [
            Layers::Last(0),
            Layers::Last(6),
            Layers::Indices(vec![]),
            Layers::Indices(vec![5]),
            Layers::Indices(vec![1, 1]),
        ] {
            let error = layers.indices(5).unwrap_err().to_string();
            assert!(error.starts_with("layers: expected"), "{error}");
        }
    }
}
