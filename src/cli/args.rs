//! Flags that several verbs share, and how they resolve.

use std::path::PathBuf;

use clap::Args;
use macula_models::weights::LoadOptions;

use crate::data::transform::Resize;
use crate::data::{Columns, DecodeOptions, Interpolation, SampleRange};
use crate::device::{Device, Precision};
use crate::extract::model::{ModelOptions, OutputChoice, PreprocessOverrides};
use crate::extract::{BatchSize, ErrorPolicy, ExtractOptions, Layout, Shard, Values};
use crate::runtime::{Flavor, RuntimeOptions};
use crate::{Error, Result};

/// Where and with how many threads to run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// auto, cpu, cuda[:N], or for ONNX files openvino or tensorrt[:N]
    #[arg(long, default_value = "auto")]
    pub device: Device,
    /// Threads, up to 1024; 0 for all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// ONNX Runtime library to use (libonnxruntime.so, onnxruntime.dll, libonnxruntime.dylib)
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
}

impl RunArgs {
    /// Sizes the pool that decoding and the protocols run on.
    pub fn start_threads(&self) -> Result<()> {
        start_threads(self.threads)
    }

    /// The ONNX Runtime library as the flags name it.
    pub fn runtime(&self) -> RuntimeOptions {
        RuntimeOptions {
            ort_lib: self.ort_lib.clone(),
            flavor: Flavor::of_device(self.device),
            ..RuntimeOptions::default()
        }
    }
}

/// The most threads that may be asked for: more than any machine of today has, and few enough to start anywhere.
const MOST_THREADS: usize = 1024;

/// Sizes the pool that everything parallel runs on; 0 leaves it at all cores.
pub fn start_threads(threads: usize) -> Result<()> {
    if threads > MOST_THREADS {
        return Err(Error::input(
            "--threads",
            format!("expected at most {MOST_THREADS}, or 0 for all cores, found {threads}"),
        ));
    }
    if threads == 0 {
        return Ok(());
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::failed("--threads", e.to_string()))
}

/// Which columns of a table are meant, where `--data` and its like name one; kept with the source, as `list.csv#label=NAME`.
#[derive(Debug, Args, Default, Clone)]
pub struct ColumnArgs {
    /// Column of the images' paths in a CSV or Parquet file [default: path, image, or another usual name]
    #[arg(long, value_name = "NAME")]
    path_column: Option<String>,
    /// Column of the labels in a CSV or Parquet file, none for no labels [default: label, or another usual name]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column of the images themselves in Parquet files [default: image, or another usual name]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
}

impl ColumnArgs {
    fn columns(&self) -> Columns {
        Columns {
            path: self.path_column.clone(),
            label: self.label_column.clone(),
            image: self.image_column.clone(),
        }
    }

    /// The source `spec` with the columns that the flags name.
    pub fn of(&self, spec: &str) -> Result<String> {
        self.columns().over(spec)
    }

    /// Refuses the flags where no source is given that they could speak of.
    pub fn need(&self, source: &str) -> Result<()> {
        match self.columns().is_empty() {
            true => Ok(()),
            false => {
                let reason = format!("expected {source}, whose columns they name, found none");
                Err(Error::input(
                    "--path-column, --label-column and --image-column",
                    reason,
                ))
            }
        }
    }

    /// Two sources, of which those that are tables get the columns that the flags name.
    pub fn of_both(&self, one: &str, other: &str) -> Result<[String; 2]> {
        self.columns().over_tables([one, other])
    }
}

/// What a checkpoint's file does not say.
#[derive(Debug, Args, Default)]
pub struct CheckpointArgs {
    /// Attention heads, where the file does not say; otherwise heads of width 64
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Architecture: vit-{tiny|small|base|large|giant2}[/PATCH][-regN][-swiglu]
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// official, registers, hugging-face or bilinear, instead of the checkpoint family's own
    #[arg(long, value_name = "RULE", value_parser = position_rule)]
    pub position_rule: Option<macula_models::vit::PositionRule>,
    /// gelu, gelu-tanh or quick-gelu, where neither the file nor a configuration beside it says: CLIP's
    #[arg(long, value_name = "KIND")]
    pub activation: Option<macula_models::vit::GeluKind>,
}

impl CheckpointArgs {
    /// The flags as the reader of weight files takes them.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            num_heads: self.heads,
            arch: self.arch.clone(),
            position_rule: self.position_rule,
            activation: self.activation,
        }
    }
}

fn position_rule(text: &str) -> std::result::Result<macula_models::vit::PositionRule, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| format!("expected official, registers, hugging-face or bilinear, found `{text}`"))
}

