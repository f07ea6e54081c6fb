//! Seeing a run learn. In this folder belongs what watches training and changes nothing in it: meters of collapse, the
//! metrics file and what is made of it (TensorBoard events, a picture of the curves), k-NN accuracy of the teacher on
//! labelled images, meters of several crops an image where no labels are, and the progress line. The loop decides when each is asked; nothing here knows of losses, optimizers
//! or checkpoints, and features and targets arrive as plain arrays.

pub mod curves;
mod features;
pub mod keys;
pub mod label_free;
pub mod meters;
pub mod metrics_log;
pub mod online_knn;
mod online_knn_config;
pub mod progress;
mod run_meters;
pub mod tensorboard;

pub use label_free::{LabelFree, LabelFreeConfig};
pub use meters::{Collapse, METERS_HELP, Readings};
pub use metrics_log::MetricsLog;
pub use online_knn::OnlineKnn;
pub use online_knn_config::OnlineKnnConfig;
pub use progress::{RunProgress, StepStatus};
pub use run_meters::RunMeters;
pub use tensorboard::EventWriter;
