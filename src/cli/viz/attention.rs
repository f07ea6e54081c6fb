//! `macula viz attention`.

use clap::Args;
use serde_json::json;

use super::super::args::{NewArgs, ThreadArgs, examples, reworded};
use super::{InsideArgs, PICTURE, Picture, Shown};
use crate::viz::{self, AttentionOptions};
use crate::{Result, data};

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

impl Picture for AttentionArgs {
    fn out(&self) -> &NewArgs {
        &self.inside.out
    }

    fn threads(&self) -> &ThreadArgs {
        &self.inside.run.threads
    }

    fn check(&self) -> Result<()> {
        self.inside.tiles.check()
    }

    fn draw(&self) -> Result<Shown> {
        let inside = &self.inside;
        let source = data::open(&inside.images.source()?)?;
        let heads = viz::attention(
            &inside.model,
            source.as_ref(),
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
