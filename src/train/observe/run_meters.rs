//! What looks at the features of a run, opened once whatever the number of its ranks in this process.

use std::sync::Arc;

use super::{LabelFree, OnlineKnn};
use crate::Result;
use crate::data::{Preprocess, Source};
use crate::train::config::TrainConfig;

/// The meters on features that a run has been asked for.
pub struct RunMeters {
    /// Of labelled images.
    pub knn: Option<OnlineKnn>,
    /// Of the images that the run learns from.
    pub label_free: Option<LabelFree>,
}

impl RunMeters {
    /// Opens those of `config`, of whose images `source` is and which `preprocess` prepares.
    ///
    /// # Errors
    /// As [`OnlineKnn::open`] and [`LabelFree::new`].
    pub fn open(config: &TrainConfig, source: &Arc<dyn Source>, preprocess: Preprocess) -> Result<Self> {
        let (monitor, seed) = (&config.monitor, config.seed);
        let decode = || config.data.loader.decode();
        let knn = monitor.knn.clone();
        let knn = knn.map(|knn| OnlineKnn::open(knn, preprocess, decode(), seed));
        let label_free = monitor.label_free.clone().map(|settings| {
            let source = Arc::clone(source);
            LabelFree::new(source, settings, config.crops.clone(), decode(), seed)
        });
        Ok(Self {
            knn: knn.transpose()?,
            label_free: label_free.transpose()?,
        })
    }
}
