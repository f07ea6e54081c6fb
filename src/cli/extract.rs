//! `macula extract`.

use clap::Args;
use serde_json::json;

use super::args::{
    INPUT, ImagesArgs, MODEL, ModelRunArgs, NewArgs, OUTPUT, PREPROCESSING, RunArgs, examples, one_of,
    reworded,
};
use super::output;
use crate::cluster::{self, Launch};
use crate::device::Dtype;
use crate::extract::folder::STORED;
use crate::extract::model::{self, DerivedModel, OpenModel, OutputChoice};
use crate::extract::{ExtractOptions, ExtractReport, Layout, Shard, extract};
use crate::{Result, data};

/// Arguments of `macula extract`.
#[derive(Debug, Args)]
#[command(
    mut_args(reworded(&[
        ("out", "Feature folder to write"),
        ("force", "Replace a feature folder that exists"),
        ("json", "Print a summary as JSON"),
    ])),
    after_help = examples(&[
        "macula extract --model vits14.onnx --data photos/ --out features",
        "macula extract --model pixels --data sample:test --out features/pixels",
        "macula extract --model m.onnx --data 'shards/{000..012}.tar' --out features --output cls,patch",
    ])
)]
pub struct ExtractArgs {
    #[command(flatten)]
    images: ImagesArgs,
    /// Take rows i, i+n, ..; the shards of one run share --out [default: all rows, or under mpiexec or srun each process its share]
    #[arg(long, value_name = "I/N", help_heading = INPUT)]
    shard: Option<Shard>,
    /// ONNX file, checkpoint, pixels[:rgb|:gray] for the pixels themselves, or hog[:CELL] for histograms of their gradients
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: String,
    #[command(flatten)]
    open: ModelRunArgs,
    /// Decode large JPEGs at a half, a quarter or an eighth of their size, as far as the model's resize allows: faster for
    /// photographs, and close to the features of full decoding, not equal to them
    #[arg(long, help_heading = PREPROCESSING)]
    fast_decode: bool,
    #[command(flatten)]
    out: NewArgs,
    /// Outputs, for instance cls,patch_mean,patch. Side by side with a plus: cls+patch_mean; patch_gem is the generalised mean of
    /// the patch tokens [default: cls, or else the first]
    #[arg(long, alias = "outputs", value_delimiter = ',', value_name = "NAMES", help_heading = OUTPUT)]
    output: Vec<String>,
    /// parquet; npy to write img_emb/*.npy and metadata/*.parquet too, as clip-retrieval and autofaiss read; safetensors to
    /// write safetensors/*.safetensors too
    #[arg(long, value_enum, default_value = "parquet", help_heading = OUTPUT)]
    layout: Layout,
    /// What values are stored in
    #[arg(long, value_parser = one_of(&STORED), default_value = "f32", help_heading = OUTPUT)]
    dtype: Dtype,
    /// Bring every vector to length 1
    #[arg(long, alias = "normalise", help_heading = OUTPUT)]
    normalize: bool,
    /// Continue after the last finished part
    #[arg(long, conflicts_with = "force", help_heading = OUTPUT)]
    resume: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl ExtractArgs {
    /// Extracts, and prints what was done.
    pub fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let source = data::open(&self.images.source()?)?;
        let outputs = OutputChoice::named(&self.output);
        let options = self.open.model_options(outputs, &self.run);
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
            ..self
                .open
                .extract_options(self.shard(), self.out.force, self.resume)
        };
        let report = extract(
            source.as_ref(),
            model.as_mut(),
            &preprocess,
            &options,
            &self.out.out,
        )?;
        self.print(&report)
    }

    /// The share of this process: the one that is asked for, or else that among the processes that a launcher has started.
    fn shard(&self) -> Option<Shard> {
        let of_launch = |launch: Launch| Shard {
            index: launch.rank as u64,
            count: launch.size as u64,
        };
        self.shard.or_else(|| cluster::started_in().map(of_launch))
    }

    fn print(&self, report: &ExtractReport) -> Result<()> {
        let seconds = report.elapsed.as_secs_f64();
        let rate = report.n_read as f64 / seconds.max(1e-9);
        let data_wait = report.data_wait.as_secs_f64() / seconds.max(1e-9);
        let (written, failed) = (
            report.meta.n_written.unwrap_or_default(),
            report.meta.n_failed.unwrap_or_default(),
        );
        if self.out.print.json {
            return output::print_json(&json!({
                "out": self.out.out.display().to_string(),
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
            self.out.out.display(),
            report.meta.output_names(),
            100.0 * data_wait
        ))
    }
}
