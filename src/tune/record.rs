//! `tune.json`: what was asked for, the candidates and how far each has come. Written whole after every change, so that a search that
//! ends at any moment goes on from there.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::judge::Judge;
use super::plan;
use super::space::Combination;
use crate::data::SourceIdentity;
use crate::{Error, Result, files};

/// Its name in the folder of a search.
pub const RECORD: &str = "tune.json";
/// The version of the layout; later ones are refused.
const VERSION: u32 = 1;

/// A search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The version of the layout.
    pub version: u32,
    /// What was asked for.
    pub settings: Settings,
    /// The images that are learnt from.
    pub source: SourceIdentity,
    /// How many candidates each rung has.
    pub rungs: Vec<usize>,
    /// The candidates, as drawn.
    pub candidates: Vec<Candidate>,
}

/// What a search is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The images, as `--data` names them.
    pub data: String,
    /// Labelled images for online k-NN, where there are any.
    pub labelled: Option<String>,
    /// Which reading decides.
    pub select: Judge,
    /// What is changed in every candidate, `field=value` each.
    pub fixed: Vec<String>,
    /// Seconds of all runs together.
    pub budget: f64,
    /// Seed of the draw and of every run.
    pub seed: u64,
}

/// One candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Name of its recipe.
    pub recipe: String,
    /// What is changed in it, `field=value` each.
    pub settings: Vec<String>,
    /// Seconds a step, as measured before the first rung.
    pub step_seconds: f64,
    /// Steps of a full run.
    pub steps: u64,
    /// The reading at the end of every rung it has done.
    pub readings: Vec<f64>,
    /// Why it went no further, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// A search that has not begun.
    pub fn new(
        settings: Settings,
        source: SourceIdentity,
        rungs: Vec<usize>,
        candidates: Vec<Candidate>,
    ) -> Self {
        Self {
            version: VERSION,
            settings,
            source,
            rungs,
            candidates,
        }
    }

    /// Reads the record of the search in `folder`.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged or of a later version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(RECORD);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let input = |reason: String| Error::input(path.display().to_string(), reason);
        let record: Self = serde_json::from_str(&text).map_err(|e| input(e.to_string()))?;
        if record.version > VERSION {
            return Err(input(format!(
                "expected version {VERSION} at most, found {}",
                record.version
            )));
        }
        let expected = plan::rungs(record.candidates.len());
        if record.candidates.is_empty() || record.rungs != expected {
            return Err(input(format!(
                "rungs: expected {expected:?}, found {:?}",
                record.rungs
            )));
        }
        for (place, candidate) in record.candidates.iter().enumerate() {
            candidate
                .check(record.rungs.len())
                .map_err(|reason| input(format!("candidates[{place}].{reason}")))?;
        }
        Ok(record)
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        files::write_json(&folder.join(RECORD), self)
    }

    /// Takes down a reading of the candidate at `place`, or that it is out because its run failed.
    ///
    /// # Errors
    /// What is no failure of the run.
    pub fn note(&mut self, place: usize, reading: Result<f64>) -> Result<()> {
        let candidate = &mut self.candidates[place];
        match reading {
            Ok(reading) => candidate.readings.push(reading),
            Err(error @ (Error::Failed { .. } | Error::NotFinite { .. })) => {
                tracing::warn!("candidate {place} is out: {error}");
                candidate.error = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The candidates of `rung`, as places in the list, the best first: those with the highest readings at the end of the rung before.
    pub fn in_rung(&self, rung: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.candidates.len()).collect();
        let Some(before) = rung.checked_sub(1) else {
            return all;
        };
        let reading = |place: &usize| {
            let readings = &self.candidates[*place].readings;
            readings.get(before).copied().filter(|value| value.is_finite())
        };
        all.retain(|place| reading(place).is_some());
        all.sort_by(|a, b| {
            let (a, b) = (reading(a).unwrap_or(f64::NAN), reading(b).unwrap_or(f64::NAN));
            b.total_cmp(&a)
        });
        all.truncate(self.rungs[rung]);
        all
    }

    /// All candidates, those that came furthest first, then by their last readings.
    pub fn ranking(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.candidates.len()).collect();
        let key = |place: usize| {
            let candidate = &self.candidates[place];
            let last = candidate
                .readings
                .last()
                .copied()
                .filter(|value| value.is_finite());
            (candidate.readings.len(), last.unwrap_or(f64::NEG_INFINITY))
        };
        all.sort_by(|&a, &b| {
            let ((depth_a, last_a), (depth_b, last_b)) = (key(a), key(b));
            depth_b.cmp(&depth_a).then(last_b.total_cmp(&last_a))
        });
        all
    }
}

impl Candidate {
    /// A candidate that has not begun.
    pub fn new(combination: Combination, step_seconds: f64, steps: u64) -> Self {
        Self {
            recipe: combination.recipe,
            settings: combination.settings,
            step_seconds,
            steps,
            readings: Vec::new(),
            error: None,
        }
    }

    /// What no search can have written: the field, what was expected and what was found.
    fn check(&self, rungs: usize) -> std::result::Result<(), String> {
        if self.steps == 0 {
            return Err("steps: expected at least 1, found 0".to_owned());
        }
        if self.readings.len() > rungs {
            let found = self.readings.len();
            return Err(format!("readings: expected {rungs} at most, found {found}"));
        }
        Ok(())
    }

    /// The step that it reaches with `share` of a full run.
    pub fn steps_at(&self, share: f64) -> u64 {
        ((self.steps as f64 * share).round() as u64).clamp(1, self.steps)
    }

    /// Its settings in one line.
    pub fn described(&self) -> String {
        match self.settings.is_empty() {
            true => "as it is".to_owned(),
            false => self.settings.join(" "),
        }
    }
}
