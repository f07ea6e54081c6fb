//! A checkpoint run by candle: the same network as its ONNX export, without the export.

use std::path::Path;

use candle_core::{DType, Tensor};
use macula_models::onnx::{OutputKind, reference_outputs};
use macula_models::vit::{VisionTransformer, VitConfig};
use macula_models::weights::{self, Checkpoint};
use serde_json::json;

use super::preprocess::{Size, check_size, of_checkpoint};
use super::{FeatureModel, ModelOptions, OpenModel, OutputChoice};
use crate::data::Preprocess;
use crate::device::{Dtype, set_products};
use crate::extract::OutputSpec;
use crate::{Error, Result};

/// Features from a checkpoint.
pub struct CheckpointModel {
    network: VisionTransformer,
    kinds: Vec<OutputKind>,
    outputs: Vec<OutputSpec>,
    description: serde_json::Value,
    device: candle_core::Device,
    height: usize,
    width: usize,
}

/// A checkpoint's network, and what its images need.
pub struct OpenNetwork {
    /// The network.
    pub network: VisionTransformer,
    /// Pixels to network input; the crop has a size that the network takes.
    pub preprocess: Preprocess,
    /// Where the network's weights are.
    pub device: candle_core::Device,
}

/// Opens the network of a checkpoint itself, for what [`super::open`] does not give.
///
/// # Errors
/// A file that is no checkpoint, or images of a size that the network does not take.
pub fn open_network(path: &Path, options: &ModelOptions) -> Result<OpenNetwork> {
    let checkpoint = weights::load(path, &options.checkpoint)?;
    of_weights(path, &checkpoint, options)
}

fn of_weights(path: &Path, checkpoint: &Checkpoint, options: &ModelOptions) -> Result<OpenNetwork> {
    let config = &checkpoint.config;
    let side = default_side(config);
    let size = Size::Stated(side, side);
    let preprocess = of_checkpoint(
        path,
        (checkpoint, options.checkpoint.arch.as_deref()),
        size,
        &options.preprocess,
    )?;
    check_size(&path.display().to_string(), &preprocess, (None, None))?;
    let (height, width) = preprocess.crop.unwrap_or((side, side));
    config.grid(height as usize, width as usize)?;
    let device = options.device.candle()?;
    let compute = dtype(options.compute)?;
    set_products(&device, compute).map_err(macula_models::Error::from)?;
    let network = VisionTransformer::from_tensors(config, &checkpoint.backbone, &device)?;
    Ok(OpenNetwork {
        network: network.with_compute(compute),
        preprocess,
        device,
    })
}

pub(super) fn open(path: &Path, options: &ModelOptions) -> Result<OpenModel> {
    let checkpoint = weights::load(path, &options.checkpoint)?;
    let config = &checkpoint.config;
    let kinds = output_kinds(&options.outputs, &path.display().to_string(), config)?;
    let OpenNetwork {
        network,
        preprocess,
        device,
    } = of_weights(path, &checkpoint, options)?;
    let side = default_side(config);
    let (height, width) = preprocess.crop.unwrap_or((side, side));
    let grid = config.grid(height as usize, width as usize)?;
    let outputs = kinds
        .iter()
        .map(|kind| OutputSpec {
            name: kind.to_string(),
            shape: kind.shape(config, grid),
        })
        .collect();
    Ok(OpenModel {
        model: Box::new(CheckpointModel {
            network,
            kinds,
            outputs,
            description: json!({
                "kind": "checkpoint",
                "file": path.file_name().map(|name| name.to_string_lossy()),
                "sha256": checkpoint.source_sha256,
                "config": config,
                "compute": options.compute,
            }),
            device,
            height: height as usize,
            width: width as usize,
        }),
        preprocess,
    })
}

/// candle's name of what products are computed in.
fn dtype(compute: Dtype) -> Result<DType> {
    match compute {
        Dtype::F32 | Dtype::Bf16 => Ok(compute.dtype()),
        Dtype::F16 | Dtype::Int8 => Err(Error::setting(
            "compute",
            format!("expected f32 or bf16 for a checkpoint, found {compute}"),
        )),
    }
}

/// Side of the images a checkpoint is used at by default: 224 px as in the paper where its patches allow and its table
/// is larger, otherwise the table's own.
pub fn default_side(config: &VitConfig) -> u32 {
    let side = if config.image_size > 224 && 224usize.is_multiple_of(config.patch_size) {
        224
    } else {
        config.image_size
    };
    side as u32
}

/// Every output the network can give; of single blocks the patch tokens of all and the CLS tokens of the last four.
fn available_outputs(config: &VitConfig) -> Vec<String> {
    let mut kinds = OutputKind::defaults(config);
    if config.class_token {
        kinds.extend((config.depth.saturating_sub(4)..config.depth).map(OutputKind::LayerCls));
    }
    kinds.extend((0..config.depth).map(OutputKind::LayerPatch));
    kinds.iter().map(ToString::to_string).collect()
}

fn output_kinds(choice: &OutputChoice, file: &str, config: &VitConfig) -> Result<Vec<OutputKind>> {
    // A named output may be of any block, so it is parsed and checked rather than looked up.
    let names = match choice {
        OutputChoice::Named(names) => names.clone(),
        other => other.choose(file, &available_outputs(config))?,
    };
    let kinds: Vec<OutputKind> = names
        .iter()
        .map(|name| name.parse())
        .collect::<macula_models::Result<_>>()?;
    for kind in &kinds {
        kind.check(config)?;
    }
    Ok(kinds)
}

impl FeatureModel for CheckpointModel {
    fn outputs(&self) -> &[OutputSpec] {
        &self.outputs
    }

    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let channels = self.network.config().in_channels;
        let pixels = Tensor::from_slice(pixels, (n, channels, self.height, self.width), &self.device)
            .map_err(macula_models::Error::from)?;
        let tensors = reference_outputs(&self.network, &pixels, &self.kinds)?;
        for (values, buffer) in tensors.iter().zip(outputs) {
            let values = values
                .flatten_all()
                .and_then(|flat| flat.to_vec1::<f32>())
                .map_err(macula_models::Error::from)?;
            buffer.extend_from_slice(&values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_outputs_of_a_network_are_listed() -> Result<()> {
        let mut config = VitConfig::named("vit-tiny/14", 28)?;
        config.depth = 5;
        let listed = |config: &VitConfig| available_outputs(config).join(" ");
        let blocks = "layer:1.cls layer:2.cls layer:3.cls layer:4.cls \
                      layer:0.patch layer:1.patch layer:2.patch layer:3.patch layer:4.patch";
        assert_eq!(listed(&config), format!("cls patch patch_mean {blocks}"));
        config.num_registers = 1;
        assert_eq!(listed(&config), format!("cls patch patch_mean reg {blocks}"));
        config.num_registers = 0;
        config.projection = Some(8);
        assert_eq!(
            listed(&config),
            format!("cls patch patch_mean embedding {blocks}")
        );
        Ok(())
    }

    #[test]
    fn the_default_side_is_224_where_the_table_is_larger_and_patches_allow() -> Result<()> {
        let mut config = VitConfig::named("vit-small/14", 518)?;
        for (image_size, patch_size, side) in [
            (518, 14, 224),
            (224, 16, 224),
            (384, 16, 224),
            (98, 14, 98),
            (260, 13, 260),
        ] {
            (config.image_size, config.patch_size) = (image_size, patch_size);
            assert_eq!(default_side(&config), side, "{image_size} / {patch_size}");
        }
        Ok(())
    }
}
