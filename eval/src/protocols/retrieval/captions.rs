//! Images and texts that search for each other, as CLIP and its successors report it on COCO and Flickr30k: from an image any of its
//! texts, from a text its one image, among the first k.

use serde_json::json;

use super::{RetrievalConfig, RetrievalResult, RetrievalRow, settings};
use crate::linalg::normalise::l2_normalise;
use crate::linalg::score_rows;
use crate::metrics::ranks::positive_ranks;
use crate::protocols::checks;
use crate::{Error, MatrixView, Result};

/// What comes before the metric's name for each way.
const WAYS: [&str; 2] = ["image to text", "text to image"];

/// Ranks `texts` for every row of `images` and the reverse; `image_of_text` is the row of each text's image. Metrics: `image to text
/// R@k`, a mean over images that have a text, and `text to image R@k`, a mean over texts. An image without a text is only found by
/// mistake. Intervals resample images, each with its texts, since those are not independent.
///
/// # Errors
/// Settings out of range, sides that do not fit each other, NaN or infinity, or an image that is not there.
pub fn evaluate(
    images: MatrixView<'_>,
    texts: MatrixView<'_>,
    image_of_text: &[u32],
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    config.validate()?;
    checks::rows_with_values("images", images)?;
    checks::rows_with_labels("texts", texts, image_of_text)?;
    checks::same_width("text vectors", texts, "the images", images)?;
    let mut texts_of: Vec<Vec<u32>> = vec![Vec::new(); images.rows()];
    for (text, &image) in image_of_text.iter().enumerate() {
        let Some(texts) = texts_of.get_mut(image as usize) else {
            let reason = format!(
                "expected images below {}, found {image} for text {text}",
                images.rows()
            );
            return Err(Error::data("texts", reason));
        };
        texts.push(text as u32);
    }
    let unit = match config.normalise {
        true => Some((l2_normalise(images)?, l2_normalise(texts)?)),
        false => None,
    };
    let (images, texts) = unit
        .as_ref()
        .map_or((images, texts), |(images, texts)| (images.view(), texts.view()));
    // The place of the first text of each image; none where it has no text.
    let of_images = score_rows(images, texts, |image, scores| {
        Ok(positive_ranks(scores, &texts_of[image], &[]).first().copied())
    })?;
    let of_texts = score_rows(texts, images, |text, scores| {
        Ok(positive_ranks(scores, &image_of_text[text..=text], &[])[0])
    })?;
    let with_texts: Vec<usize> = (0..images.rows())
        .filter(|&image| !texts_of[image].is_empty())
        .collect();
    // The places that each such image's queries found: its own, and those of its texts.
    let places: [Vec<Vec<usize>>; 2] = [
        with_texts
            .iter()
            .map(|&image| of_images[image].into_iter().collect())
            .collect(),
        with_texts
            .iter()
            .map(|&image| {
                texts_of[image]
                    .iter()
                    .map(|&text| of_texts[text as usize])
                    .collect()
            })
            .collect(),
    ];
    let mut rows = Vec::new();
    for (way, places) in WAYS.iter().zip(&places) {
        for &k in &config.ks {
            rows.push(recall(format!("{way} R@{k}"), places, k, config));
        }
    }
    Ok(RetrievalResult {
        rows,
        settings: settings(
            config,
            json!({
                "pairing": "images and texts",
                "recall": "any positive among the first k",
                "intervals": "over images, each with its texts",
                "n_images_without_texts": images.rows() - with_texts.len(),
            }),
        )?,
        n_database: texts.rows(),
        n_queries: images.rows(),
    })
}

/// The share of queries that found what they search for among the first `k`; `places` are those of each image's queries.
fn recall(metric: String, places: &[Vec<usize>], k: usize, config: &RetrievalConfig) -> RetrievalRow {
    let found: Vec<usize> = places
        .iter()
        .map(|places| places.iter().filter(|&&place| place < k).count())
        .collect();
    RetrievalRow::over_queries(metric, places.len(), &config.bootstrap(), |counts| {
        let sum = |of_image: &dyn Fn(usize) -> usize| -> f64 {
            let drawn = counts.iter().enumerate();
            drawn
                .map(|(image, &count)| f64::from(count) * of_image(image) as f64)
                .sum()
        };
        sum(&|image| found[image]) / sum(&|image| places[image].len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    fn angles(angles: &[f32]) -> Matrix {
        let values = angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]);
        Matrix::new(values.collect(), angles.len(), 2).unwrap()
    }

    #[test]
    fn both_ways_by_hand() {
        // Image 0 at 0, 1 at 1, 2 at 2 with no text, 3 at 3. Texts of 0: near 0 and near 1; of 1: near 2; of 3: near 3.
        let images = angles(&[0.0, 1.0, 2.0, 3.0]);
        let texts = angles(&[0.1, 1.1, 2.1, 2.9]);
        let config = RetrievalConfig {
            ks: vec![1, 2],
            bootstrap_resamples: 200,
            ..RetrievalConfig::default()
        };
        let result = evaluate(images.view(), texts.view(), &[0, 0, 1, 3], &config).unwrap();
        let value = |name: &str| result.value(name).unwrap();
        // Image 0 finds its first text, 1 finds one of image 0 before its own, 3 finds its own.
        assert_eq!(value("image to text R@1"), 2.0 / 3.0);
        // Image 1: texts at 1.1, 0.1 (0.9 away), 2.1 (1.1 away).
        assert_eq!(value("image to text R@2"), 2.0 / 3.0);
        // Texts find images 0, 1, 2, 3, of which 0 and 3 are theirs; the second of text 1 is image 0 or 2: 0.9 from 2, 1.1 from 0.
        assert_eq!(value("text to image R@1"), 0.5);
        // Text 2 at 2.1: images 2, then 3 (0.9) before 1 (1.1).
        assert_eq!(value("text to image R@2"), 0.5);
        assert_eq!(result.settings["n_images_without_texts"], 1);
        assert_eq!((result.n_queries, result.n_database), (4, 4));
        for row in &result.rows {
            assert!(
                row.low <= row.value && row.value <= row.high && row.low < row.high,
                "{row:?}"
            );
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let (images, texts) = (angles(&[0.0, 1.0]), angles(&[0.1, 1.1]));
        let config = RetrievalConfig::default();
        let error = |texts: &Matrix, of: &[u32]| {
            evaluate(images.view(), texts.view(), of, &config)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&texts, &[0, 2]).contains("below 2, found 2 for text 1"));
        assert!(error(&texts, &[0]).contains("expected 2 labels"));
        let wide = Matrix::new(vec![1.0; 6], 2, 3).unwrap();
        assert!(error(&wide, &[0, 1]).contains("expected width 2"));
    }
}
