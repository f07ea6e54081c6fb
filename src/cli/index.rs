//! `macula index`: build, query and score nearest-neighbour indexes over feature folders.

#[cfg(feature = "push")]
mod push;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use macula_eval::index::{HnswConfig, Scalar};
use serde_json::json;

use super::args::{FeatureColumnArgs, INPUT, NewArgs, ResultArgs, SeedArgs, ThreadArgs, examples, reworded};
use super::output;
use crate::Result;
use crate::extract::FeatureFolder;
use crate::extract::folder::Features;
use crate::extract::read_column;
use crate::index::{self, IndexOptions, Kind, Manifest, OpenIndex, score_table, write_hits};

/// The heading of what an index is and how it is searched.
const INDEX: &str = "Index";

/// Arguments of `macula index`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula index build --features features/photos --out photos.index",
    "macula index query --index photos.index --features features/new --k 10 --out hits.parquet",
]))]
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
    /// Send the rows of a feature folder to a vector store
    #[cfg(feature = "push")]
    Push(push::PushArgs),
}

#[derive(Debug, Args)]
#[command(
    next_help_heading = INDEX,
    mut_args(reworded(&[("out", "Index folder to write")])),
    after_help = examples(&[
        "macula index build --features features/photos --out photos.index",
        "macula index build --features features/photos --kind hnsw --recall 0.99 --out photos.index",
    ])
)]
struct BuildArgs {
    /// Compare with every row, or walk a graph
    #[arg(long, value_enum, default_value = "exact")]
    kind: Kind,
    /// Links of a row in the graph, 2 to 255
    #[arg(long, value_name = "N", default_value_t = HnswConfig::default().m)]
    m: usize,
    /// Width of the walk that finds a new row's links
    #[arg(long, value_name = "N", default_value_t = HnswConfig::default().ef_construction)]
    ef_construction: usize,
    /// Choose the width of searches that finds this share of the 10 nearest, measured on held-out rows [default: not chosen]
    #[arg(long, value_name = "FRACTION")]
    recall: Option<f64>,
    /// Numbers that a usearch file stores: f32, f16, i8
    #[arg(long, value_name = "TYPE", default_value_t = Scalar::F32)]
    scalar: Scalar,
    /// Feature folder
    #[arg(long, value_name = "FEATURES", help_heading = INPUT)]
    features: PathBuf,
    #[command(flatten)]
    column: FeatureColumnArgs,
    #[command(flatten)]
    out: NewArgs,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

#[derive(Debug, Args)]
#[command(
    next_help_heading = INDEX,
    mut_args(reworded(&[("out", "Parquet file for query, query_path, rank, row, path, similarity, label")])),
    after_help = examples(&[
        "macula index query --index photos.index --features features/new --k 10 --out hits.parquet",
    ])
)]
struct QueryArgs {
    /// Width of the walk [default: the one the index was built for]
    #[arg(long, value_name = "N")]
    ef: Option<usize>,
    #[command(flatten)]
    queries: QueriesArgs,
    #[command(flatten)]
    out: NewArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = INDEX, after_help = examples(&[
    "macula index score --index photos.index --features features/new --k 10",
    "macula index score --index photos.index --features features/new --ef 32,64,128 --out scores",
]))]
struct ScoreArgs {
    /// Widths of the walk to measure
    #[arg(
        long,
        value_name = "NS",
        value_delimiter = ',',
        default_value = "16,32,64,128,256,512"
    )]
    ef: Vec<usize>,
    #[command(flatten)]
    queries: QueriesArgs,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

/// Which index is asked, and for what.
#[derive(Debug, Args)]
#[command(
    next_help_heading = INDEX,
    mut_args(reworded(&[("column", "Column of the queries [default: the index's]")]))
)]
struct QueriesArgs {
    /// Index folder
    #[arg(long, value_name = "INDEX")]
    index: PathBuf,
    /// Neighbours
    #[arg(long, value_name = "N", default_value_t = 10)]
    k: usize,
    /// Feature folder of the queries
    #[arg(long, value_name = "FEATURES", help_heading = INPUT)]
    features: PathBuf,
    #[command(flatten)]
    column: FeatureColumnArgs,
}

impl IndexArgs {
    /// Runs the action.
    pub fn run(&self) -> Result<()> {
        match &self.action {
            Action::Build(args) => args.run(),
            Action::Query(args) => args.run(),
            Action::Score(args) => args.run(),
            #[cfg(feature = "push")]
            Action::Push(args) => args.run(),
        }
    }
}

impl BuildArgs {
    fn run(&self) -> Result<()> {
        self.threads.start()?;
        let options = IndexOptions {
            kind: self.kind,
            column: self.column.column.clone(),
            hnsw: HnswConfig {
                m: self.m,
                ef_construction: self.ef_construction,
            },
            scalar: self.scalar,
            recall: self.recall,
            seed: self.random.seed,
            force: self.out.force,
        };
        let bar = bar_of_rows(0);
        let built = index::build(&self.features, &self.out.out, &options, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let manifest = built?;
        if self.out.print.json {
            return output::print_json(&manifest);
        }
        output::print(&describe(&manifest, &self.out.out))
    }
}

fn bar_of_rows(count: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} rows, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count).with_style(style)
}

fn describe(manifest: &Manifest, out: &Path) -> String {
    let kind = match manifest.kind {
        Kind::Exact => "exact".to_owned(),
        Kind::Hnsw | Kind::Usearch => {
            let width = manifest
                .ef_search
                .map_or(String::new(), |ef| format!(", searches at ef {ef}"));
            let recall = manifest.measured.map_or(String::new(), |measured| {
                format!(
                    " (recall@{} {:.4} on {} held-out rows)",
                    measured.k, measured.reached, measured.n_queries
                )
            });
            format!("{}{width}{recall}", manifest.kind.name())
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
        let column = self.column.column.as_deref().unwrap_or(&manifest.column);
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
        self.threads.start()?;
        self.out.refuse_existing()?;
        let (index, queries) = self.queries.open()?;
        let k = self.queries.k;
        let ef = index.ef(self.ef, k);
        let hits = index.index.search(queries.matrix.view(), k, ef)?;
        write_hits(&self.out.out, &index, &queries, &hits)?;
        let found: usize = hits.iter().map(Vec::len).sum();
        if found < k * hits.len() {
            let missing = k * hits.len() - found;
            tracing::warn!(
                "{missing} of {} neighbours were not reached; raise --ef",
                k * hits.len()
            );
        }
        if self.out.print.json {
            return output::print_json(&json!({
                "out": self.out.out, "n_queries": hits.len(), "k": k, "n_hits": found,
                "ef": (index.manifest.kind != Kind::Exact).then_some(ef),
            }));
        }
        output::print(&format!(
            "{}: {found} hits of {} queries",
            self.out.out.display(),
            hits.len()
        ))
    }
}

impl ScoreArgs {
    fn run(&self) -> Result<()> {
        self.threads.start()?;
        let _lock = self.result.take()?;
        let (index, queries) = self.queries.open()?;
        let mut efs = self.ef.clone();
        efs.extend(index.manifest.ef_search);
        let result = score_table(&index, &queries, self.queries.k, &efs)?;
        self.result.finish(&result)
    }
}
