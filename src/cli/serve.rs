//! `macula serve`.

use clap::{Arg, Args};

use super::args::{
    CheckpointArgs, DecodeArgs, INPUT, MODEL, OUTPUT, PreprocessArgs, RunArgs, dtype, examples,
};
use crate::Result;
use crate::device::{COMPUTED, Dtype};
use crate::extract::BatchSize;
use crate::extract::model::OutputChoice;
use crate::serve::{Limits, Listen, LogFormat, NamedModel, Secrets, ServeConfig, serve};

/// The heading of what requests may take.
const LIMITS: &str = "Limits";
/// The heading of where a server listens.
const LISTEN: &str = "Server";
/// The most pixels of an image from strangers.
const MAX_PIXELS: &str = "50000000";

/// Arguments of `macula serve`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = LISTEN,
    mut_args(of_environment),
    after_help = examples(&[
        "macula serve --model vits14.onnx",
        "macula serve --model small=vits14.onnx --model base=vitb14.onnx --host 0.0.0.0 --api-key-file keys",
        "macula serve --model vits14.onnx --index photos.index --index-images photos/",
    ])
)]
pub struct ServeArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    secrets: Secrets,
    /// How requests are logged, on stderr, a line each
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(flatten, next_help_heading = LIMITS)]
    limits: Limits,
    /// Index folder for /v1/search, read again on SIGHUP [default: none]
    #[arg(long, value_name = "INDEX", help_heading = INPUT)]
    index: Option<std::path::PathBuf>,
    /// The images of the index, as --data of the extraction named them, for pictures of what was found [default: none]
    #[arg(long, value_name = "SRC", help_heading = INPUT)]
    index_images: Option<String>,
    /// ONNX file or checkpoint, and its name in requests: FILE or NAME=FILE; may be given more than once, and the first is that
    /// of requests that name none
    #[arg(long, value_name = "[NAME=]FILE", required = true, help_heading = MODEL)]
    model: Vec<NamedModel>,
    /// Images per run of a model; auto measures some and takes the smallest that is about as fast as any
    #[arg(long, default_value = "32", value_name = "N", help_heading = MODEL)]
    batch: BatchSize,
    /// Compute a whole batch before the server is ready
    #[arg(long, help_heading = MODEL)]
    warmup: bool,
    /// Numbers of matrix products: f32, or bf16 and f16 with --device openvino or tensorrt, or bf16 for a checkpoint
    #[arg(long, value_parser = dtype(&COMPUTED), default_value = "f32", value_name = "TYPE", help_heading = MODEL)]
    compute: Dtype,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    /// Outputs that requests may ask for, the first being that of requests that name none, written as for `macula extract`
    /// [default: cls, patch_mean, patch, embedding and image_embeds, as far as the first model has them, or else its first]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", help_heading = OUTPUT)]
    output: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
}

/// Every flag is a variable of the environment too: `MACULA_SERVE_PORT`. What a variable holds is not printed with the help.
fn of_environment(arg: Arg) -> Arg {
    let arg = match arg.get_id() == "max_pixels" {
        true => arg.default_value(MAX_PIXELS),
        false => arg,
    };
    let name = format!("MACULA_SERVE_{}", arg.get_id().as_str().to_uppercase());
    // clap keeps names for as long as the process lives; there are a few dozen.
    let name: &'static str = Box::leak(name.into_boxed_str());
    arg.env(name).hide_env(true)
}

impl ServeArgs {
    /// Serves until it is asked to stop.
    pub fn run(self) -> Result<()> {
        self.run.threads.start()?;
        let outputs = match self.output.is_empty() {
            true => OutputChoice::Tokens,
            false => OutputChoice::Named(self.output),
        };
        serve(&ServeConfig {
            options: self
                .run
                .model_options(outputs, &self.checkpoint, &self.preprocess, self.compute),
            models: self.model,
            batch: self.batch,
            warmup: self.warmup,
            decode: self.decode.options(),
            index: self.index,
            index_images: self.index_images,
            listen: self.listen,
            secrets: self.secrets,
            limits: self.limits,
            log_format: self.log_format,
        })
    }
}
