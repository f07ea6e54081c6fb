//! Curation of a pool of images on its feature folder. Each step is one file: it reads features (narrowed by the list of an
//! earlier step), asks `macula_eval::curation` for rows, and returns a verdict on every row. What steps share: `input`
//! (features, list, source), `origin` (where a row's image lies), `ledger` (the verdicts and `list.parquet`), `output` (the
//! folder a step writes, whole or not at all), `pixels` (hashes of images), `pairs` (matches as table and pictures).
//! `pipeline` runs many steps, one on the list of the other.

mod dedup;
mod input;
mod ledger;
mod origin;
mod output;
mod overlap;
mod pairs;
mod pipeline;
mod pixels;
mod quality;
mod retrieve;
mod sample;

pub use dedup::{DedupOptions, Keep};
pub use input::InputOptions;
pub use ledger::{LIST_FILE, Ledger};
pub use output::{CURATE_FILE, Outcome, run_step};
pub use overlap::OverlapOptions;
pub use pipeline::{Pipeline, PipelineOutcome};
pub use pixels::PixelMatch;
pub use quality::{Flag, QualityOptions};
pub use retrieve::{RetrieveMethod, RetrieveOptions};
pub use sample::{SampleMethod, SampleOptions, SampleSize};

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::Result;
use crate::cluster::Ranks;
use crate::draw::Sheet;
use origin::Origin;
use polars::prelude::DataFrame;

/// One step of curation: its settings, and how it comes to a verdict on every row.
pub trait Step {
    /// Name of the verb.
    fn name(&self) -> &'static str;

    /// The settings, as `curate.json` keeps them.
    fn settings(&self) -> Value;

    /// Feature folders and lists that it reads beside its input, each with its role.
    fn other_inputs(&self) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    /// Judges the rows of `input`. Every random choice comes from `seed`.
    ///
    /// # Errors
    /// Settings out of range, folders or lists that cannot be read or do not fit each other.
    fn judge(&self, input: &InputOptions, seed: u64) -> Result<Judged>;

    /// As [`Step::judge`], by the first of `ranks`, the others of which help.
    ///
    /// # Errors
    /// As [`Step::judge`]; ranks that cannot reach each other.
    fn judge_with(&self, input: &InputOptions, seed: u64, _ranks: &dyn Ranks) -> Result<Judged> {
        self.judge(input, seed)
    }

    /// What the others do while the first of `ranks` judges: nothing, where a step does not share its work.
    ///
    /// # Errors
    /// As [`Step::judge_with`].
    fn help(&self, _input: &InputOptions, _seed: u64, _ranks: &dyn Ranks) -> Result<()> {
        Ok(())
    }
}

/// What a step found.
pub struct Judged {
    /// A verdict on every row.
    pub(crate) ledger: Ledger,
    /// Where the rows' images lie.
    pub(crate) origin: Origin,
    /// Numbers for `curate.json` and `--json`.
    pub(crate) counts: Map<String, Value>,
    /// Lines for the user, most of them warnings.
    pub(crate) notes: Vec<String>,
    /// Tables beside the list, as Parquet and CSV.
    pub(crate) tables: Vec<(String, DataFrame)>,
    /// Pictures beside the list, as PNG.
    pub(crate) sheets: Vec<(String, Sheet)>,
}

impl Judged {
    fn new(ledger: Ledger, origin: Origin) -> Self {
        Self {
            ledger,
            origin,
            counts: Map::new(),
            notes: Vec::new(),
            tables: Vec::new(),
            sheets: Vec::new(),
        }
    }

    fn count(&mut self, name: &str, value: impl Into<Value>) {
        self.counts.insert(name.to_owned(), value.into());
    }
}

/// How a setting is called in files: the name that serde gives it.
fn setting_name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}
