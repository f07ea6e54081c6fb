//! The folder that a step writes: `list.parquet`, `curate.json` (settings, inputs with their hashes, counts), tables and
//! pictures of its own. It is written beside its name and renamed when whole.

use std::path::Path;
use std::time::Instant;

use macula_eval::Error as EvalError;
use macula_eval::table::EvalResult;
use polars::prelude::{CsvWriter, DataFrame, ParquetWriter, SerWriter as _, df};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{InputOptions, Judged, LIST_FILE, Step};
use crate::cluster::Ranks;
use crate::extract::folder::{META_FILE, SUCCESS_FILE};
use crate::lock::FolderLock;
use crate::{Error, Result, files};

/// Name of the file that says how a folder was made.
pub const CURATE_FILE: &str = "curate.json";
/// Version of `curate.json`; raised when a field changes its meaning.
const VERSION: u64 = 1;

/// What a step did.
#[derive(Debug)]
pub struct Outcome {
    /// One row a verdict and reason: `kept`, `reason`, `rows`, `share`.
    pub summary: EvalResult,
    /// What `curate.json` says.
    pub json: Value,
    /// Lines for the user.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The table and a line with the counts.
    ///
    /// # Errors
    /// None for a table that was just made; the type follows [`EvalResult::to_text`].
    pub fn to_text(&self) -> Result<String> {
        let mut text = self.summary.to_text()?;
        if let Value::Object(counts) = &self.json["counts"] {
            let words: Vec<String> = counts
                .iter()
                .map(|(name, value)| format!("{name} {}", short(value)))
                .collect();
            text += &words.join(", ");
        }
        Ok(text)
    }
}

