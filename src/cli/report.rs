//! `macula report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use macula_eval::stats::BootstrapConfig;

use super::args::start_threads;
use super::output;
use crate::lock::FolderLock;
use crate::report::{PAGE_FILE, REPORT_FILE, Report, ReportOptions};
use crate::{Result, files, rng};

/// Arguments of `macula report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// result.json, folders that `macula eval` wrote with --out, folders of such folders; NAME=PATH names the model
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<String>,
    /// Compare the others with this model: paired bootstrap and McNemar's test where both kept predictions of the same rows
    #[arg(long, value_name = "MODEL")]
    baseline: Option<String>,
    /// Folder for report.html, report.md, report.csv, report.tex, report.parquet and report.json
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace a report that exists
    #[arg(long)]
    force: bool,
    /// What is printed
    #[arg(long, value_enum, default_value = "text", conflicts_with = "json")]
    format: Format,
    /// Print the table as JSON, a row a model and measure, and nothing else
    #[arg(long)]
    json: bool,
    /// Title of the page
    #[arg(long)]
    title: Option<String>,
    /// PNG, JPEG or WebP pictures to show on the page
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    picture: Vec<PathBuf>,
    /// k of the k-NN rows; by default 20 where all have it, or else the least that all have
    #[arg(long, value_name = "N")]
    k: Option<u64>,
    /// Bootstrap resamples of the paired intervals
    #[arg(long, default_value_t = 1000)]
    bootstrap_resamples: usize,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// How the table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Markdown,
    Csv,
    Latex,
    Html,
}

impl ReportArgs {
    /// Puts the results together, keeps and prints them.
    pub fn run(&self) -> Result<()> {
        start_threads(self.threads)?;
        let _lock = self.out.as_deref().map(FolderLock::of).transpose()?;
        if let Some(out) = &self.out {
            for file in [REPORT_FILE, PAGE_FILE] {
                files::refuse_existing(&out.join(file), self.force)?;
            }
        }
        let options = ReportOptions {
            title: self.title.clone(),
            baseline: self.baseline.clone(),
            k: self.k,
            pictures: self.picture.clone(),
            bootstrap: BootstrapConfig {
                resamples: self.bootstrap_resamples,
                seed: rng::derived_seed(self.seed, "report"),
                ..BootstrapConfig::default()
            },
        };
        let report = Report::build(&self.results, &options)?;
        for note in report.notes() {
            tracing::warn!("{note}");
        }
        if let Some(out) = &self.out {
            report.save(out)?;
            tracing::info!("{}", out.join(PAGE_FILE).display());
        }
        if self.json {
            return output::print_json(&report.to_json()?);
        }
        let text = match self.format {
            Format::Text => report.to_text(),
            Format::Markdown => report.to_markdown(),
            Format::Csv => report.to_csv()?,
            Format::Latex => report.to_latex(),
            Format::Html => report.to_html(),
        };
        output::print(text.trim_end())
    }
}
