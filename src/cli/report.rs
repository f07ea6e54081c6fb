//! `macula report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::{BootstrapArgs, INPUT, OUTPUT, ResultArgs, ThreadArgs, examples, reworded};
use super::output;
use crate::lock::FolderLock;
use crate::report::{PAGE_FILE, REPORT_FILE, Report, ReportOptions};
use crate::{Result, files};

/// Arguments of `macula report`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Report",
    mut_args(reworded(&[
        ("out", "Folder for report.html, report.md, report.csv, report.tex, report.parquet and report.json [default: none, the \
                 table is printed alone]"),
        ("force", "Replace a report that exists"),
        ("json", "Print the table as JSON, a row a model and measure, and nothing else"),
    ])),
    after_help = examples(&[
        "macula report results/ --baseline pixels --out report",
        "macula report mine=runs/a/knn theirs=runs/b/knn --format markdown",
    ])
)]
pub struct ReportArgs {
    /// result.json, folders that `macula eval` wrote with --out, folders of such folders; NAME=PATH names the model
    #[arg(required = true, value_name = "RESULTS", help_heading = INPUT)]
    results: Vec<String>,
    /// Compare the others with this model: paired bootstrap and McNemar's test where both kept predictions of the same rows
    /// [default: none]
    #[arg(long, value_name = "MODEL")]
    baseline: Option<String>,
    /// k of the k-NN rows [default: 20 where all have it, or else the least that all have]
    #[arg(long, value_name = "N")]
    k: Option<u64>,
    /// What is printed
    #[arg(long, value_enum, default_value = "text", conflicts_with = "json", help_heading = OUTPUT)]
    format: Format,
    /// Title of the page [default: Evaluation report]
    #[arg(long, value_name = "TEXT", help_heading = OUTPUT)]
    title: Option<String>,
    /// PNG, JPEG or WebP pictures to show on the page [default: none]
    #[arg(long, value_name = "FILES", value_delimiter = ',', help_heading = OUTPUT)]
    picture: Vec<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    random: BootstrapArgs,
    #[command(flatten)]
    threads: ThreadArgs,
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
        self.threads.start()?;
        let _lock = self.result.out.as_deref().map(FolderLock::acquire).transpose()?;
        if let Some(out) = &self.result.out {
            for file in [REPORT_FILE, PAGE_FILE] {
                files::refuse_existing(&out.join(file), self.result.force)?;
            }
        }
        let options = ReportOptions {
            title: self.title.clone(),
            baseline: self.baseline.clone(),
            k: self.k,
            pictures: self.picture.clone(),
            bootstrap: self.random.config("report"),
        };
        let report = Report::build(&self.results, &options)?;
        for note in report.notes() {
            tracing::warn!("{note}");
        }
        if let Some(out) = &self.result.out {
            report.save(out)?;
            tracing::info!("{}", out.join(PAGE_FILE).display());
        }
        if self.result.print.json {
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