/// Fractions with 4 decimals.
fn short(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => format!("{:.4}", number.as_f64().unwrap_or_default()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Runs `step` on `input` and writes folder `out`, as the first of `ranks`, the others of which [help](Step::help).
///
/// # Errors
/// An output that another run is writing, or that exists (without `force`, or that no step wrote); what the step says.
pub fn run_step(
    step: &dyn Step,
    input: &InputOptions,
    seed: u64,
    (out, force): (&Path, bool),
    ranks: &dyn Ranks,
) -> Result<Outcome> {
    let _lock = FolderLock::beside(out)?;
    refuse_existing(out, force)?;
    let inputs = describe_inputs(step, input)?;
    let start = Instant::now();
    let judged = step.judge_with(input, seed, ranks)?;
    let (summary, json) = describe(step, seed, inputs, &judged, start.elapsed().as_secs_f64())?;
    files::write_folder(out, |folder| {
        judged.ledger.write(&folder.join(LIST_FILE), &judged.origin)?;
        for (name, table) in &judged.tables {
            write_table(folder, name, table.clone())?;
        }
        for (name, sheet) in &judged.sheets {
            sheet.save(&folder.join(format!("{name}.png")))?;
        }
        files::write_json(&folder.join(CURATE_FILE), &json)
    })?;
    let mut notes = judged.notes;
    notes.extend(judged.origin.missing.map(|missing| {
        format!("{LIST_FILE} has the paths of the features, which may not be where the images lie: {missing}")
    }));
    Ok(Outcome { summary, json, notes })
}

/// Only a folder that a step wrote is ever replaced.
pub(super) fn refuse_existing(out: &Path, force: bool) -> Result<()> {
    files::refuse_existing(out, force)?;
    if out.exists() && !out.join(CURATE_FILE).is_file() {
        return Err(Error::input(
            out.display().to_string(),
            format!("exists and was not written by curate (no {CURATE_FILE}); it is not replaced"),
        ));
    }
    Ok(())
}

fn describe(
    step: &dyn Step,
    seed: u64,
    inputs: Value,
    judged: &Judged,
    seconds: f64,
) -> Result<(EvalResult, Value)> {
    let ledger = &judged.ledger;
    let n = ledger.n_judged();
    let tally = ledger.tally();
    let share = |rows: usize| rows as f64 / n.max(1) as f64;
    let table = df!(
        "kept" => tally.iter().map(|row| row.0).collect::<Vec<_>>(),
        "reason" => tally.iter().map(|row| row.1.as_str()).collect::<Vec<_>>(),
        "rows" => tally.iter().map(|row| row.2 as u64).collect::<Vec<_>>(),
        "share" => tally.iter().map(|row| share(row.2)).collect::<Vec<_>>(),
    )
    .map_err(EvalError::from)?;
    let mut counts = judged.counts.clone();
    counts.insert("rows".to_owned(), json!(n));
    counts.insert("kept".to_owned(), json!(ledger.n_kept()));
    counts.insert("removed".to_owned(), json!(n - ledger.n_kept()));
    if let Some((before, after)) = ledger.label_entropies() {
        counts.insert("label_entropy_before".to_owned(), json!(before));
        counts.insert("label_entropy_after".to_owned(), json!(after));
    }
    let summary = EvalResult::new(step.name(), step.settings(), n, ledger.n_kept(), table)?;
    let rows = summary.to_json()?["rows"].take();
    let json = json!({
        "version": VERSION,
        "tool_version": env!("CARGO_PKG_VERSION"),
        "task": format!("curate-{}", step.name()),
        "settings": step.settings(),
        "seed": seed,
        "inputs": inputs,
        "counts": counts,
        "rows": rows,
        "seconds": seconds,
    });
    Ok((summary, json))
}

/// What a step reads, with hashes: whether its folder still stands for the same inputs is decided by them.
///
/// # Errors
/// Files that cannot be read.
pub(super) fn describe_inputs(step: &dyn Step, input: &InputOptions) -> Result<Value> {
    let mut inputs = serde_json::Map::new();
    if let Some(features) = &input.features {
        inputs.insert("features".to_owned(), describe_path(features)?);
    }
    if let Some(list) = &input.list {
        inputs.insert("list".to_owned(), describe_path(list)?);
    }
    inputs.insert("column".to_owned(), json!(input.column));
    inputs.insert("data".to_owned(), json!(input.data));
    let mut others: Vec<Value> = Vec::new();
    for (role, path) in step.other_inputs() {
        let mut described = describe_path(&path)?;
        described["role"] = json!(role);
        others.push(described);
    }
    inputs.insert("others".to_owned(), json!(others));
    Ok(Value::Object(inputs))
}

/// A list by its bytes; a feature folder by its descriptions and the sizes of its parts, which are too large to read twice.
fn describe_path(path: &Path) -> Result<Value> {
    let sha256 = if path.is_dir() {
        folder_hash(path)?
    } else {
        files::sha256(path)?
    };
    Ok(json!({ "path": path.display().to_string(), "sha256": sha256 }))
}

fn folder_hash(folder: &Path) -> Result<String> {
    let mut names: Vec<std::path::PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        names.push(entry.map_err(|e| Error::io(folder, e))?.path());
    }
    names.sort();
    let mut hash = Sha256::new();
    for path in names {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let failed = |e| Error::io(&path, e);
        if path.is_dir() {
            // A shard; other folders (`img_emb`) repeat what the parts hold.
            if path.join(META_FILE).is_file() {
                hash.update(folder_hash(&path)?);
            }
        } else if name == META_FILE {
            hash.update(std::fs::read(&path).map_err(failed)?);
        } else if name == SUCCESS_FILE || name.ends_with(".parquet") {
            hash.update(&name);
            hash.update(std::fs::metadata(&path).map_err(failed)?.len().to_le_bytes());
        }
    }
    Ok(files::hex(&hash.finalize()))
}

fn write_table(folder: &Path, name: &str, mut table: DataFrame) -> Result<()> {
    files::write_whole(&folder.join(format!("{name}.parquet")), |file| {
        ParquetWriter::new(file)
            .finish(&mut table)
            .map_err(EvalError::from)?;
        Ok(())
    })?;
    let mut csv = Vec::new();
    CsvWriter::new(&mut csv)
        .finish(&mut table)
        .map_err(EvalError::from)?;
    files::write_bytes(&folder.join(format!("{name}.csv")), &csv)
}
