//! Many results as one table and one page. `tasks` says which numbers of a
//! protocol stand for it, `names` which model and which images a result speaks of, `table` puts them together and `baseline`
//! compares; `frames`, `text`, `latex` and `html` write the table for programs, terminals, papers and people. Nothing here
//! computes a feature or a score: data flows from eval to report.

mod baseline;
mod frames;
mod grid;
mod html;
mod latex;
mod names;
mod table;
mod tasks;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use macula_eval::stats::BootstrapConfig;
use serde_json::{Value, json};

pub use self::baseline::{Difference, SIGNIFICANT, Test, Verdict};
pub use self::table::{Cell, Column, Table};

use crate::results::{StoredResult, read_all};
use crate::{Error, Result, files};

/// The last file of a report that is written: where it stands, the others are whole.
pub const REPORT_FILE: &str = "report.json";
/// The page.
pub const PAGE_FILE: &str = "report.html";

/// What a report is made with.
#[derive(Debug, Clone, Default)]
pub struct ReportOptions {
    /// Title of the page; `Evaluation report` where there is none.
    pub title: Option<String>,
    /// The model that the others are compared with.
    pub baseline: Option<String>,
    /// The k of k-NN results to show; otherwise 20 where all have it, or the least that all have.
    pub k: Option<u64>,
    /// PNG, JPEG or WebP files to show on the page.
    pub pictures: Vec<PathBuf>,
    /// How paired intervals are drawn.
    pub bootstrap: BootstrapConfig,
}

/// A report that can be written.
#[derive(Debug)]
pub struct Report {
    title: String,
    baseline: Option<String>,
    results: Vec<StoredResult>,
    table: Table,
    notes: Vec<String>,
    pictures: Vec<html::Picture>,
}

impl Report {
    /// Reads `specs` (see [`read_all`]) and puts them together.
    ///
    /// # Errors
    /// One line that names the file, the field, what was expected and what was found; also for two results of one model and
    /// measure with different values, and for a baseline that is no model.
    pub fn build(specs: &[String], options: &ReportOptions) -> Result<Self> {
        let results = read_all(specs)?;
        let (mut table, notes) = Table::from_results(&results, options.k)?;
        if let Some(baseline) = &options.baseline {
            baseline::compare(&mut table, &results, baseline, &options.bootstrap)?;
        }
        Ok(Self {
            title: options
                .title
                .clone()
                .unwrap_or_else(|| "Evaluation report".to_owned()),
            baseline: options.baseline.clone(),
            pictures: html::Picture::read_all(&options.pictures)?,
            results,
            table,
            notes,
        })
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What makes numbers hard to compare, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The table for a terminal, and the differences from the baseline where there is one.
    pub fn to_text(&self) -> String {
        let mut text = grid::results(&self.table).to_text();
        if let Some(baseline) = &self.baseline {
            let differences = grid::differences(&self.table);
            text += &format!("\ndifference from {baseline}\n\n{}", differences.to_text());
        }
        text
    }

    /// The same as GitHub-flavoured Markdown, the best in bold.
    pub fn to_markdown(&self) -> String {
        let mut text = grid::results(&self.table).to_markdown();
        text += "\n95 % intervals in brackets; the best of each column in bold.\n";
        if let Some(baseline) = &self.baseline {
            text += &format!("\n## Difference from {}\n\n", grid::escaped(baseline));
            text += &grid::differences(&self.table).to_markdown();
            text += &format!("\n{}\n", grid::DIFFERENCES_NOTE);
        }
        for note in &self.notes {
            text += &format!("\nNote: {}\n", grid::escaped(note));
        }
        text
    }

    /// The same as a LaTeX table (package booktabs).
    pub fn to_latex(&self) -> String {
        latex::write(&self.table, self.baseline.as_deref())
    }

    /// One row a model, three columns a measure, as CSV.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_csv(&self) -> Result<String> {
        frames::to_csv(&mut frames::wide(&self.table)?)
    }

    /// One row a model and measure: `{"task": "report", "settings", "n_train", "n_test", "rows"}`.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_json(&self) -> Result<Value> {
        let max =
            |count: fn(&StoredResult) -> u64| self.results.iter().map(count).max().unwrap_or(0) as usize;
        let result = macula_eval::table::EvalResult::new(
            "report",
            json!({
                "baseline": self.baseline,
                "models": self.table.models,
                "results": self.results.iter().map(StoredResult::file).collect::<Vec<_>>(),
                "notes": self.notes,
                "tool_version": env!("CARGO_PKG_VERSION"),
            }),
            max(|result| result.n_train),
            max(|result| result.n_test),
            frames::long(&self.table, &self.results)?,
        )?;
        Ok(result.to_json()?)
    }

    /// The page: one file that needs no other and no network.
    pub fn to_html(&self) -> String {
        html::page(self)
    }

    /// Writes `report.html`, `report.md`, `report.csv` (one row a model), `report.tex`, `report.parquet` (one row a model and
    /// measure) and last `report.json` into `folder`, made if need be; each beside its name and renamed.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        files::write_bytes(&folder.join(PAGE_FILE), self.to_html().as_bytes())?;
        files::write_bytes(&folder.join("report.md"), self.to_markdown().as_bytes())?;
        files::write_bytes(&folder.join("report.csv"), self.to_csv()?.as_bytes())?;
        files::write_bytes(&folder.join("report.tex"), self.to_latex().as_bytes())?;
        let parquet = frames::to_parquet(&mut frames::long(&self.table, &self.results)?)?;
        files::write_bytes(&folder.join("report.parquet"), &parquet)?;
        files::write_json(&folder.join(REPORT_FILE), &self.to_json()?)
    }
}
