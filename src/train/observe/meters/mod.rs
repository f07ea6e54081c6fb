//! Meters of collapse: numbers that say whether features still tell images apart and whether the teacher's targets still
//! say anything. Plain functions of row-major f32 matrices; sums are in f64. The judge that reads them is `collapse`.

mod collapse;
mod features;
mod targets;
mod views;

pub use collapse::{Collapse, Readings, TargetReadings};
pub use features::{RANK_ROWS, effective_rank, feature_std, spread_rows};
pub use targets::{entropy, prototype_usage};
pub use views::{lidar, spectrum_decay};

/// What each meter means, for `--help`.
pub const METERS_HELP: &str = "\
Meters of collapse, logged while training:
  feature_std             spread of the L2-normalised features over images, times sqrt(D): 1 when they point in all
                          directions alike, 0 when every image has the same features
  effective_rank          how many directions the features use (RankMe), from 1 to the smaller of images and D; higher is
                          better, a fall over a run is a warning
  lidar                   how many directions tell images apart better than crops of one image differ (LiDAR), with --select:
                          higher is better; of images without labels
  spectrum_decay          how fast the eigenvalues of the features' covariance fall, as the power of the rank, with --select: near 1
                          is healthy, far above few directions hold nearly all, near 0 features are noise
  teacher_entropy         mean entropy of the teacher's targets in nats; teacher_entropy_share is its share of ln K: near
                          1 the targets say nothing, near 0 each is one prototype
  prototype_usage         how evenly the batch uses the K prototypes: 1 when all alike, 1/K when all images share one
  prototype_argmax_share  share of the K prototypes that are some image's first choice; at most images/K
  knn_top1                accuracy of k-NN on labelled images, with its 95 % interval in knn_low and knn_high: the one
                          that says whether the features get better; knn_top1_start with --from is that of the start";
