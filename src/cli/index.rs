//! `macula index`: build, query and score nearest-neighbour indexes over feature folders.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use macula_eval::index::HnswConfig;
use serde_json::json;

use super::args::start_threads;
use super::output;
use crate::extract::FeatureFolder;
use crate::extract::folder::Features;
use crate::extract::read_column;
use crate::index::{self, IndexOptions, Kind, Manifest, OpenIndex, score_table, write_hits};
use crate::{Result, files};

/// Arguments of `macula index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build an index folder over a feature folder
    Build(BuildArgs),
    /// Write the nearest rows of every row of a feature folder
    Query(QueryArgs),
    /// Recall against exact search, queries/s, build time and size at several widths
    Score(ScoreArgs),
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Feature folder
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// Index folder to write
    #[arg(long, value_name = "INDEX")]
    out: PathBuf,
    /// Column; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Compare with every row, or walk a graph
    #[arg(long, value_enum, default_value = "exact")]
    kind: Kind,
    /// Links of a row in the graph, 2 to 255
    #[arg(long, default_value_t = HnswConfig::default().m)]
    m: usize,
    /// Width of the walk that finds a new row's links
    #[arg(long, default_value_t = HnswConfig::default().ef_construction)]
    ef_construction: usize,
    /// Choose the width of searches that finds this share of the 10 nearest, measured on held-out rows
    #[arg(long, value_name = "FRACTION")]
    recall: Option<f64>,
    /// Seed of the held-out rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace an index that stands there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct QueryArgs {
    #[command(flatten)]
    queries: QueriesArgs,
    /// Width of the walk; by default the one the index was built for
    #[arg(long)]
    ef: Option<usize>,
    /// Parquet file for query, query_path, rank, row, path, similarity, label
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct ScoreArgs {
    #[command(flatten)]
    queries: QueriesArgs,
    /// Widths of the walk to measure
    #[arg(long, value_delimiter = ',', default_value = "16,32,64,128,256,512")]
    ef: Vec<usize>,
    /// Folder for result.json, table.parquet, table.csv and table.md
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what --out holds
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Which index is asked, and for what.
#[derive(Debug, Args)]
struct QueriesArgs {
    /// Index folder
    #[arg(long, value_name = "INDEX")]
    index: PathBuf,
    /// Feature folder of the queries
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// Column of the queries; by default the index's
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Neighbours
    #[arg(long, default_value_t = 10)]
    k: usize,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl IndexArgs {
    /// Runs the action.
    pub fn run(&self) -> Result<()> {
        match &self.action {
            Action::Build(args) => args.run(),
            Action::Query(args) => args.run(),
            Action::Score(args) => args.run(),
        }
    }
}

impl BuildArgs {
    fn run(&self) -> Result<()> {
        start_threads(self.common.threads)?;
        let options = IndexOptions {
            kind: self.kind,
            column: self.column.clone(),
            hnsw: HnswConfig {
                m: self.m,
                ef_construction: self.ef_construction,
            },
            recall: self.recall,
            seed: self.seed,
            force: self.force,
        };
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} rows, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style);
        let built = index::build(&self.features, &self.out, &options, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let manifest = built?;
        if self.common.json {
            return output::print_json(&manifest);
        }
        output::print(&describe(&manifest, &self.out))
    }
}

fn describe(manifest: &Manifest, out: &Path) -> String {
    let kind = match manifest.kind {
        Kind::Exact => "exact".to_owned(),
        Kind::Hnsw => {
            let width = manifest
                .ef_search
                .map_or(String::new(), |ef| format!(", searches at ef {ef}"));
            let recall = manifest.measured.map_or(String::new(), |measured| {
                format!(
                    " (recall@{} {:.4} on {} held-out rows)",
                    measured.k, measured.reached, measured.n_queries
                )
            });
            format!("hnsw{width}{recall}")
        }
    };
    format!(
        "{}: {} vectors of width {}, {kind}, {:.0} bytes a vector, built in {:.1} s",
        out.display(),
        manifest.count,
        manifest.dim,
        manifest.bytes_per_vector(),
        manifest.build_seconds
    )
}

impl QueriesArgs {
    /// Reads the queries and opens the index for their width.
    fn open(&self) -> Result<(OpenIndex, Features)> {
        let manifest = Manifest::read(&self.index)?;
        let folder = FeatureFolder::open(&self.features)?;
        let column = self.column.as_deref().unwrap_or(&manifest.column);
        let queries = read_column(&folder, column)?;
        for notice in manifest.unfair(&self.index, &folder) {
            tracing::warn!("{notice}");
        }
        let index = OpenIndex::open(&self.index, queries.matrix.view().dim())?;
        Ok((index, queries))
    }
}

impl QueryArgs {
    fn run(&self) -> Result<()> {
        start_threads(self.common.threads)?;
        files::refuse_existing(&self.out, self.force)?;
        let (index, queries) = self.queries.open()?;
        let k = self.queries.k;
        let ef = index.ef(self.ef, k);
        let hits = index.index.search(queries.matrix.view(), k, ef)?;
        write_hits(&self.out, &index, &queries, &hits)?;
        let found: usize = hits.iter().map(Vec::len).sum();
        if found < k * hits.len() {
            let missing = k * hits.len() - found;
            tracing::warn!(
                "{missing} of {} neighbours were not reached; raise --ef",
                k * hits.len()
            );
        }
        if self.common.json {
            return output::print_json(&json!({
                "out": self.out, "n_queries": hits.len(), "k": k, "n_hits": found,
                "ef": (index.manifest.kind == Kind::Hnsw).then_some(ef),
            }));
        }
        output::print(&format!(
            "{}: {found} hits of {} queries",
            self.out.display(),
            hits.len()
        ))
    }
}

impl ScoreArgs {
    fn run(&self) -> Result<()> {
        start_threads(self.common.threads)?;
        let _lock = output::take_result_folder(self.out.as_deref(), self.force)?;
        let (index, queries) = self.queries.open()?;
        let mut efs = self.ef.clone();
        efs.extend(index.manifest.ef_search);
        let result = score_table(&index, &queries, self.queries.k, &efs)?;
        output::print_result(&result, self.common.json, self.out.as_deref())
    }
}
