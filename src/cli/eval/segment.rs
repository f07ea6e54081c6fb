//! `macula eval segment`.

use std::path::Path;

use clap::Args;
use macula_eval::protocols::dense::segment::SegmentConfig;
use macula_eval::protocols::dense::{HeadTraining, Protocol};

use super::super::args::examples;
use super::PROTOCOL;
use super::dense::{DenseArgs, with_training};
use crate::evaluate::dense::{Classes, Masks, segment};
use crate::{Error, Result};

/// Arguments of `macula eval segment`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, mut_args(|arg| with_training(arg, training)), after_help = examples(&[
    "macula eval segment --model m.onnx --train-data train.csv --test-data test.csv --out seg",
    "macula eval segment --model pixels --train-data voc:VOC2012#train --test-data voc:VOC2012#val",
]))]
pub(super) struct SegmentArgs {
    /// Classes: how many, names with commas between them, or a file with one name a line [default: as many as the training
    /// masks have]
    #[arg(long, value_name = "CLASSES")]
    classes: Option<String>,
    /// Label that is left out
    #[arg(long, value_name = "LABEL", default_value_t = 255)]
    ignore: u8,
    /// Leave out label 0 as well and count the others from 1, as ADE20K does
    #[arg(long)]
    reduce_zero_label: bool,
    /// Go on where a class has no training pixels
    #[arg(long)]
    allow_empty_classes: bool,
    #[command(flatten)]
    dense: DenseArgs,
}

/// What the head's training is by default.
fn training(protocol: Protocol) -> HeadTraining {
    SegmentConfig::for_protocol(protocol).training
}

impl SegmentArgs {
    /// Trains, scores and prints the table.
    pub fn run(&self) -> Result<()> {
        let dense = &self.dense;
        let config = SegmentConfig {
            protocol: dense.protocol,
            training: dense.training(training(dense.protocol)),
            allow_empty_classes: self.allow_empty_classes,
            seed: dense.random.derived("segment"),
            bootstrap_resamples: dense.random.bootstrap_resamples,
        };
        config.validate()?;
        let classes = self.classes()?;
        let masks = Masks {
            classes: None,
            ignore: self.ignore,
            reduce_zero: self.reduce_zero_label,
        };
        let (request, _lock) = dense.start()?;
        let (result, images) = segment(&request, masks, &classes, &config)?;
        dense.finish(&result, &images)
    }

    fn classes(&self) -> Result<Classes> {
        let Some(text) = &self.classes else {
            return Ok(Classes::FromMasks);
        };
        let classes = match text.parse() {
            Ok(count) => Classes::Count(count),
            Err(_) if Path::new(text).is_file() => {
                let lines = std::fs::read_to_string(text).map_err(|error| Error::io(text, error))?;
                names(lines.lines())
            }
            Err(_) => names(text.split(',')),
        };
        let count = match &classes {
            Classes::Count(count) => *count,
            Classes::Names(names) => names.len(),
            Classes::FromMasks => return Ok(classes),
        };
        if (2..=255).contains(&count) {
            return Ok(classes);
        }
        Err(Error::input(
            "--classes",
            format!("expected 2 to 255 classes, found {count}"),
        ))
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Classes {
    let names = names.map(str::trim).filter(|name| !name.is_empty());
    Classes::Names(names.map(str::to_owned).collect())
}
