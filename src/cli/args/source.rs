//! Where images and features come from.

use clap::Args;

use super::INPUT;
use crate::data::Columns;
use crate::extract::{FeatureFolder, default_column};
use crate::{Error, Result};

/// Which columns of a table are meant, where `--data` and its like name one; kept with the source, as `list.csv#label=NAME`.
#[derive(Debug, Args, Default, Clone)]
#[command(next_help_heading = INPUT)]
pub struct ColumnArgs {
    /// Column of the images' paths in a CSV or Parquet file [default: path, image, or another usual name]
    #[arg(long, value_name = "NAME")]
    path_column: Option<String>,
    /// Column of the labels in a CSV or Parquet file, none for no labels [default: label, or another usual name]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column of the images themselves in Parquet files [default: image, or another usual name]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
}

/// One source of images.
#[derive(Debug, Args)]
#[command(next_help_heading = INPUT)]
pub struct ImagesArgs {
    /// Images: a folder, list.csv, list.parquet, shards/{000..012}.tar, data/*.parquet with a column of images,
    /// video:clip.mp4#fps=2, idx:FOLDER#train, sample:train, or - for paths on stdin
    #[arg(long, value_name = "SRC")]
    data: String,
    #[command(flatten)]
    columns: ColumnArgs,
}

/// Images to learn from and images to be scored on.
#[derive(Debug, Args)]
#[command(next_help_heading = INPUT)]
pub struct TrainTestArgs {
    /// Training images, with labels
    #[arg(long, value_name = "SRC")]
    train_data: String,
    /// Test images, with labels
    #[arg(long, value_name = "SRC")]
    test_data: String,
    #[command(flatten)]
    columns: ColumnArgs,
}

/// Which column of a feature folder is meant.
#[derive(Debug, Args)]
#[command(next_help_heading = INPUT)]
pub struct FeatureColumnArgs {
    /// Column of features [default: cls, or else the first]
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
}

impl ColumnArgs {
    fn columns(&self) -> Columns {
        Columns {
            path: self.path_column.clone(),
            label: self.label_column.clone(),
            image: self.image_column.clone(),
        }
    }

    /// The source `spec` with the columns that the flags name.
    pub fn apply_to(&self, spec: &str) -> Result<String> {
        self.columns().over(spec)
    }

    /// Refuses the flags where no source is given that they could speak of.
    pub fn need(&self, source: &str) -> Result<()> {
        if self.columns().is_empty() {
            return Ok(());
        }
        let reason = format!("expected {source}, whose columns they name, found none");
        Err(Error::input(
            "--path-column, --label-column and --image-column",
            reason,
        ))
    }

    /// Two sources, of which those that are tables get the columns that the flags name.
    pub fn apply_to_both(&self, one: &str, other: &str) -> Result<[String; 2]> {
        self.columns().over_tables([one, other])
    }
}

impl ImagesArgs {
    /// The source with the columns that the flags name.
    pub fn source(&self) -> Result<String> {
        self.columns.apply_to(&self.data)
    }

    /// The source as it was typed.
    pub fn named(&self) -> &str {
        &self.data
    }
}

impl TrainTestArgs {
    /// Both sources, those that are tables with the columns that the flags name: `[train, test]`.
    pub fn sources(&self) -> Result<[String; 2]> {
        self.columns.apply_to_both(&self.train_data, &self.test_data)
    }
}

impl FeatureColumnArgs {
    /// The column that was named, or the folder's default.
    pub fn name_in(&self, folder: &FeatureFolder) -> String {
        self.column.clone().unwrap_or_else(|| default_column(folder))
    }
}
