use candle_core::DType;

use super::*;
use crate::cluster::OneRank;
use crate::cluster::simulated::{Network, on_ranks};
use crate::data::{Record, RgbImage};

fn preprocess() -> Preprocess {
    Preprocess::imagenet(28, 28)
}

fn sample_test(config: OnlineKnnConfig, seed: u64) -> OnlineKnn {
    OnlineKnn::open(config, preprocess(), DecodeOptions::default(), seed).expect("opened")
}

/// Pixels averaged over squares of 4: `[b, 3, 28, 28]` to `[b, 147]`.
fn pooled(images: &Tensor) -> Result<Tensor> {
    let pooled = images.avg_pool2d(4).and_then(|pooled| pooled.flatten_from(1));
    pooled.map_err(crate::Error::from)
}

/// A source of grey images whose shade is the row, with labels as told and some rows that cannot be read.
struct Shades {
    labels: Vec<Option<&'static str>>,
    damaged: Vec<u64>,
}

impl Source for Shades {
    fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        Record {
            row,
            path: format!("shade-{row}"),
            label: self.labels[row as usize].map(str::to_owned),
            mask: None,
            depth: None,
        }
    }

    fn load(&self, row: u64, _: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        if self.damaged.contains(&row) {
            let path = format!("shade-{row}");
            let reason = "damaged".to_owned();
            return Err(RowError { path, reason });
        }
        Ok(RgbImage::new(4, 4, vec![row as u8; 48]).expect("an image"))
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fn shades(labels: Vec<Option<&'static str>>, damaged: Vec<u64>) -> Result<OnlineKnn> {
    let source = Arc::new(Shades { labels, damaged });
    let config = OnlineKnnConfig::new("shades", 1);
    OnlineKnn::new(
        source,
        config,
        Preprocess::imagenet(4, 4),
        DecodeOptions::default(),
        0,
    )
}

/// Dark and light by halves.
fn halves() -> Vec<Option<&'static str>> {
    (0..60)
        .map(|row| Some(if row < 30 { "dark" } else { "light" }))
        .collect()
}

/// Shade as an angle, so that neighbours are the rows next to a row.
fn angle(images: &Tensor) -> Result<Tensor> {
    let shade = images.mean((1, 2, 3))?;
    let both = shade.cos().and_then(|cos| Tensor::stack(&[cos, shade.sin()?], 1));
    both.map_err(crate::Error::from)
}

#[test]
fn pooled_pixels_are_far_above_chance_and_repeatable() {
    let knn = sample_test(OnlineKnnConfig::new("sample:test", 10), 5);
    let result = knn.evaluate(&OneRank, pooled).expect("evaluated");
    assert_eq!((result.n_bank, result.n_queries, result.d), (834, 166, 147));
    assert_eq!(result.features.len(), 1000 * 147);
    assert!(result.top1 > 0.5, "{}", result.top1);
    assert!(result.low < result.top1 && result.top1 < result.high);
    assert_eq!(knn.evaluate(&OneRank, pooled).expect("evaluated"), result);
    let again = sample_test(OnlineKnnConfig::new("sample:test", 10), 5);
    assert_eq!(again.evaluate(&OneRank, pooled).expect("evaluated"), result);
    let other = sample_test(OnlineKnnConfig::new("sample:test", 10), 6);
    assert_ne!(
        other.evaluate(&OneRank, pooled).expect("evaluated").features,
        result.features
    );
}

#[test]
fn ranks_find_together_what_one_finds() {
    let knn = sample_test(OnlineKnnConfig::new("sample:test", 10), 5);
    let one = knn.evaluate(&OneRank, pooled).expect("evaluated");
    for size in [2, 3] {
        let found = on_ranks(size, Network::default(), |ranks| {
            let images = std::cell::Cell::new(0);
            let counted = |batch: &Tensor| {
                images.set(images.get() + batch.dims()[0]);
                pooled(batch)
            };
            let result = knn.evaluate(ranks.as_ref(), counted).expect("evaluated");
            (result, images.get())
        });
        assert!(found.iter().all(|(found, _)| *found == one), "{size}");
        let images: Vec<usize> = found.iter().map(|(_, images)| *images).collect();
        assert!(images.iter().sum::<usize>() == 1000 && images.iter().all(|&own| own > 1000 / size - 64));
    }
}

