//! Readings of a sample of images without labels.

use std::cell::RefCell;

use super::*;
use crate::cluster::OneRank;
use crate::cluster::simulated::{Network, on_ranks};
use crate::data;

const SOURCE: &str = "sample:train";

fn meters(config: LabelFreeConfig) -> Result<LabelFree> {
    let source: Arc<dyn Source> = Arc::from(data::open(SOURCE).unwrap());
    let crops = MultiCropConfig::small_grey(28, 14);
    LabelFree::new(source, config, crops, DecodeOptions::default(), 3)
}

fn small() -> LabelFreeConfig {
    LabelFreeConfig {
        images: 40,
        views: 4,
        ..LabelFreeConfig::new(5)
    }
}

/// The mean of every row of pixels of the red channel, `[b, 28]`.
fn rows_of(pixels: &Tensor) -> Result<Tensor> {
    Ok(pixels.narrow(1, 0, 1)?.squeeze(1)?.mean(2)?)
}

#[test]
fn readings_are_repeated_to_the_bit_and_are_those_of_the_meters() {
    let seen = RefCell::new(Vec::new());
    let features_of = |pixels: &Tensor| {
        let features = rows_of(pixels)?;
        seen.borrow_mut()
            .extend(features.flatten_all()?.to_vec1::<f32>()?);
        Ok(features)
    };
    let meters_of = meters(small()).unwrap();
    let first = meters_of.evaluate(&OneRank, features_of).unwrap();
    let features = seen.take();
    assert_eq!(features.len(), 40 * 4 * 28);
    assert_eq!(first.lidar, meters::lidar(&features, 40, 4, 28));
    assert!(first.lidar > 1.0 && first.lidar < 28.0, "{first:?}");
    assert_eq!(first.possible_rank, 28);
    let whole: Vec<f32> = features
        .chunks_exact(4 * 28)
        .flat_map(|image| image[..28].to_vec())
        .collect();
    assert_eq!(first.effective_rank, meters::effective_rank(&whole, 40, 28));
    assert_eq!(first.feature_std, meters::feature_std(&whole, 40, 28));
    let again = meters(small()).unwrap().evaluate(&OneRank, rows_of).unwrap();
    assert_eq!(
        (first.lidar, first.effective_rank),
        (again.lidar, again.effective_rank)
    );
}

#[test]
fn views_of_an_image_differ_and_images_are_spread_over_the_source() {
    let meters = meters(small()).unwrap();
    assert!(meters.rows.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(
        meters.rows[0] < 1000 && meters.rows[39] > 5000,
        "{:?}",
        meters.rows
    );
    let views = meters.views_of(meters.rows[0]).unwrap();
    let (first, rest) = views.split_at(views.len() / 4);
    assert!(rest.chunks_exact(first.len()).all(|view| view != first));
}

#[test]
fn readings_are_due_at_their_steps() {
    let meters = meters(small()).unwrap();
    let due: Vec<u64> = (1..12).filter(|&step| meters.is_due(step)).collect();
    assert_eq!(due, [5, 10]);
}

#[test]
fn settings_out_of_range_and_features_of_another_shape_are_named() {
    for (config, words) in [
        (
            LabelFreeConfig {
                images: 15,
                ..small()
            },
            ["monitor.label_free.images", "at least 16, found 15"],
        ),
        (
            LabelFreeConfig { views: 1, ..small() },
            ["monitor.label_free.views", "at least 2, found 1"],
        ),
        (
            LabelFreeConfig { every: 0, ..small() },
            ["monitor.label_free.every", "at least 1, found 0"],
        ),
    ] {
        let text = meters(config).err().expect("refused").to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let text = meters(small())
        .unwrap()
        .evaluate(&OneRank, |pixels| Ok(pixels.clone()))
        .unwrap_err()
        .to_string();
    assert!(text.contains("expected [64, D], found [64, 3, 28, 28]"), "{text}");
}

#[test]
fn ranks_divide_the_images_and_come_to_the_same() {
    let meters_of = meters(small()).unwrap();
    let alone = meters_of.evaluate(&OneRank, rows_of).unwrap();
    let shared = on_ranks(3, Network::default(), |ranks| {
        let seen = RefCell::new(0);
        let features_of = |pixels: &Tensor| {
            *seen.borrow_mut() += pixels.dim(0)?;
            rows_of(pixels)
        };
        let result = meters_of.evaluate(ranks.as_ref(), features_of).unwrap();
        (result, seen.into_inner())
    });
    let crops: usize = shared.iter().map(|(_, seen)| seen).sum();
    assert_eq!(crops, 40 * 4);
    for (result, seen) in shared {
        assert_eq!(result, alone);
        assert!(seen < crops, "{seen}");
    }
}
