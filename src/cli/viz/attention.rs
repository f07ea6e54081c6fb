//! `macula viz attention`.

use clap::Args;
use serde_json::json;

use super::super::args::{examples, reworded};
use super::{Inside, InsideArgs, PICTURE, Shown};
use crate::Result;
use crate::data::Source;
use crate::viz::{self, AttentionOptions};

/// Arguments of `macula viz attention`.
#[derive(Debug, Args)]
#[command(next_help_heading = PICTURE, mut_args(reworded(&[("model", "Checkpoint")])), after_help = examples(&[
    "macula viz attention --model vits14.pth --data photos/ --rows 3,14 --out attention.png",
    "macula viz attention --model runs/first --data sample:test --out attention.png",
]))]
pub(super) struct AttentionArgs {
    /// Block, from 0 [default: the last]
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    #[command(flatten)]
    inside: InsideArgs,
}

impl Inside for AttentionArgs {
    fn inside(&self) -> &InsideArgs {
        &self.inside
    }

    fn draw(&self, source: &dyn Source) -> Result<Shown> {
        let inside = &self.inside;
        let heads = viz::attention(
            &inside.model,
            source,
            &inside.choice(),
            &inside.model_options(),
            &inside.decode.options(),
            &AttentionOptions {
                block: self.block,
                side: inside.tiles.tile,
            },
            &inside.out.out,
        )?;
        Ok(Shown {
            facts: json!({ "heads": heads }),
            line: format!("{heads} heads"),
        })
    }
}