/// How images become network input.
#[derive(Debug, Args, Default)]
pub struct PreprocessArgs {
    /// Shorter side after resizing, in pixels; HxW for height and width whatever the proportions; 0 for none
    #[arg(long, value_name = "N or HxW", value_parser = resize)]
    pub resize: Option<Resize>,
    /// Side of the centre crop, in pixels; 0 for none
    #[arg(long, value_name = "N")]
    pub crop: Option<u32>,
    /// Filter of the resize
    #[arg(long, value_enum)]
    pub interpolation: Option<Interpolation>,
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does: grey of 16 bits and floats are cut off above 255
    #[arg(long, value_name = "auto|LOW,HIGH", allow_hyphen_values = true)]
    pub sample_range: Option<SampleRange>,
    /// Mean per channel, in [0, 1]
    #[arg(long, value_name = "R,G,B", value_parser = triple)]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation per channel, in [0, 1]
    #[arg(long, value_name = "R,G,B", value_parser = triple)]
    pub std: Option<[f32; 3]>,
}

fn resize(text: &str) -> std::result::Result<Resize, String> {
    let pixels = |text: &str| text.trim().parse::<u32>().ok();
    let read = match text.split_once('x') {
        None => pixels(text).map(Resize::Shorter),
        Some((height, width)) => pixels(height)
            .zip(pixels(width))
            .map(|(h, w)| Resize::Exact(h, w)),
    };
    read.ok_or_else(|| format!("expected a number of pixels or HxW, found `{text}`"))
}

fn triple(text: &str) -> std::result::Result<[f32; 3], String> {
    three(text).ok_or_else(|| format!("expected three numbers r,g,b, found `{text}`"))
}

/// Three whole numbers from 0 to 255.
pub fn colour(text: &str) -> std::result::Result<[u8; 3], String> {
    three(text).ok_or_else(|| format!("expected three whole numbers from 0 to 255 r,g,b, found `{text}`"))
}

/// Three values with commas between them.
fn three<T: std::str::FromStr>(text: &str) -> Option<[T; 3]> {
    let values = text.split(',').map(|value| value.trim().parse::<T>().ok());
    values.collect::<Option<Vec<T>>>()?.try_into().ok()
}

impl PreprocessArgs {
    /// The flags as overrides.
    pub fn overrides(&self) -> PreprocessOverrides {
        PreprocessOverrides {
            resize: self.resize,
            crop: self.crop,
            interpolation: self.interpolation,
            mean: self.mean,
            std: self.std,
            sample_range: self.sample_range,
        }
    }
}

/// How a model is opened and images are read.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Images per run of the model; auto measures some and takes the smallest that is about as fast as any
    #[arg(long, default_value = "32", value_name = "N")]
    pub batch: BatchSize,
    /// Numbers of matrix products: f32, or bf16 and f16 with --device openvino or tensorrt, or bf16 for a checkpoint
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub compute: Precision,
    /// What to do with an image that cannot be read
    #[arg(long, value_enum, default_value = "fail")]
    pub on_error: ErrorPolicy,
    /// Turn images as their EXIF says (the reference does not)
    #[arg(long)]
    pub exif: bool,
    /// Largest image, in pixels
    #[arg(long, value_name = "N", default_value_t = DecodeOptions::default().max_pixels)]
    pub max_pixels: u64,
    /// Colour under transparent pixels, 0 to 255 each; by default alpha is dropped, as the reference does
    #[arg(long, value_name = "R,G,B", value_parser = colour)]
    pub background: Option<[u8; 3]>,
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    #[command(flatten)]
    pub preprocess: PreprocessArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

impl ReadArgs {
    /// How to open the model.
    pub fn model_options(&self, outputs: OutputChoice) -> ModelOptions {
        ModelOptions {
            outputs,
            preprocess: self.preprocess.overrides(),
            device: self.run.device,
            compute: self.compute,
            threads: self.run.threads,
            ort_lib: self.run.ort_lib.clone(),
            checkpoint: self.checkpoint.load_options(),
        }
    }

    /// How to extract.
    pub fn extract_options(&self, shard: Option<Shard>, force: bool, resume: bool) -> ExtractOptions {
        ExtractOptions {
            batch_size: self.batch,
            on_error: self.on_error,
            shard,
            force,
            resume,
            layout: Layout::Parquet,
            dtype: Values::F32,
            decode: DecodeOptions {
                exif: self.exif,
                max_pixels: self.max_pixels,
                background: self.background,
                ..DecodeOptions::default()
            },
            fast_decode: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_a_side_or_both() {
        assert_eq!(resize("256"), Ok(Resize::Shorter(256)));
        assert_eq!(resize("224x196"), Ok(Resize::Exact(224, 196)));
        for wrong in ["", "x", "1x", "1x2x3", "-1", "2.5"] {
            assert!(resize(wrong).unwrap_err().ends_with(&format!("found `{wrong}`")));
        }
    }

    #[test]
    fn three_values_are_read_or_quoted() {
        assert_eq!(colour("255, 0,7"), Ok([255, 0, 7]));
        assert_eq!(triple("0.5,1,-2"), Ok([0.5, 1.0, -2.0]));
        for wrong in ["1,2", "1,2,3,4", "1,2,256", "1,2,-1", "1,,2", "white"] {
            assert!(colour(wrong).unwrap_err().ends_with(&format!("found `{wrong}`")));
        }
    }
}
