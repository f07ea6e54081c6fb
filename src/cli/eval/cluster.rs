//! `macula eval cluster`.

use std::path::PathBuf;

use clap::Args;
use macula_eval::LabelSet;
use macula_eval::protocols::cluster::{self, ClusterConfig};

use super::folders::FolderArgs;
use crate::evaluate::labels::tell_alike;
use crate::evaluate::{encode, read_labelled};
use crate::extract::FeatureFolder;
use crate::{Result, rng};

/// Arguments of `macula eval cluster`.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// Feature folder with labels
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// Numbers of clusters; by default the number of classes
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Most Lloyd iterations
    #[arg(long, default_value_t = 50)]
    iterations: usize,
    /// Bootstrap resamples of the accuracy's 95 % interval
    #[arg(long, default_value_t = 1000)]
    bootstrap_resamples: usize,
    #[command(flatten)]
    common: FolderArgs,
}

impl ClusterArgs {
    /// Clusters and prints the table.
    pub fn run(&self) -> Result<()> {
        let config = ClusterConfig {
            ks: self.k.clone(),
            iterations: self.iterations,
            seed: rng::derived_seed(self.common.result.seed, "cluster"),
            bootstrap_resamples: self.bootstrap_resamples,
            ..ClusterConfig::default()
        };
        config.validate()?;
        let _lock = self.common.result.start()?;
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
