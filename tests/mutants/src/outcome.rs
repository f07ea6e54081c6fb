//! What became of each mutant: a line of JSON, and a table by folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::rewrite::Chosen;

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A test failed, or its process died.
    Caught {
        /// The test, or how the process ended.
        by: String,
    },
    /// Stopped at a limit of time: it counts as caught.
    TimedOut,
    /// All tests that reach it passed.
    Survived,
    /// No test reaches it.
    NotCovered,
}

/// A mutant and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The mutant.
    #[serde(flatten)]
    pub mutant: Chosen,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long that took.
    pub seconds: f64,
}

impl Outcome {
    /// A line of JSON.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Those of `mutants` that an earlier run, whose lines are `file`, did not see caught.
pub fn unsettled(file: &Path, mutants: Vec<Chosen>) -> Result<Vec<Chosen>> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut open = Vec::new();
    for (place, line) in text.lines().enumerate() {
        let outcome: Outcome = serde_json::from_str(line)
            .map_err(|error| format!("{}: line {}: {error}", file.display(), place + 1))?;
        if matches!(outcome.verdict, Verdict::Survived | Verdict::NotCovered) {
            open.push(outcome.mutant);
        }
    }
    Ok(mutants
        .into_iter()
        .filter(|mutant| open.iter().any(|earlier| earlier.same(mutant)))
        .collect())
}

/// Numbers of mutants by folder, as Markdown.
pub fn table(folders: &[String], outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    for outcome in outcomes {
        let folder = folders
            .iter()
            .find(|folder| outcome.mutant.file.starts_with(folder.as_str()));
        let row = counts.entry(folder.map_or("", String::as_str)).or_default();
        row[0] += 1;
        row[match outcome.verdict {
            Verdict::Caught { .. } => 1,
            Verdict::TimedOut => 2,
            Verdict::Survived => 3,
            Verdict::NotCovered => 4,
        }] += 1;
    }
    let mut lines = vec![
        "| folder | mutants | caught | timed out | survived | not covered |".to_owned(),
        "|---|---:|---:|---:|---:|---:|".to_owned(),
    ];
    lines.extend(counts.iter().map(|(folder, row)| {
        let cells: Vec<String> = row.iter().map(usize::to_string).collect();
        format!("| {folder} | {} |", cells.join(" | "))
    }));
    lines.join("\n")
}
