//! `macula eval cluster`.

use std::path::PathBuf;

use clap::Args;
use macula_eval::LabelSet;
use macula_eval::protocols::cluster::{self, ClusterConfig};

use super::super::args::{INPUT, examples};
use super::PROTOCOL;
use super::folders::FolderArgs;
use crate::Result;
use crate::evaluate::labels::tell_alike;
use crate::evaluate::{encode, read_labelled};
use crate::extract::FeatureFolder;

/// Arguments of `macula eval cluster`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval cluster --features features/photos",
    "macula eval cluster --features features/photos --k 10,100 --out results/cluster",
]))]
pub(super) struct ClusterArgs {
    /// Numbers of clusters [default: the number of classes]
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Most Lloyd iterations
    #[arg(long, value_name = "N", default_value_t = ClusterConfig::default().iterations)]
    iterations: usize,
    /// Feature folder with labels
    #[arg(long, value_name = "FEATURES", help_heading = INPUT)]
    features: PathBuf,
    #[command(flatten)]
    common: FolderArgs,
}

impl ClusterArgs {
    /// Clusters and prints the table.
    pub fn run(&self) -> Result<()> {
        let config = ClusterConfig {
            ks: self.k.clone(),
            iterations: self.iterations,
            seed: self.common.random.derived("cluster"),
            bootstrap_resamples: self.common.random.bootstrap_resamples,
            ..ClusterConfig::default()
        };
        config.validate()?;
        let _lock = self.common.start()?;
        let folder = FeatureFolder::open(&self.features)?;
        let column = self.common.column(&folder);
        let rows = read_labelled(&folder, &column)?;
        let classes = LabelSet::from_labels(rows.labels.iter().map(String::as_str));
        tell_alike(&self.features.display().to_string(), &classes);
        let labels = encode(&classes, &rows.labels)?;
        let result = cluster::evaluate(rows.matrix.view(), &labels, classes.len(), &config)?;
        self.common
            .finish(result.to_eval_result()?, &column, &[("features", &folder)])
    }
}
