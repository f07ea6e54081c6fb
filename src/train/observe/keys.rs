//! The names of what a run logs, shared by `metrics.jsonl`, TensorBoard and the curves.

/// The step, from 1: a whole number, in every line of `metrics.jsonl`.
pub const STEP: &str = "step";
/// The loss that is minimised; its parts are the keys that begin with [`LOSS_PART`].
pub const LOSS: &str = "loss";
/// How the keys of the loss's parts begin, as in `loss_dino`.
pub const LOSS_PART: &str = "loss_";
/// Learning rate of the step, before any factor of a layer.
pub const LR: &str = "lr";
/// Weight decay of the step.
pub const WEIGHT_DECAY: &str = "weight_decay";
/// Norm of the gradient before clipping.
pub const GRAD_NORM: &str = "grad_norm";
/// Images seen a second.
pub const IMAGES_PER_SECOND: &str = "images_per_second";
/// Minutes by the clock since the start, the sittings of a resumed run added up.
pub const MINUTES: &str = "minutes";
/// [`feature_std`](super::meters::feature_std) of the features, 0 to 1.
pub const FEATURE_STD: &str = "feature_std";
/// [`effective_rank`](super::meters::effective_rank) of the features, 1 to their width.
pub const EFFECTIVE_RANK: &str = "effective_rank";
/// [`lidar`](super::meters::lidar) of crops of images without labels, 1 to the width of their features.
pub const LIDAR: &str = "lidar";
/// [`spectrum_decay`](super::meters::spectrum_decay) of the same.
pub const SPECTRUM_DECAY: &str = "spectrum_decay";
/// Mean entropy of the teacher's targets, in nats.
pub const TEACHER_ENTROPY: &str = "teacher_entropy";
/// The same as a share of ln K, 0 to 1.
pub const TEACHER_ENTROPY_SHARE: &str = "teacher_entropy_share";
/// Share of the prototypes that the mean target uses, 0 to 1.
pub const PROTOTYPE_USAGE: &str = "prototype_usage";
/// Share of the prototypes that are some target's greatest, 0 to 1.
pub const PROTOTYPE_ARGMAX_SHARE: &str = "prototype_argmax_share";
/// Top-1 accuracy of online k-NN, 0 to 1; in the lines of the steps at which it ran.
pub const KNN_TOP1: &str = "knn_top1";
/// The same of the weights that a run with `--from` began with; in the same lines.
pub const KNN_TOP1_START: &str = "knn_top1_start";
/// Lower end of its 95 % interval.
pub const KNN_LOW: &str = "knn_low";
/// Upper end.
pub const KNN_HIGH: &str = "knn_high";
