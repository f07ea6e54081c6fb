//! `macula eval`, one file a protocol. The classifiers `knn`, `linear-probe`, `logreg` and `svm` share what `pair` and `kept` hold,
//! `retrieval` and `cluster` what `folders` holds, `zero-shot` is a classifier without train rows, `segment` and `depth` what `dense` holds. `robustness` and `compare` stand
//! alone; `suite` runs the others.

mod cluster;
mod compare;
mod dense;
mod depth;
mod folders;
mod kept;
mod knn;
mod linear_probe;
mod logreg;
mod pair;
mod retrieval;
mod robustness;
mod segment;
mod suite;
mod svm;
mod zero_shot;

use clap::{Args, Subcommand};

use super::args::examples;
use super::output;
use crate::Result;

/// The heading of a protocol's own settings.
const PROTOCOL: &str = "Protocol";

/// `values` as a flag takes them.
fn listed(values: &[f64]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:e}")).collect();
    values.join(",")
}

/// Arguments of `macula eval`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula eval knn --train features/train --test features/test",
    "macula eval knn --model pixels --train-data sample:train --test-data sample:test",
    "macula eval logreg --c 1 --train features/train --test features/test --out results/logreg",
]))]
pub struct EvalArgs {
    #[command(subcommand)]
    protocol: Protocol,
}

#[derive(Debug, Subcommand)]
enum Protocol {
    /// Weighted k-nearest neighbours (DINOv2 eval/knn.py)
    Knn(Box<knn::KnnArgs>),
    /// Linear heads by SGD over a grid of learning rates, blocks and pooling (DINOv2 eval/linear.py)
    LinearProbe(Box<linear_probe::LinearProbeArgs>),
    /// L2-regularised multinomial logistic regression (DINOv2 eval/log_regression.py)
    Logreg(Box<logreg::LogregArgs>),
    /// Retrieval: mAP, R@k, mP@k, GAP; revisited Oxford/Paris with --ground-truth; copy detection; images and texts with --text
    Retrieval(retrieval::RetrievalArgs),
    /// Linear support vector machines on few rows a class: mean average precision, accuracy (vissl's low-shot protocol)
    Svm(Box<svm::SvmArgs>),
    /// Zero-shot classification by vectors of texts, as CLIP has it
    ZeroShot(Box<zero_shot::ZeroShotArgs>),
    /// k-means, a mixture of Gaussians or DBSCAN on the features: NMI, adjusted Rand index, accuracy
    Cluster(cluster::ClusterArgs),
    /// Linear segmentation of patch tokens: mean intersection over union, by class and in the mean
    Segment(Box<segment::SegmentArgs>),
    /// Linear depth from patch tokens: RMSE, absolute relative error and delta1 beside the mean depth
    Depth(Box<depth::DepthArgs>),
    /// Errors under the 15 corruptions of ImageNet-C at five severities, and mCE against another model's
    Robustness(Box<robustness::RobustnessArgs>),
    /// Models by data sets by tasks, as a file says, and one report of all; goes on where it was stopped
    Suite(suite::SuiteArgs),
    /// Two results on the same test rows: paired bootstrap and McNemar's test
    Compare(compare::CompareArgs),
}

impl EvalArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        match &self.protocol {
            Protocol::Knn(args) => args.run(),
            Protocol::LinearProbe(args) => args.run(),
            Protocol::Logreg(args) => args.run(),
            Protocol::Svm(args) => args.run(),
            Protocol::ZeroShot(args) => args.run(),
            Protocol::Retrieval(args) => args.run(),
            Protocol::Cluster(args) => args.run(),
            Protocol::Segment(args) => args.run(),
            Protocol::Depth(args) => args.run(),
            Protocol::Robustness(args) => args.run(),
            Protocol::Suite(args) => args.run(),
            Protocol::Compare(args) => args.run(),
        }
    }
}
