//! The table of `eval segment`.

use polars::prelude::{Column, DataFrame};
use serde_json::{Value, json};

use super::{SegmentConfig, Segmenter};
use crate::metrics::iou::PixelCounts;
use crate::stats::bootstrap::{BootstrapConfig, Interval, bootstrap_counts};
use crate::{EvalResult, Result};

/// Scores of a segmentation on test images, fractions from 0 to 1; intervals draw images again.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentResult {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Pixels of all test images.
    pub counts: PixelCounts,
    /// 95 % interval of each class's intersection over union.
    pub class_intervals: Vec<Interval>,
    /// 95 % interval of the mean.
    pub mean_interval: Interval,
    /// 95 % interval of the pixel accuracy.
    pub accuracy_interval: Interval,
    /// What it was made with.
    pub settings: Value,
    /// Training images.
    pub n_train: usize,
    /// Test images.
    pub n_test: usize,
}

impl SegmentResult {
    /// Scores the test images' pixels.
    pub fn new(
        segmenter: &Segmenter,
        classes: &[String],
        images: &[PixelCounts],
        config: &SegmentConfig,
    ) -> Self {
        let mut all = PixelCounts::new(classes.len());
        images.iter().for_each(|counts| all += counts);
        let bootstrap = BootstrapConfig {
            resamples: config.bootstrap_resamples,
            seed: config.seed,
            ..BootstrapConfig::default()
        };
        // Sums over the images drawn, then the ratio.
        let interval = |statistic: &(dyn Fn(&PixelCounts) -> f64 + Sync)| {
            bootstrap_counts(images.len(), &bootstrap, |times| {
                let mut drawn = PixelCounts::new(classes.len());
                for (counts, &times) in images.iter().zip(times).filter(|(_, times)| **times > 0) {
                    drawn.add_times(counts, u64::from(times));
                }
                statistic(&drawn)
            })
        };
        let of_class = |class: usize| {
            bootstrap_counts(images.len(), &bootstrap, |times| {
                let sum = |of: fn(&PixelCounts) -> &[u64]| -> u64 {
                    let pairs = images.iter().zip(times);
                    pairs
                        .map(|(counts, &times)| of(counts)[class] * u64::from(times))
                        .sum()
                };
                let drawn = PixelCounts {
                    agreed: vec![sum(|counts| &counts.agreed)],
                    labelled: vec![sum(|counts| &counts.labelled)],
                    predicted: vec![sum(|counts| &counts.predicted)],
                };
                drawn.iou_of(0).unwrap_or(f64::NAN)
            })
        };
        Self {
            class_intervals: (0..classes.len()).map(of_class).collect(),
            mean_interval: interval(&PixelCounts::mean_iou),
            accuracy_interval: interval(&PixelCounts::pixel_accuracy),
            classes: classes.to_vec(),
            counts: all,
            settings: segmenter.settings(config),
            n_train: segmenter.images,
            n_test: images.len(),
        }
    }

    /// The result as a table: `class`, `iou`, `iou_low`, `iou_high`, `accuracy`, `n_pixels`, `pixel_accuracy`. The last row is
    /// `mean`: means over the classes, all labelled pixels, and the share of them that is right.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let counts = &self.counts;
        let with = |mut of_classes: Vec<Option<f64>>, mean: f64| {
            of_classes.push(Some(mean));
            of_classes
        };
        let ends = |end: fn(&Interval) -> f64| {
            let ends: Vec<Option<f64>> = self.class_intervals.iter().map(|of| Some(end(of))).collect();
            with(ends, end(&self.mean_interval))
        };
        let mut names = self.classes.clone();
        names.push("mean".to_owned());
        let mut pixels = counts.labelled.clone();
        pixels.push(counts.labelled.iter().sum());
        let n = names.len();
        let columns = vec![
            Column::new("class".into(), names),
            Column::new("iou".into(), with(counts.iou(), counts.mean_iou())),
            Column::new("iou_low".into(), ends(|interval| interval.low)),
            Column::new("iou_high".into(), ends(|interval| interval.high)),
            Column::new("accuracy".into(), with(counts.accuracy(), counts.mean_accuracy())),
            Column::new("n_pixels".into(), pixels),
            Column::new(
                "pixel_accuracy".into(),
                with(vec![None; n - 1], counts.pixel_accuracy()),
            ),
        ];
        let mut settings = self.settings.clone();
        settings["pixel_accuracy_interval"] =
            json!([self.accuracy_interval.low, self.accuracy_interval.high]);
        EvalResult::new(
            "segment",
            settings,
            self.n_train,
            self.n_test,
            DataFrame::new(n, columns)?,
        )
    }
}