#[test]
fn features_without_content_are_near_chance() {
    let knn = sample_test(OnlineKnnConfig::new("sample:test", 10), 5);
    let alike = |images: &Tensor| {
        let shape = (images.dims()[0], 8);
        Tensor::ones(shape, DType::F32, &Device::Cpu).map_err(crate::Error::from)
    };
    let top1 = knn.evaluate(&OneRank, alike).expect("evaluated").top1;
    assert!(top1 < 0.25, "{top1}");
}

#[test]
fn the_sample_is_limited_disjoint_and_blind_to_classes() {
    let config = OnlineKnnConfig {
        max_images: 120,
        ..OnlineKnnConfig::new("sample:train", 10)
    };
    let knn = sample_test(config, 0);
    assert_eq!((knn.sample.rows.len(), knn.sample.n_bank), (120, 100));
    let unique: std::collections::BTreeSet<u64> = knn.sample.rows.iter().copied().collect();
    assert_eq!(unique.len(), 120);
    let mut counts = [0; 10];
    knn.sample
        .labels
        .iter()
        .for_each(|&label| counts[label as usize] += 1);
    assert!(
        counts.iter().any(|&count| count != 12),
        "drawn by class: {counts:?}"
    );
    assert!(knn.is_due(20) && !knn.is_due(21));
}

#[test]
fn images_read_again_give_what_kept_ones_give() {
    let mut knn = shades(halves(), vec![]).expect("opened");
    let kept = knn.evaluate(&OneRank, angle).expect("evaluated");
    assert!(kept.top1 > 0.8, "{}", kept.top1);
    knn.kept = None;
    assert_eq!(knn.evaluate(&OneRank, angle).expect("evaluated"), kept);
}

#[test]
fn damaged_images_are_left_out() {
    let damaged = vec![3, 4, 40, 59];
    let whole = shades(halves(), vec![]).expect("opened");
    let knn = shades(halves(), damaged.clone()).expect("opened");
    assert!(knn.sample.rows.iter().all(|row| !damaged.contains(row)));
    let kept = knn.evaluate(&OneRank, angle).expect("evaluated");
    assert_eq!(kept.n_bank + kept.n_queries, 56);
    let read_again = OnlineKnn {
        source: Arc::clone(&knn.source),
        kept: None,
        ..whole
    };
    assert_eq!(read_again.evaluate(&OneRank, angle).expect("evaluated"), kept);
}

#[test]
fn sources_that_cannot_serve_are_named() {
    let refused = |labels| shades(labels, vec![]).err().expect("refused").to_string();
    let mut labels = halves();
    labels[17] = None;
    let error = refused(labels);
    assert_eq!(error, "shades: online k-NN needs labels, found none for shade-17");
    let error = refused(vec![Some("dark"); 60]);
    assert!(
        error.starts_with("shades: online k-NN needs at least two classes"),
        "{error}"
    );
    let error = refused(vec![Some("dark"); 5]);
    assert!(error.contains("at least 6 labelled images"), "{error}");
}

#[test]
fn settings_out_of_range_and_misshapen_features_are_named() {
    let config = OnlineKnnConfig::new("sample:test", 0);
    let error = config.validate().expect_err("refused").to_string();
    assert_eq!(error, "online_knn.every: expected at least 1, found 0");
    let knn = shades(halves(), vec![]).expect("opened");
    let error = knn
        .evaluate(&OneRank, |images| Ok(images.clone()))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("expected [60, D], found [60, 3, 4, 4]"), "{error}");
}
