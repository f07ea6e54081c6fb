//! `macula extract`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{ColumnArgs, ReadArgs};
use super::output;
use crate::extract::model::{self, DerivedModel, OpenModel, OutputChoice};
use crate::extract::{ExtractOptions, ExtractReport, Layout, Shard, Values, extract};
use crate::{Result, data};

/// Arguments of `macula extract`.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// ONNX file, checkpoint, pixels[:rgb|:gray] for the pixels themselves, or hog[:CELL] for histograms of their gradients
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Images: a folder, list.csv, list.parquet, shards/{000..012}.tar, data/*.parquet with a column of images,
    /// video:clip.mp4#fps=2, idx:FOLDER#train, sample:train, or - for paths on stdin
    #[arg(long, value_name = "SRC")]
    data: String,
    /// Feature folder to write
    #[arg(long, value_name = "FEATURES")]
    out: PathBuf,
    /// Outputs, for instance cls,patch_mean,patch; by default cls. Side by side with a plus: cls+patch_mean; patch_gem is the
    /// generalised mean of the patch tokens
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    output: Vec<String>,
    /// Take rows i, i+n, ..; the shards of one run share --out
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// parquet; npy to write img_emb/*.npy and metadata/*.parquet too, as clip-retrieval and autofaiss read; safetensors to
    /// write safetensors/*.safetensors too
    #[arg(long, value_enum, default_value = "parquet")]
    layout: Layout,
    /// What values are stored in
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Values,
    /// Bring every vector to length 1
    #[arg(long)]
    normalize: bool,
    /// Decode large JPEGs at a half, a quarter or an eighth of their size, as far as the model's resize allows: faster for
    /// photographs, and close to the features of full decoding, not equal to them
    #[arg(long)]
    fast_decode: bool,
    /// Replace a feature folder that exists
    #[arg(long)]
    force: bool,
    /// Continue after the last finished part
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl ExtractArgs {
    /// Extracts, and prints what was done.
    pub fn run(&self) -> Result<()> {
        self.read.run.start_threads()?;
        let source = data::open(&self.columns.of(&self.data)?)?;
        let options = self.read.model_options(OutputChoice::named(&self.output));
        let OpenModel {
            mut model,
            preprocess,
        } = model::open(&self.model, source.as_ref(), &options)?;
        if self.normalize {
            model = Box::new(DerivedModel::normalized(model));
        }
        let options = ExtractOptions {
            layout: self.layout,
            dtype: self.dtype,
            fast_decode: self.fast_decode,
            ..self.read.extract_options(self.shard, self.force, self.resume)
        };
        let report = extract(source.as_ref(), model.as_mut(), &preprocess, &options, &self.out)?;
        self.print(&report)
    }

    fn print(&self, report: &ExtractReport) -> Result<()> {
        let seconds = report.elapsed.as_secs_f64();
        let rate = report.n_read as f64 / seconds.max(1e-9);
        let data_wait = report.data_wait.as_secs_f64() / seconds.max(1e-9);
        let (written, failed) = (
            report.meta.n_written.unwrap_or_default(),
            report.meta.n_failed.unwrap_or_default(),
        );
        if self.json {
            return output::print_json(&json!({
                "out": self.out.display().to_string(),
                "n_rows": report.meta.n_rows,
                "n_written": written,
                "n_failed": failed,
                "outputs": report.meta.outputs,
                "seconds": seconds,
                "images_per_second": rate,
                "data_wait": data_wait,
                "stage_seconds": {
                    "decode": report.stages.decode.as_secs_f64(),
                    "transform": report.stages.transform.as_secs_f64(),
                    "infer": report.stages.infer.as_secs_f64(),
                    "write": report.stages.write.as_secs_f64(),
                },
            }));
        }
        output::print(&format!(
            "{}: {written} rows of {} ({failed} failed) in {seconds:.1} s, {rate:.1} images/s, {:.0} % of it waiting \
             for images",
            self.out.display(),
            report.meta.output_names(),
            100.0 * data_wait
        ))
    }
}
