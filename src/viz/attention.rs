//! Where the class token looks: the attention of each head of one block over the patches (DINO v1
//! `visualize_attention.py`). It is a network's inner state, so it takes a checkpoint; an ONNX file does not give it.

use std::path::Path;

use candle_core::Tensor;

use super::images::{Choice, ModelInputs};
use super::palette::heat;
use crate::data::{DecodeOptions, RgbImage, Source};
use crate::draw::sheet::enlarged;
use crate::draw::{Sheet, Tile};
use crate::extract::model::{ModelOptions, OpenNetwork, open_network};
use crate::{Error, Result};

/// How the picture is made.
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// The block, from 0; the last where there is none.
    pub block: Option<usize>,
    /// Side of a tile in pixels.
    pub side: u32,
}

/// Draws, for chosen images of `source`, the attention of every head and their mean into `out`. Returns the number of heads.
///
/// # Errors
/// A model that is no checkpoint, a block that is not there, or images that cannot be read.
pub fn attention(
    spec: &str,
    source: &dyn Source,
    choice: &Choice,
    model: &ModelOptions,
    decode: &DecodeOptions,
    options: &AttentionOptions,
    out: &Path,
) -> Result<usize> {
    let path = Path::new(spec);
    let gives_outputs_only = crate::extract::model::is_onnx_name(path);
    if gives_outputs_only || (["pixels", "hog"].iter().any(|name| spec.starts_with(name)) && !path.exists()) {
        return Err(Error::input(
            spec,
            "expected a checkpoint, whose attention can be read, found a model that gives its outputs only",
        ));
    }
    if !path.exists() {
        return Err(Error::input(spec, "no such file; expected a checkpoint"));
    }
    let rows = choice.rows_in(source.len(), "the source")?;
    let OpenNetwork {
        network,
        preprocess,
        device,
    } = open_network(path, model)?;
    let inputs = ModelInputs::read(source, &rows, &preprocess, decode)?;
    let config = network.config();
    if !config.class_token {
        return Err(Error::input(
            spec,
            "expected a network with a class token, whose attention is drawn, found one without",
        ));
    }
    let grid = config.grid(inputs.size.0, inputs.size.1)?;
    let block = options.block.unwrap_or(config.depth.saturating_sub(1));
    let mut sheet_rows = Vec::with_capacity(rows.len());
    let pictures = inputs
        .pictures
        .iter()
        .zip(&inputs.captions)
        .zip(inputs.pixels.chunks_exact(inputs.image_len()));
    for ((picture, caption), pixels) in pictures {
        let pixels = Tensor::from_slice(pixels, (1, 3, inputs.size.0, inputs.size.1), &device)
            .map_err(macula_models::Error::from)?;
        let probabilities = network.attention_probabilities(&pixels, block)?; // [1, heads, T, T]
        let heads = class_rows(&probabilities, 1 + config.num_registers)?;
        let mut tiles = vec![Tile::new(picture.clone(), caption)];
        tiles.extend(heads.iter().chain([&mean(&heads)]).map(|map| {
            let peak = map.iter().copied().fold(0.0, f32::max);
            Tile::new(
                painted(map, grid, config.patch_size),
                format!("peak {:.1} %", 100.0 * peak),
            )
        }));
        sheet_rows.push(tiles);
    }
    let heads = config.num_heads;
    let mut headings = vec!["image".to_owned()];
    headings.extend((1..=heads).map(|head| format!("head {head}")));
    headings.push("mean".to_owned());
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let sheet = Sheet {
        title: format!("Attention of the class token · {file}"),
        notes: vec![
            format!(
                "block {} of {}, {} x {} patches",
                block + 1,
                config.depth,
                grid.0,
                grid.1
            ),
            "each map runs from 0 (dark) to its own peak (light)".to_owned(),
        ],
        headings,
        rows: sheet_rows,
        side: options.side,
        lead: true,
    };
    sheet.save(out)?;
    Ok(heads)
}

/// The class token's row of each head of the one image of `probabilities` `[1, heads, T, T]`, from token `first_patch` on.
fn class_rows(probabilities: &Tensor, first_patch: usize) -> Result<Vec<Vec<f32>>> {
    let read = || -> candle_core::Result<Vec<Vec<f32>>> {
        let (_, _, tokens, _) = probabilities.dims4()?;
        let rows = probabilities.get(0)?.narrow(1, 0, 1)?.squeeze(1)?; // [heads, T]
        rows.narrow(1, first_patch, tokens - first_patch)?
            .contiguous()?
            .to_vec2()
    };
    Ok(read().map_err(macula_models::Error::from)?)
}

fn mean(heads: &[Vec<f32>]) -> Vec<f32> {
    let patches = heads.first().map_or(0, Vec::len);
    (0..patches)
        .map(|patch| heads.iter().map(|head| head[patch]).sum::<f32>() / heads.len() as f32)
        .collect()
}

/// A map as squares, each as large as its patch.
fn painted(map: &[f32], (rows, columns): (usize, usize), patch_size: usize) -> RgbImage {
    let greatest = map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let data: Vec<u8> = map.iter().flat_map(|value| heat(value / greatest)).collect();
    let small = RgbImage::new(columns as u32, rows as u32, data).expect("one value a patch");
    enlarged(&small, patch_size as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_tokens_row_without_registers() {
        let device = candle_core::Device::Cpu;
        // 2 heads, 1 class token, 1 register, 2 patches
        let probabilities = Tensor::arange(0f32, 32.0, &device)
            .unwrap()
            .reshape((1, 2, 4, 4))
            .unwrap();
        let rows = class_rows(&probabilities, 2).unwrap();
        assert_eq!(rows, [[2.0, 3.0], [18.0, 19.0]]);
        assert_eq!(mean(&rows), [10.0, 11.0]);
        let picture = painted(&[0.0, 0.5], (1, 2), 3);
        assert_eq!((picture.width(), picture.height()), (6, 3));
        assert_eq!(picture.pixel(5, 2), Some(heat(1.0)));
        assert_eq!(picture.pixel(0, 0), Some(heat(0.0)));
    }
}
