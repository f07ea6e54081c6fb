//! `curate run`: the steps of a TOML file, each on the list of the one before. A step whose folder holds the same settings and
//! inputs is not done again.

use std::path::{Path, PathBuf};

use macula_eval::Error as EvalError;
use macula_eval::table::EvalResult;
use polars::prelude::{ParquetWriter, df};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::output::{describe_inputs, refuse_existing};
use super::{
    CURATE_FILE, DedupOptions, InputOptions, LIST_FILE, OverlapOptions, QualityOptions, RetrieveOptions,
    SampleOptions, Step, run_step,
};
use crate::cluster::OneRank;
use crate::error::one_line;
use crate::lock::FolderLock;
use crate::tables::read_own;
use crate::{Error, Result, files};

/// A pipeline as its file has it. Paths are relative to the current folder, as on the command line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    features: PathBuf,
    out: PathBuf,
    data: Option<String>,
    column: Option<String>,
    list: Option<PathBuf>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    step: Vec<toml::Table>,
}

/// Steps that are ready to run.
pub struct Pipeline {
    file: PathBuf,
    input: InputOptions,
    /// Folder of the result.
    pub out: PathBuf,
    seed: u64,
    steps: Vec<Planned>,
}

struct Planned {
    name: String,
    step: Box<dyn Step>,
    features: Option<PathBuf>,
    column: Option<String>,
}

/// What a pipeline did.
#[derive(Debug)]
pub struct PipelineOutcome {
    /// One row a step and reason.
    pub summary: EvalResult,
    /// The same for programs.
    pub json: Value,
    /// Lines for the user.
    pub notes: Vec<String>,
}

impl Pipeline {
    /// Reads and checks a pipeline's file.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown verb or setting, a value out of range, no step.
    pub fn read(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let written: Written = toml::from_str(&text).map_err(|e| Error::input(name(), in_one_line(&e)))?;
        if written.step.is_empty() {
            return Err(Error::input(name(), "expected at least one [[step]], found none"));
        }
        let steps = written.step.into_iter().enumerate();
        let steps = steps
            .map(|(number, table)| planned(path, number + 1, table))
            .collect::<Result<_>>()?;
        Ok(Self {
            file: path.to_owned(),
            input: InputOptions {
                features: Some(written.features),
                column: written.column,
                list: written.list,
                data: written.data,
            },
            out: written.out,
            seed: written.seed,
            steps,
        })
    }

    /// Runs the steps into folders of `out` and puts the last list beside them. With `resume`, a step whose folder holds the
    /// same settings, seed and inputs is passed over. `progress` hears of each step before and after.
    ///
    /// # Errors
    /// An output that another run is writing, or that exists without `force` or `resume`; what a step says, with its number.
    pub fn run(&self, force: bool, resume: bool, mut progress: impl FnMut(&str)) -> Result<PipelineOutcome> {
        FolderLock::check(&self.out)?;
        refuse_existing(&self.out, force || resume)?;
        let _lock = FolderLock::acquire(&self.out)?;
        // Marks the folder as curate's own while steps are missing.
        files::write_json(
            &self.out.join(CURATE_FILE),
            &json!({ "task": "curate-run", "complete": false }),
        )?;
        let mut list = self.input.list.clone();
        let (mut steps, mut notes) = (Vec::new(), Vec::new());
        for (number, planned) in self.steps.iter().enumerate() {
            let out = self.out.join(format!("{}-{}", number + 1, planned.name));
            let input = InputOptions {
                features: planned.features.clone().or(self.input.features.clone()),
                column: planned.column.clone().or(self.input.column.clone()),
                list: list.clone(),
                data: self.input.data.clone(),
            };
            let done = resume
                .then(|| self.done_already(planned, &input, &out))
                .transpose()?
                .flatten();
            let json = match done {
                Some(json) => {
                    progress(&format!("step {} {}: done already", number + 1, planned.name));
                    json
                }
                None => {
                    progress(&format!("step {} {}", number + 1, planned.name));
                    let step = planned.step.as_ref();
                    let outcome = run_step(step, &input, self.seed, (&out, true), &OneRank)
                        .map_err(|e| self.at(number, e))?;
                    notes.extend(
                        outcome
                            .notes
                            .iter()
                            .map(|note| format!("step {}: {note}", number + 1)),
                    );
                    outcome.json
                }
            };
            steps.push((planned.name.clone(), json));
            list = Some(out.join(LIST_FILE));
        }
        if let Some(list) = &list {
            copy_list(list, &self.out.join(LIST_FILE))?;
        }
        let outcome = outcome(&steps, notes)?;
        files::write_json(&self.out.join(CURATE_FILE), &outcome.json)?;
        Ok(outcome)
    }

