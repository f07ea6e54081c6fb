//! `macula bench extract`.

use std::time::Duration;

use clap::Args;
use macula_eval::table::EvalResult;
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::super::args::{
    INPUT, ImagesArgs, JsonArgs, MODEL, ModelRunArgs, OUTPUT, PREPROCESSING, RunArgs, examples,
};
use super::super::output;
use crate::extract::model::{self, OpenModel, OutputChoice};
use crate::extract::{ExtractOptions, ExtractReport, Shard, extract};
use crate::{Error, Result, data};

/// Arguments of `macula bench extract`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula bench extract --model vits14.onnx --data photos/",
    "macula bench extract --model hog --data sample:test --images 200",
]))]
pub struct ExtractBenchArgs {
    #[command(flatten)]
    source: ImagesArgs,
    /// Images to extract, spread over the source
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = INPUT)]
    images: u64,
    /// ONNX file, checkpoint, pixels[:rgb|:gray], or hog[:CELL]
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: String,
    #[command(flatten)]
    open: ModelRunArgs,
    /// As for `macula extract`
    #[arg(long, help_heading = PREPROCESSING)]
    fast_decode: bool,
    /// Outputs, as for `macula extract` [default: cls, or else the first]
    #[arg(long, alias = "outputs", value_delimiter = ',', value_name = "NAMES", help_heading = OUTPUT)]
    output: Vec<String>,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl ExtractBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        if self.images == 0 {
            return Err(Error::input("--images", "expected at least 1, found 0"));
        }
        let source = data::open(&self.source.source()?)?;
        let outputs = OutputChoice::named(&self.output);
        let options = self.open.model_options(outputs, &self.run);
        let OpenModel {
            mut model,
            preprocess,
        } = model::open(&self.model, source.as_ref(), &options)?;
        let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        let share = Shard {
            index: 0,
            count: (source.len() / self.images).max(1),
        };
        let options = ExtractOptions {
            fast_decode: self.fast_decode,
            ..self.open.extract_options(Some(share), false, false)
        };
        let out = folder.path().join("features");
        let report = extract(source.as_ref(), model.as_mut(), &preprocess, &options, &out)?;
        let threads = rayon::current_num_threads();
        let table = stages(&report, threads)
            .map_err(|e: PolarsError| Error::failed("bench extract", e.to_string()))?;
        let settings = serde_json::json!({
            "model": self.model,
            "data": self.source.named(),
            "images": report.n_read,
            "batch": self.open.batch.fixed().ok(),
            "threads": threads,
            "fast_decode": self.fast_decode,
            "data_wait": report.data_wait.as_secs_f64() / report.elapsed.as_secs_f64().max(1e-9),
        });
        self.print
            .print(&EvalResult::new("bench_extract", settings, 0, 0, table)?)?;
        if self.print.json {
            return Ok(());
        }
        output::print(&format!(
            "{} images on {threads} threads; the model waited for images {:.1} % of the time",
            report.n_read,
            100. * report.data_wait.as_secs_f64() / report.elapsed.as_secs_f64().max(1e-9)
        ))
    }
}

/// What each stage could do if nothing else ran: decoding and transforming on all threads, the model with its own, the
/// writer on one. The slowest is the limit.
fn stages(report: &ExtractReport, threads: usize) -> PolarsResult<DataFrame> {
    let rate =
        |time: Duration, workers: usize| report.n_read as f64 * workers as f64 / time.as_secs_f64().max(1e-9);
    let times = &report.stages;
    let read = times.decode + times.transform;
    let rows = [
        ("decode", times.decode, rate(times.decode, threads)),
        ("transform", times.transform, rate(times.transform, threads)),
        ("decode and transform", read, rate(read, threads)),
        ("model", times.infer, rate(times.infer, 1)),
        ("write", times.write, rate(times.write, 1)),
        ("whole", report.elapsed, rate(report.elapsed, 1)),
    ];
    let slowest = rows[2..5].iter().map(|row| row.2).fold(f64::INFINITY, f64::min);
    df!(
        "stage" => rows.map(|row| row.0).to_vec(),
        "seconds" => rows.map(|row| row.1.as_secs_f64()).to_vec(),
        "images_per_second" => rows.map(|row| row.2).to_vec(),
        "limit" => rows.map(|row| row.0 != "whole" && row.2 == slowest).to_vec(),
    )
}
