//! `macula export`.

use clap::Args;
use macula_models::onnx::{EMBEDDED_LIMIT, ImageShape, OutputKind};
use macula_models::vit::{InitialWeights, VitConfig};
use macula_models::weights::{self, Checkpoint};

use super::args::{
    CheckpointArgs, ColumnArgs, INPUT, MODEL, NewArgs, OUTPUT, PreprocessArgs, RunArgs, SeedArgs, dtype,
    examples, reworded,
};
use super::output;
use crate::device::Dtype;
use crate::export::{
    Comparison, DriftReport, ExportRequest, ExportSummary, LayerLoss, QuantizeRequest, STORED,
    default_max_drift, export, untrained,
};
use crate::extract::model::{Size, default_side, imagenet, of_checkpoint};
use crate::{Error, Result};

/// In place of a checkpoint: a network with initial weights.
const UNTRAINED: &str = "untrained";

/// The heading of how f16 and int8 are made and judged.
const SMALLER: &str = "Smaller files";

/// Arguments of `macula export`.
#[derive(Debug, Args)]
#[command(
    mut_args(reworded(&[
        ("out", "ONNX file to write"),
        ("force", "Replace a file that exists"),
        ("json", "Print the comparison as JSON"),
    ])),
    after_help = examples(&[
        "macula export dinov2_vits14_pretrain.pth --out vits14.onnx",
        "macula export runs/first --out first.onnx --output cls,patch",
        "macula export runs/first --out first-int8.onnx --dtype int8 --calibration photos/",
    ])
)]
pub struct ExportArgs {
    /// Checkpoint (.pth, .safetensors), Hugging Face folder, run folder, or `untrained` for --arch with initial weights
    #[arg(help_heading = INPUT)]
    checkpoint: String,
    /// Image size: N, HxW or dynamic [default: that of the preprocessing which the checkpoint or a file beside it states, else
    /// 224, or the checkpoint's own where that is smaller]
    #[arg(long, value_name = "SIZE", help_heading = MODEL)]
    image_size: Option<ImageShape>,
    #[command(flatten)]
    geometry: CheckpointArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// What the matrices are stored in: f32; f16, half the size; int8, a quarter, whose products are of 8-bit integers
    #[arg(long, value_parser = dtype(&STORED), value_name = "TYPE", default_value = "f32", help_heading = SMALLER)]
    dtype: Dtype,
    /// Images for f16 and int8: the ranges of int8 come from them, and the file is compared with f32 on them (with k-NN and a
    /// probe where they have classes) [default: the run's own training images, else the bundled sample]
    #[arg(long, value_name = "SRC", help_heading = SMALLER)]
    calibration: Option<String>,
    /// Images that the ranges of int8 are taken from
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = SMALLER)]
    calibration_images: usize,
    /// Images that the file is compared on
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = SMALLER)]
    compared_images: usize,
    /// Share of the linear layers that stay f32 in int8, those that lose most
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, help_heading = SMALLER)]
    float_layers: f64,
    /// Largest drift: 1 - mean cosine to the f32 features, and in f16 ten times that for any image [default: 0.01 for int8,
    /// 0.00001 for f16]
    #[arg(long, value_name = "DRIFT", help_heading = SMALLER)]
    max_drift: Option<f64>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    out: NewArgs,
    /// Outputs: cls, patch, patch_mean, reg, embedding, layer:I.cls, layer:I.patch; last4 stands for the cls of the last four
    /// blocks [default: cls,patch,patch_mean, and reg and embedding where the network has them]
    #[arg(long = "output", visible_alias = "outputs", value_delimiter = ',', value_name = "NAMES", help_heading = OUTPUT)]
    outputs: Vec<String>,
    /// Largest deviation from the candle network, in f32 and before f16 or int8 is made, relative to the largest value of an output
    #[arg(long, value_name = "SHARE", default_value_t = 1e-4, help_heading = OUTPUT)]
    tolerance: f64,
    /// Bytes of weights above which they go into a second file
    #[arg(long, value_name = "BYTES", default_value_t = EMBEDDED_LIMIT, help_heading = OUTPUT)]
    external_data_over: u64,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl ExportArgs {
    /// Exports, and prints how the file compares with the network.
    pub fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let checkpoint = self.checkpoint()?;
        let side = default_side(&checkpoint.config);
        let size = match self.image_size {
            Some(ImageShape::Fixed { height, width }) => Size::Given(height as u32, width as u32),
            Some(ImageShape::Dynamic) | None => Size::Stated(side, side),
        };
        let flags = self.preprocess.overrides();
        let preprocess = match self.checkpoint == UNTRAINED {
            // Nobody says what an untrained network needs.
            true => {
                let (Size::Given(height, width) | Size::Stated(height, width)) = size;
                let preprocess = flags.over(imagenet(height, width));
                preprocess.validate()?;
                preprocess
            }
            false => {
                let arch = self.geometry.arch.as_deref();
                of_checkpoint(self.checkpoint.as_ref(), (&checkpoint, arch), size, &flags)?
            }
        };
        let image = match self.image_size {
            Some(image) => image,
            None => {
                let (height, width) = preprocess.output_size().unwrap_or((side as usize, side as usize));
                ImageShape::Fixed { height, width }
            }
        };
        if self.tolerance.is_nan() || self.tolerance <= 0.0 {
            return Err(Error::input(
                "--tolerance",
                format!("expected a number above 0, found {}", self.tolerance),
            ));
        }
        let request = ExportRequest {
            image,
            outputs: output_kinds(&self.outputs, &checkpoint.config)?,
            dtype: self.dtype,
            quantize: self.quantize()?,
            preprocess,
            tolerance: self.tolerance,
            seed: self.random.seed,
            force: self.out.force,
            external_data_over: Some(self.external_data_over),
            runtime: self.run.runtime(),
            threads: self.run.threads.threads,
        };
        let summary = export(&checkpoint, &request, &self.out.out)?;
        if self.out.print.json {
            output::print_json(&summary)
        } else {
            output::print(&text(&summary))
        }
    }

    /// How f16 and int8 are made and judged.
    fn quantize(&self) -> Result<Option<QuantizeRequest>> {
        if self.dtype == Dtype::F32 {
            return Ok(None);
        }
        let max_drift = self.max_drift.unwrap_or(default_max_drift(self.dtype));
        for (flag, value) in [("--float-layers", self.float_layers), ("--max-drift", max_drift)] {
            if !(0. ..=1.).contains(&value) {
                return Err(Error::input(
                    flag,
                    format!("expected a number from 0 to 1, found {value}"),
                ));
            }
        }
        for (flag, count) in [
            ("--calibration-images", self.calibration_images),
            ("--compared-images", self.compared_images),
        ] {
            if count == 0 {
                return Err(Error::input(flag, "expected at least 1, found 0"));
            }
        }
        Ok(Some(QuantizeRequest {
            data: match &self.calibration {
                Some(calibration) => self.columns.apply_to(calibration)?,
                None => {
                    self.columns.need("--calibration")?;
                    self.own_images()
                }
            },
            calibration_images: self.calibration_images,
            compared_images: self.compared_images,
            float_layers: self.float_layers,
            max_drift,
        }))
    }

    /// The training images of a run folder that can be read still, else the bundled sample.
    fn own_images(&self) -> String {
        let config = std::path::Path::new(&self.checkpoint).join("config.toml");
        let own = std::fs::read_to_string(config)
            .ok()
            .and_then(|text| text.parse::<toml::Table>().ok())
            .and_then(|config| Some(config.get("data")?.get("source")?.as_str()?.to_owned()))
            .filter(|source| crate::data::open(source).is_ok());
        own.unwrap_or_else(|| {
            tracing::warn!(
                "no --calibration: {} is made with the bundled sample of clothes, images of your own fit better",
                self.dtype
            );
            "sample:train".to_owned()
        })
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        if self.checkpoint != UNTRAINED {
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
        if let Some(activation) = self.geometry.activation {
            config.activation = activation;
        }
        untrained(config, InitialWeights::Dinov2, self.random.seed)
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
        "{}: {} parameters, {:.1} MB{}; {}ONNX Runtime against candle:",
        summary.path,
        summary.parameters,
        summary.bytes as f64 / 1e6,
        if summary.external_data {
            " with external data"
        } else {
            ""
        },
        if summary.drift.is_some() {
            "the same graph in f32, "
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
    if let Some(drift) = &summary.drift {
        lines.extend(drift_text(summary.dtype, drift));
    }
    if !summary.layers.is_empty() {
        lines.push(
            "  layers left in f32, squared error in int8 over the variance of their output:".to_owned(),
        );
        let left = summary.layers.iter().filter(|layer| layer.left);
        lines.extend(
            left.map(|layer: &LayerLoss| format!("    {:<28} {:.5}", layer.layer, layer.relative_error)),
        );
    }
    lines.join("\n")
}

fn drift_text(dtype: Dtype, drift: &DriftReport) -> Vec<String> {
    let mut lines = vec![
        format!(
            "  {dtype} against f32 on {} images{}: cosine {:.6} in the mean (output `{}`), {:.6} at least",
            drift.images,
            if drift.images_shared {
                ", those that its ranges were taken from"
            } else {
                ""
            },
            drift.mean_cosine,
            drift.output,
            drift.min_cosine
        ),
        format!(
            "  {:.2} of the f32 file's size, {:.2} times its images a second on this processor",
            drift.size_ratio, drift.speed_ratio
        ),
    ];
    if let Some(labelled) = &drift.labelled {
        lines.push(format!(
            "  {} labelled images, {} asked about: k-NN {:.4} (f32 {:.4}), logistic regression {:.4} (f32 {:.4})",
            labelled.n_train + labelled.n_test,
            labelled.n_test,
            labelled.knn,
            labelled.knn_f32,
            labelled.probe,
            labelled.probe_f32
        ));
    }
    lines
}
