//! `macula eval cluster`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use macula_eval::protocols::cluster::{self, ClusterConfig, ClusterMethod};
use macula_eval::{LabelSet, Share};

use super::super::args::{INPUT, examples};
use super::PROTOCOL;
use super::folders::FolderArgs;
use crate::Result;
use crate::cluster::{self as job, OfRanks, OneRank};
use crate::evaluate::labels::tell_alike;
use crate::evaluate::{encode, read_labelled_share};
use crate::extract::FeatureFolder;

/// [`ClusterMethod`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    Kmeans,
    Gmm,
    Dbscan,
}

impl From<Method> for ClusterMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Kmeans => Self::Kmeans,
            Method::Gmm => Self::Gmm,
            Method::Dbscan => Self::Dbscan,
        }
    }
}

/// Arguments of `macula eval cluster`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval cluster --features features/photos",
    "macula eval cluster --features features/photos --k 10,100 --out results/cluster",
    "macula eval cluster --features features/photos --method dbscan --min-points 5",
]))]
pub(super) struct ClusterArgs {
    /// How rows are parted: k-means, a mixture of Gaussians, or by density
    #[arg(long, value_enum, default_value_t = Method::Kmeans)]
    method: Method,
    /// Numbers of clusters; dbscan finds its own [default: the number of classes]
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Most iterations of kmeans or gmm
    #[arg(long, value_name = "N", default_value_t = ClusterConfig::default().iterations)]
    iterations: usize,
    /// Principal components that gmm and dbscan work on
    #[arg(long, value_name = "N", default_value_t = ClusterConfig::default().components)]
    components: usize,
    /// Rows that gmm and dbscan work on, drawn at random where there are more: both run on one thread
    #[arg(long, value_name = "N", default_value_t = ClusterConfig::default().max_rows)]
    max_rows: usize,
    /// Radius of dbscan, in deviations of a component [default: the median distance to the neighbour that completes --min-points]
    #[arg(long, value_name = "R")]
    radius: Option<f64>,
    /// Rows within the radius, itself among them, that make a row the core of a cluster of dbscan
    #[arg(long, value_name = "N", default_value_t = ClusterConfig::default().min_points)]
    min_points: usize,
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
            method: self.method.into(),
            ks: self.k.clone(),
            iterations: self.iterations,
            components: self.components,
            max_rows: self.max_rows,
            radius: self.radius,
            min_points: self.min_points,
            seed: self.common.random.derived("cluster"),
            bootstrap_resamples: self.common.random.bootstrap_resamples,
            ..ClusterConfig::default()
        };
        config.validate()?;
        let mut ranks = job::join()?;
        if config.method != ClusterMethod::Kmeans {
            if ranks.rank() > 0 {
                // The other methods are the first process's alone.
                return Ok(());
            }
            ranks = Arc::new(OneRank);
        }
        let _lock = self.common.start_as(ranks.rank())?;
        let folder = FeatureFolder::open(&self.features)?;
        let column = self.common.column(&folder);
        let team = OfRanks(ranks.as_ref());
        let rows = read_labelled_share(&folder, &column, &team)?;
        let classes = LabelSet::from_labels(rows.labels.iter().map(String::as_str));
        tell_alike(&self.features.display().to_string(), &classes);
        let labels = encode(&classes, &rows.labels)?;
        let share = Share::of_own(rows.matrix.view(), labels.len(), &team)?;
        let result = cluster::evaluate_share(&share, &labels, classes.len(), &config)?;
        job::tell_memory(ranks.as_ref())?;
        if ranks.rank() > 0 {
            return Ok(());
        }
        self.common
            .finish(result.to_eval_result()?, &column, &[("features", &folder)])
    }
}
