//! From images to features on disk: models that give features, the pipeline that feeds them, and the feature folder
//! that is written and read back.

pub(crate) mod batch;
pub(crate) mod column;
pub mod folder;
pub mod model;
pub mod pipeline;
pub(crate) mod sink;

pub use batch::BatchSize;
pub use column::{cls_blocks, cls_of, default_column, read_column, read_names, with_features};
pub use folder::{FeatureFolder, Layout, Meta, OutputSpec};
pub use model::FeatureModel;
pub use pipeline::{ErrorPolicy, ExtractOptions, ExtractReport, Shard, StageTimes, extract, extract_matrix};
pub use sink::{FeatureSink, PartRows};
