//! `macula viz neighbours`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::args::{
    ColumnArgs, DecodeArgs, FeatureColumnArgs, INPUT, NewArgs, SeedArgs, ThreadArgs, examples, reworded,
};
use super::{PICTURE, Picture, Shown, TilesArgs};
use crate::Result;
use crate::viz::neighbours::Pictured;
use crate::viz::{self, NeighboursOptions};

/// Arguments of `macula viz neighbours`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = PICTURE,
    mut_args(reworded(&[("out", "PNG to write")])),
    after_help = examples(&[
        "macula viz neighbours --features features/test --data photos/test --out neighbours.png",
        "macula viz neighbours --features base --data photos/ --query q --query-data new/ --out n.png",
    ])
)]
pub(super) struct NeighboursArgs {
    /// Neighbours of each image
    #[arg(long, value_name = "N", default_value_t = 8)]
    k: usize,
    #[command(flatten)]
    tiles: TilesArgs,
    /// Feature folder that is searched
    #[arg(long, value_name = "FEATURES", help_heading = INPUT)]
    features: PathBuf,
    /// The images it was made from
    #[arg(long, value_name = "SRC", help_heading = INPUT)]
    data: String,
    /// Feature folder that is searched for [default: the same, each row without itself]
    #[arg(long, value_name = "FEATURES", requires = "query_data", help_heading = INPUT)]
    query: Option<PathBuf>,
    /// The images --query was made from
    #[arg(long, value_name = "SRC", requires = "query", help_heading = INPUT)]
    query_data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    column: FeatureColumnArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    out: NewArgs,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl Picture for NeighboursArgs {
    fn out(&self) -> &NewArgs {
        &self.out
    }

    fn threads(&self) -> &ThreadArgs {
        &self.threads
    }

    fn check(&self) -> Result<()> {
        self.tiles.check()
    }

    fn draw(&self) -> Result<Shown> {
        let (data, query_data) = match &self.query_data {
            Some(query_data) => {
                let [data, query_data] = self.columns.apply_to_both(&self.data, query_data)?;
                (data, Some(query_data))
            }
            None => (self.columns.apply_to(&self.data)?, None),
        };
        let queries = self.query.clone().zip(query_data);
        let found = viz::neighbours(
            &self.tiles.choice(&self.random),
            &self.decode.options(),
            &NeighboursOptions {
                database: Pictured {
                    features: self.features.clone(),
                    data,
                },
                queries: queries.map(|(features, data)| Pictured { features, data }),
                column: self.column.column.clone(),
                k: self.k,
                side: self.tiles.tile,
            },
            &self.out.out,
        )?;
        Ok(Shown {
            facts: json!({ "right": found.right, "labelled": found.labelled }),
            line: format!(
                "{} of {} neighbours have the label of their image",
                found.right, found.labelled
            ),
        })
    }
}