    /// What the folder of a step says, where it was made from the same settings and inputs.
    fn done_already(&self, planned: &Planned, input: &InputOptions, out: &Path) -> Result<Option<Value>> {
        let (file, list) = (out.join(CURATE_FILE), out.join(LIST_FILE));
        if !file.is_file() || !list.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        let Ok(found) = serde_json::from_str::<Value>(&text) else {
            return Ok(None);
        };
        let step = planned.step.as_ref();
        let same = found["settings"] == step.settings()
            && found["seed"] == json!(self.seed)
            && found["tool_version"] == env!("CARGO_PKG_VERSION")
            && found["inputs"] == describe_inputs(step, input)?;
        Ok(same.then_some(found))
    }

    /// An error with the step it came from.
    fn at(&self, number: usize, error: Error) -> Error {
        let what = format!("{}: step {}", self.file.display(), number + 1);
        match error.exit_code() {
            2 => Error::input(what, error.to_string()),
            _ => Error::failed(what, error.to_string()),
        }
    }
}

/// A list's paths are absolute, so that it can be copied as it is.
fn copy_list(from: &Path, to: &Path) -> Result<()> {
    let mut frame = read_own(from, None)?;
    files::write_whole(to, |file| {
        ParquetWriter::new(file)
            .finish(&mut frame)
            .map_err(EvalError::from)?;
        Ok(())
    })
}

fn in_one_line(error: &toml::de::Error) -> String {
    one_line(error.message(), usize::MAX)
}

/// A step from its table: `verb`, `features` and `column` of its own where it has them, and the verb's settings.
fn planned(path: &Path, number: usize, mut table: toml::Table) -> Result<Planned> {
    let what = |verb: &str| format!("{}: step {number} {verb}", path.display());
    let Some(toml::Value::String(verb)) = table.remove("verb") else {
        return Err(Error::input(what("").trim_end(), "expected `verb`, found none"));
    };
    // What the command line asks for has no default here either.
    let needed = match verb.as_str() {
        "sample" => Some("size"),
        "overlap" => Some("against"),
        "retrieve" => Some("seeds"),
        _ => None,
    };
    if let Some(key) = needed.filter(|key| !table.contains_key(*key)) {
        return Err(Error::input(what(&verb), format!("expected `{key}`, found none")));
    }
    let mut text = |key: &str| -> Result<Option<String>> {
        match table.remove(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::input(
                what(&verb),
                format!("{key}: expected text, found {other}"),
            )),
        }
    };
    let (features, column) = (text("features")?.map(PathBuf::from), text("column")?);
    let step: Box<dyn Step> = match verb.as_str() {
        "dedup" => Box::new(settings::<DedupOptions>(&what(&verb), table)?),
        "overlap" => Box::new(settings::<OverlapOptions>(&what(&verb), table)?),
        "retrieve" => Box::new(settings::<RetrieveOptions>(&what(&verb), table)?),
        "sample" => Box::new(settings::<SampleOptions>(&what(&verb), table)?),
        "quality" => Box::new(settings::<QualityOptions>(&what(&verb), table)?),
        _ => {
            let reason = format!("expected verb dedup, overlap, retrieve, sample or quality, found `{verb}`");
            return Err(Error::input(what("").trim_end(), reason));
        }
    };
    Ok(Planned {
        name: verb,
        step,
        features,
        column,
    })
}

fn settings<T: DeserializeOwned>(what: &str, table: toml::Table) -> Result<T> {
    table
        .try_into()
        .map_err(|e: toml::de::Error| Error::input(what, in_one_line(&e)))
}

fn outcome(steps: &[(String, Value)], notes: Vec<String>) -> Result<PipelineOutcome> {
    let rows: Vec<(String, &Value)> = steps
        .iter()
        .enumerate()
        .flat_map(|(number, (name, json))| {
            let rows = json["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
            rows.iter()
                .map(move |row| (format!("{} {name}", number + 1), row))
        })
        .collect();
    let table = df!(
        "step" => rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(),
        "kept" => rows.iter().map(|row| row.1["kept"].as_bool()).collect::<Vec<_>>(),
        "reason" => rows.iter().map(|row| row.1["reason"].as_str()).collect::<Vec<_>>(),
        "rows" => rows.iter().map(|row| row.1["rows"].as_u64()).collect::<Vec<_>>(),
        "share" => rows.iter().map(|row| row.1["share"].as_f64()).collect::<Vec<_>>(),
    )
    .map_err(EvalError::from)?;
    let count =
        |step: Option<&(String, Value)>, key: &str| step.and_then(|(_, json)| json["counts"][key].as_u64());
    let (n, kept) = (
        count(steps.first(), "rows").unwrap_or(0),
        count(steps.last(), "kept").unwrap_or(0),
    );
    let summary = EvalResult::new("run", json!({}), n as usize, kept as usize, table)?;
    let json = json!({
        "task": "curate-run",
        "complete": true,
        "counts": { "rows": n, "kept": kept, "removed": n - kept.min(n) },
        "steps": steps.iter().map(|(_, json)| json.clone()).collect::<Vec<_>>(),
        "rows": summary.to_json()?["rows"].take(),
    });
    Ok(PipelineOutcome { summary, json, notes })
}
