//! `macula export`.

use std::path::PathBuf;

use clap::Args;
use macula_models::onnx::{ImageShape, OutputKind};
use macula_models::vit::VitConfig;
use macula_models::weights::{self, Checkpoint};

use super::args::{CheckpointArgs, PreprocessArgs, RunArgs};
use super::output;
use crate::export::{Comparison, ExportRequest, ExportSummary, export, untrained};
use crate::extract::model::{default_side, of_checkpoint};
use crate::{Error, Result};

/// Arguments of `macula export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Checkpoint (.pth, .safetensors), Hugging Face folder, run folder, or `untrained` for --arch with initial weights
    checkpoint: String,
    /// ONNX file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Image size: N, HxW or dynamic; by default 224, or the checkpoint's own where that is smaller
    #[arg(long, value_name = "SIZE")]
    image_size: Option<ImageShape>,
    /// Outputs: cls, patch, patch_mean, reg, layer:I.cls, layer:I.patch; last4 stands for the cls of the last four
    /// blocks
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    outputs: Vec<String>,
    /// Largest deviation from the candle network, relative to the largest value of an output
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Bytes of weights above which they go into a second file
    #[arg(long, value_name = "BYTES")]
    external_data_over: Option<u64>,
    /// Seed of the test input, and of `untrained`
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    geometry: CheckpointArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl ExportArgs {
    /// Exports, and prints how the file compares with the network.
    pub fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let checkpoint = self.checkpoint()?;
        let side = default_side(&checkpoint.config) as usize;
        let native = ImageShape::Fixed {
            height: side,
            width: side,
        };
        let image = self.image_size.unwrap_or(native);
        let (height, width) = match image {
            ImageShape::Fixed { height, width } => (height, width),
            ImageShape::Dynamic => (side, side),
        };
        let preprocess =
            self.preprocess
                .overrides()
                .over(of_checkpoint(&checkpoint, height as u32, width as u32)?);
        preprocess.validate()?;
        if self.tolerance.is_nan() || self.tolerance <= 0.0 {
            return Err(Error::input(
                "--tolerance",
                format!("expected a number above 0, found {}", self.tolerance),
            ));
        }
        let request = ExportRequest {
            image,
            outputs: output_kinds(&self.outputs, &checkpoint.config)?,
            preprocess,
            tolerance: self.tolerance,
            seed: self.seed,
            force: self.force,
            external_data_over: self.external_data_over,
            runtime: self.run.runtime(),
            threads: self.run.threads,
        };
        let summary = export(&checkpoint, &request, &self.out)?;
        if self.json {
            output::print_json(&summary)
        } else {
            output::print(&text(&summary))
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        if self.checkpoint != "untrained" {
            return Ok(weights::load(
                self.checkpoint.as_ref(),
                &self.geometry.load_options(),
            )?);
        }
        let arch =
            self.geometry.arch.as_deref().ok_or_else(|| {
                Error::input("--arch", "needed with `untrained`, for instance vit-small/14")
            })?;
        let side = match self.image_size {
            Some(ImageShape::Fixed { height, width }) => height.max(width),
            _ => 224,
        };
        let mut config = VitConfig::named(arch, side)?;
        if let Some(heads) = self.geometry.heads {
            config.num_heads = heads;
        }
        if let Some(rule) = self.geometry.position_rule {
            config.position_rule = rule;
        }
        untrained(config, self.seed)
    }
}

fn output_kinds(names: &[String], config: &VitConfig) -> Result<Vec<OutputKind>> {
    let mut kinds = Vec::new();
    for name in names {
        if name == "last4" {
            let first = config.depth.saturating_sub(4);
            kinds.extend((first..config.depth).map(OutputKind::LayerCls));
        } else {
            kinds.push(name.parse()?);
        }
    }
    Ok(kinds)
}

fn text(summary: &ExportSummary) -> String {
    let mut lines = vec![format!(
        "{}: {} parameters, {:.1} MB{}; ONNX Runtime against candle:",
        summary.path,
        summary.parameters,
        summary.bytes as f64 / 1e6,
        if summary.external_data {
            " with external data"
        } else {
            ""
        }
    )];
    lines.push(format!(
        "  {:<8} {:>9} {:<14} {:>10} {:>10} {:>12}",
        "input", "size", "output", "max abs", "max rel", "min cosine"
    ));
    let line = |c: &Comparison| {
        format!(
            "  {:<8} {:>9} {:<14} {:>10.2e} {:>10.2e} {:>12.9}",
            c.input,
            format!("{}x{}", c.height, c.width),
            c.output,
            c.max_abs,
            c.max_rel,
            c.min_cosine
        )
    };
    lines.extend(summary.comparisons.iter().map(line));
    lines.join("\n")
}
