//! `macula viz pca`.

use clap::Args;
use serde_json::json;

use super::super::args::examples;
use super::{Inside, InsideArgs, PICTURE, Shown};
use crate::Result;
use crate::data::Source;
use crate::viz::{self, Foreground, PcaOptions};

/// Arguments of `macula viz pca`.
#[derive(Debug, Args)]
#[command(next_help_heading = PICTURE, after_help = examples(&[
    "macula viz pca --model vits14.onnx --data photos/ --n 8 --out pca.png",
    "macula viz pca --model vits14.pth --data photos/ --resize 448 --crop 448 --out pca.png",
]))]
pub(super) struct PcaArgs {
    /// Which side of the first component is foreground
    #[arg(long, value_enum, default_value = "auto")]
    foreground: Foreground,
    /// Where the first component is cut, 0 to 1 between its ends [default: where Otsu's rule says]
    #[arg(long, value_name = "SHARE")]
    threshold: Option<f32>,
    /// Pairs of image and components side by side
    #[arg(long, value_name = "N", default_value_t = 4)]
    columns: usize,
    #[command(flatten)]
    inside: InsideArgs,
}

impl Inside for PcaArgs {
    fn inside(&self) -> &InsideArgs {
        &self.inside
    }

    fn draw(&self, source: &dyn Source) -> Result<Shown> {
        let inside = &self.inside;
        let share = viz::pca(
            &inside.model,
            source,
            &inside.choice(),
            &inside.model_options(),
            &inside.decode.options(),
            &PcaOptions {
                foreground: self.foreground,
                threshold: self.threshold,
                columns: self.columns,
                side: inside.tiles.tile,
            },
            &inside.out.out,
        )?;
        Ok(Shown {
            facts: json!({ "foreground": share }),
            line: format!("{:.0} % of the patches are foreground", 100.0 * share),
        })
    }
}
