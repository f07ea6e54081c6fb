//! `macula viz map`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use macula_eval::linalg::tsne::TsneConfig;
use serde_json::json;

use super::super::args::{FeatureColumnArgs, INPUT, NewArgs, SeedArgs, ThreadArgs, examples, reworded};
use super::{PICTURE, Picture, Shown};
use crate::Result;
use crate::viz::{self, MapMethod, MapOptions};

/// [`MapMethod`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    Pca,
    Tsne,
}

/// Arguments of `macula viz map`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = PICTURE,
    mut_args(reworded(&[("out", "PNG to write")])),
    after_help = examples(&[
        "macula viz map --features features/test --out map.png",
        "macula viz map --features features/test --normalize --n 2000 --out map.png",
        "macula viz map --features features/test --method tsne --perplexity 50 --out map.png",
    ])
)]
pub(super) struct MapArgs {
    /// Rows drawn at most; a t-SNE, of 5000 at most, takes time with the square of them [default: 5000, of a t-SNE 2000]
    #[arg(long, value_name = "N")]
    n: Option<usize>,
    /// The two widest principal axes of all rows, or a t-SNE of the rows drawn
    #[arg(long, value_enum, default_value_t = Method::Pca)]
    method: Method,
    /// About how many neighbours a row has in a t-SNE
    #[arg(long, value_name = "P", default_value_t = TsneConfig::default().perplexity)]
    perplexity: f64,
    /// Iterations of a t-SNE
    #[arg(long, value_name = "N", default_value_t = TsneConfig::default().iterations)]
    iterations: usize,
    /// Bring rows to unit length first, as for cosine similarity
    #[arg(long, alias = "normalise")]
    normalize: bool,
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

impl Picture for MapArgs {
    fn out(&self) -> &NewArgs {
        &self.out
    }

    fn threads(&self) -> &ThreadArgs {
        &self.threads
    }

    fn draw(&self) -> Result<Shown> {
        let explained = viz::map(
            &self.features,
            &MapOptions {
                column: self.column.column.clone(),
                count: self.n.unwrap_or(match self.method {
                    Method::Pca => 5000,
                    Method::Tsne => 2000,
                }),
                method: match self.method {
                    Method::Pca => MapMethod::Pca,
                    Method::Tsne => MapMethod::Tsne {
                        perplexity: self.perplexity,
                        iterations: self.iterations,
                    },
                },
                normalise: self.normalize,
                seed: self.random.seed,
            },
            &self.out.out,
        )?;
        let shares: Vec<String> = explained
            .iter()
            .map(|share| format!("{:.1} %", 100.0 * share))
            .collect();
        Ok(Shown {
            facts: json!({ "explained": explained }),
            line: match self.method {
                Method::Pca => format!("axes of {} of the variance", shares.join(" and ")),
                Method::Tsne => format!("t-SNE of perplexity {}", self.perplexity),
            },
        })
    }
}
