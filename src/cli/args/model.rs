//! How a model is opened, and how images run through it.

use clap::Args;
use macula_models::vit::{GeluKind, PositionRule};
use macula_models::weights::LoadOptions;

use super::{DecodeArgs, INPUT, MODEL, PreprocessArgs, RunArgs, dtype};
use crate::data::DecodeOptions;
use crate::device::{COMPUTED, Dtype};
use crate::extract::model::{ModelOptions, OutputChoice};
use crate::extract::{BatchSize, ErrorPolicy, ExtractOptions, Layout, Shard};

/// What a checkpoint's file does not say.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = MODEL)]
pub struct CheckpointArgs {
    /// Attention heads, where the file does not say [default: the published number, or heads of width 64]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Architecture: vit-{tiny|small|base|large|giant2}[/PATCH][-regN][-swiglu][-rope], or a released network, as dinov3-vits16
    /// or openclip:ViT-B-32/laion2b, whose activation and preprocessing count where no file says them [default: told from the
    /// tensors]
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// official, registers, hugging-face or bilinear [default: the checkpoint family's own]
    #[arg(long, value_name = "RULE", value_parser = position_rule)]
    pub position_rule: Option<PositionRule>,
    /// gelu, gelu-tanh or quick-gelu, where neither the file nor a configuration beside it says: CLIP's [default: what they say]
    #[arg(long, value_name = "KIND")]
    pub activation: Option<GeluKind>,
}

/// How a model is opened and images run through it.
#[derive(Debug, Args)]
#[command(next_help_heading = MODEL)]
pub struct ModelRunArgs {
    /// Images per run of the model; auto measures some and takes the smallest that is about as fast as any
    #[arg(long, default_value = "32", value_name = "N")]
    pub batch: BatchSize,
    /// Numbers of matrix products: f32, or bf16 and f16 with --device openvino or tensorrt, or bf16 for a checkpoint
    #[arg(long, value_parser = dtype(&COMPUTED), default_value = "f32", value_name = "TYPE")]
    compute: Dtype,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// What to do with an image that cannot be read
    #[arg(long, value_enum, default_value = "fail", help_heading = INPUT)]
    pub on_error: ErrorPolicy,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    decode: DecodeArgs,
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

fn position_rule(text: &str) -> std::result::Result<PositionRule, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| format!("expected official, registers, hugging-face or bilinear, found `{text}`"))
}

impl RunArgs {
    /// How to open a model here, in `compute`.
    pub fn model_options(
        &self,
        outputs: OutputChoice,
        checkpoint: &CheckpointArgs,
        preprocess: &PreprocessArgs,
        compute: Dtype,
    ) -> ModelOptions {
        ModelOptions {
            outputs,
            preprocess: preprocess.overrides(),
            device: self.device,
            compute,
            threads: self.threads.of_process(),
            ort_lib: self.ort_lib.clone(),
            checkpoint: checkpoint.load_options(),
        }
    }
}

impl ModelRunArgs {
    /// How to open the model.
    pub fn model_options(&self, outputs: OutputChoice, run: &RunArgs) -> ModelOptions {
        run.model_options(outputs, &self.checkpoint, &self.preprocess, self.compute)
    }

    /// How to decode images.
    pub fn decode(&self) -> DecodeOptions {
        self.decode.options()
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
            dtype: Dtype::F32,
            decode: self.decode(),
            fast_decode: false,
        }
    }
}
