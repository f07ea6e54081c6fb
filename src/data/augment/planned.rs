//! An image with all that is needed to make its crops elsewhere: its pixels, its plans, and the weights of their resizes. Those are
//! made here, because their roundings are Pillow's in f64; they cost a hundredth of what the crops do.

use std::sync::Arc;

use rand::Rng;

use super::{CropPlan, MultiCrop, RgbImage};
use crate::data::resize::{WeightRows, append_weights};

/// A decoded image and the crops to be made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedImage {
    /// Its pixels, which a cache may share.
    pub image: Arc<RgbImage>,
    /// `[G]`.
    pub global: PlannedCrops,
    /// `[L]`.
    pub local: PlannedCrops,
}

/// The crops of one kind of one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlannedCrops {
    /// In the order in which they were drawn.
    pub crops: Vec<PlannedCrop>,
    /// The weights of all of their resizes ([`append_weights`]).
    pub weights: Vec<u32>,
}

/// A crop, and where the weights of its resize lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedCrop {
    /// What is done.
    pub plan: CropPlan,
    /// Weights along rows.
    pub columns: WeightRows,
    /// Weights along columns.
    pub rows: WeightRows,
}

impl PlannedImage {
    /// Draws all crops of `image`, the global ones first: those that [`MultiCrop::apply`] makes.
    pub fn draw(image: Arc<RgbImage>, crops: &MultiCrop, rng: &mut impl Rng) -> Self {
        let sides = (image.width(), image.height());
        let config = crops.config();
        let global = (0..config.global.count).map(|place| crops.plan_global(place, sides, rng));
        let global = PlannedCrops::from_plans(global, config.global.size, crops);
        let local = (0..config.local.count).map(|_| crops.plan_local(sides, rng));
        let local = PlannedCrops::from_plans(local, config.local.size, crops);
        Self { image, global, local }
    }
}

impl PlannedCrops {
    fn from_plans(plans: impl Iterator<Item = CropPlan>, size: u32, crops: &MultiCrop) -> Self {
        let filter = crops.config().interpolation;
        let mut weights = Vec::new();
        let crops = plans.map(|plan| PlannedCrop {
            plan,
            columns: append_weights(plan.window.width, size, filter, &mut weights),
            rows: append_weights(plan.window.height, size, filter, &mut weights),
        });
        Self {
            crops: crops.collect(),
            weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::multi_crop::stream;
    use super::super::{MultiCropConfig, golden};
    use super::*;
    use crate::data::Image;

    #[test]
    fn plans_are_of_the_crops_that_the_processor_makes() {
        let image = Arc::new(golden::image("input"));
        let crops = MultiCrop::new(MultiCropConfig::small_colour(64, 24)).unwrap();
        let expected = crops
            .apply(&Image::Rgb(Arc::clone(&image)), &mut stream(3, 0, 0))
            .unwrap();
        let planned = PlannedImage::draw(Arc::clone(&image), &crops, &mut stream(3, 0, 0));
        let values = crops.values();
        let config = crops.config();
        for (view, planned, expected) in [
            (&config.global, &planned.global, expected.global),
            (&config.local, &planned.local, expected.local),
        ] {
            assert_eq!(planned.crops.len(), view.count);
            for (crop, expected) in planned.crops.iter().zip(expected.chunks_exact(view.values(3))) {
                let made = crop.plan.apply(&image, view.size, config.interpolation).unwrap();
                let area = view.values(1);
                for (place, level) in made.data().iter().enumerate() {
                    let channel = place % 3;
                    let value = values[256 * channel + usize::from(*level)];
                    assert_eq!(value, expected[channel * area + place / 3]);
                }
                let end = crop.rows.start + crop.rows.words * view.size as usize;
                assert!(end <= planned.weights.len() && crop.columns.start < crop.rows.start);
            }
        }
    }
}
