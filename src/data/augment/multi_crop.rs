//! The crops that one image becomes in training, as DINOv2 makes them (facebookresearch/dinov2:
//! dinov2/data/augmentations.py): a few large ones that teacher and student see, and many small ones for the student.
//! Each is cropped and resized, warped where asked to be, mirrored, varied in colour, made grey, blurred, solarised and normalised, in this order.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::multi_crop_config::MultiCropConfig;
use super::plan::{CropPlan, View};
use crate::data::image::Image;
use crate::data::transform::{Preprocess, write_bands};
use crate::{Result, rng};

/// The crops of one image, normalised, planar.
#[derive(Clone, Debug, PartialEq)]
pub struct Crops {
    /// `[global.count, C, global.size, global.size]`.
    pub global: Vec<f32>,
    /// `[local.count, C, local.size, local.size]`.
    pub local: Vec<f32>,
}

/// A checked [`MultiCropConfig`], ready to make crops.
#[derive(Clone, Debug)]
pub struct MultiCrop {
    config: MultiCropConfig,
    normalise: Preprocess,
}

/// The generator for image number `image` of the source in pass number `epoch`: neither the order in which images are taken
/// nor a resumed run can change its crops.
pub fn stream(seed: u64, epoch: u64, image: u64) -> ChaCha8Rng {
    rng::stream(seed, &format!("crops of epoch {epoch}"), image)
}

impl MultiCrop {
    /// Fails when `config` has a field out of range.
    pub fn new(config: MultiCropConfig) -> Result<Self> {
        config.validate()?;
        let normalise = Preprocess {
            resize: None,
            crop: None,
            interpolation: config.interpolation,
            mean: config.mean.clone(),
            std: config.std.clone(),
            ..Preprocess::imagenet(1, 1)
        };
        Ok(Self { config, normalise })
    }

    /// The settings.
    pub fn config(&self) -> &MultiCropConfig {
        &self.config
    }

    /// All crops of `image`, the global ones drawn first. Fails as [`MultiCrop::global`] does.
    pub fn apply(&self, image: &Image, rng: &mut impl Rng) -> Result<Crops> {
        let config = &self.config;
        let (global, local) = (config.global_values(), config.local_values());
        let mut crops = Crops {
            global: vec![0.0; config.global.count * global],
            local: vec![0.0; config.local.count * local],
        };
        for (place, out) in crops.global.chunks_exact_mut(global).enumerate() {
            self.global(place, image, rng, out)?;
        }
        for out in crops.local.chunks_exact_mut(local) {
            self.local(image, rng, out)?;
        }
        Ok(crops)
    }

    /// Writes a new global crop over `out`, `[C, global.size, global.size]`. The one at `place` 0 has the first's blur and
    /// is never solarised. Fails when `out` has another length.
    pub fn global(&self, place: usize, image: &Image, rng: &mut impl Rng, out: &mut [f32]) -> Result<()> {
        self.write(image, &self.global_view(place), rng, out)
    }

    /// Writes a new local crop over `out`, `[C, local.size, local.size]`. Fails when `out` has another length.
    pub fn local(&self, image: &Image, rng: &mut impl Rng, out: &mut [f32]) -> Result<()> {
        self.write(image, &self.local_view(), rng, out)
    }

    /// Draws the global crop at `place` of a `width` x `height` image: what [`MultiCrop::global`] draws.
    pub fn plan_global(&self, place: usize, (width, height): (u32, u32), rng: &mut impl Rng) -> CropPlan {
        CropPlan::draw((width, height), &self.global_view(place), &self.config, rng)
    }

    /// Draws a local crop of a `width` x `height` image: what [`MultiCrop::local`] draws.
    pub fn plan_local(&self, (width, height): (u32, u32), rng: &mut impl Rng) -> CropPlan {
        CropPlan::draw((width, height), &self.local_view(), &self.config, rng)
    }

    /// What each of the 256 levels of red, green and blue becomes in a crop, `[3, 256]`.
    pub fn values(&self) -> Vec<f32> {
        self.normalise.values()
    }

    fn global_view(&self, place: usize) -> View<'_> {
        let MultiCropConfig {
            global,
            blur,
            solarize,
            ..
        } = &self.config;
        let first = place == 0;
        View {
            config: global,
            blur: blur.effective(if first {
                blur.first_global
            } else {
                blur.other_global
            }),
            solarize: if first { 0.0 } else { solarize.probability },
        }
    }

    fn local_view(&self) -> View<'_> {
        let MultiCropConfig { local, blur, .. } = &self.config;
        View {
            config: local,
            blur: blur.effective(blur.local),
            solarize: 0.0,
        }
    }

    fn write(&self, image: &Image, view: &View, rng: &mut impl Rng, out: &mut [f32]) -> Result<()> {
        let plan = CropPlan::draw(image.sides(), view, &self.config, rng);
        let (size, filter) = (view.config.size, self.config.interpolation);
        match image {
            Image::Rgb(image) => self
                .normalise
                .write_tensor(&plan.apply(image, size, filter)?, out),
            Image::Bands(image) => {
                let crop = plan.apply_to_bands(image, size, filter)?;
                write_bands(&crop, &self.config.mean, &self.config.std, out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::super::golden;
    use super::super::multi_crop_config::BlurConvention;
    use super::*;
    use crate::data::RgbImage;

    /// Nothing random but the window.
    fn plain() -> MultiCropConfig {
        let mut config = MultiCropConfig::small_grey(24, 12);
        config.flip = 0.0;
        config.jitter.probability = 0.0;
        config.solarize.probability = 0.0;
        config
    }

    /// Every window is all of a square image.
    fn whole(config: &mut MultiCropConfig) {
        (config.global.scale, config.local.scale) = ([1.0, 1.0], [1.0, 1.0]);
        config.aspect = [1.0, 1.0];
    }

    fn square() -> RgbImage {
        let image = golden::image("input");
        image.view().crop(0, 0, 90, 90).unwrap().to_image()
    }

    #[test]
    fn one_stream_gives_the_same_crops_and_another_does_not() {
        let image = golden::image("input").into();
        let crops = MultiCrop::new(MultiCropConfig::default()).unwrap();
        let draw = |seed, epoch, number| {
            let crops = crops.apply(&image, &mut stream(seed, epoch, number)).unwrap();
            let values = crops.global.iter().chain(&crops.local);
            values.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
        };
        let first = draw(1, 0, 0);
        assert!(first == draw(1, 0, 0));
        assert!(first != draw(2, 0, 0) && first != draw(1, 1, 0) && first != draw(1, 0, 1));
    }

    /// The digest is of the crops as they were when drawing and applying were one: it holds the order of the draws.
    #[test]
    fn numbers_are_drawn_in_the_order_they_always_were() {
        let mut config = MultiCropConfig::default();
        (config.global.size, config.local.size) = (64, 32);
        (config.mean, config.std) = (vec![0.0; 3], vec![1.0; 3]);
        let crops = MultiCrop::new(config).unwrap();
        let mut hash = Sha256::new();
        for number in 0..20 {
            let made = crops
                .apply(&golden::image("input").into(), &mut stream(7, 1, number))
                .unwrap();
            let values = made.global.iter().chain(&made.local);
            hash.update(
                values
                    .map(|value| (value * 255.0).round() as u8)
                    .collect::<Vec<u8>>(),
            );
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            digest,
            "66c6f2ddb98136635fdcadea03ddc6bde43ec8b8e62f23c7d0cb25ef78728732"
        );
    }

    #[test]
    fn a_warp_moves_what_is_in_a_crop() {
        let mut config = plain();
        whole(&mut config);
        config.warp = 0.1;
        let image = square().into();
        let made = |config: &MultiCropConfig| {
            let crops = MultiCrop::new(config.clone()).unwrap();
            crops.apply(&image, &mut stream(3, 0, 0)).unwrap().global
        };
        let warped = made(&config);
        let (first, second) = warped.split_at(warped.len() / 2);
        assert!(first != second, "each crop has its own");
        config.warp = 0.0;
        let still = made(&config);
        assert!(still[..first.len()] == still[first.len()..]);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean(first) - mean(&still)).abs() < 0.3);
    }

    #[test]
    fn crops_have_their_shapes_and_are_all_different() {
        let image = golden::image("input").into();
        let crops = MultiCrop::new(MultiCropConfig::default()).unwrap();
        let made = crops.apply(&image, &mut stream(3, 0, 0)).unwrap();
        assert_eq!(made.global.len(), 2 * 3 * 224 * 224);
        assert_eq!(made.local.len(), 8 * 3 * 98 * 98);
        let locals: Vec<&[f32]> = made.local.chunks_exact(3 * 98 * 98).collect();
        for (place, crop) in locals.iter().enumerate() {
            assert!(locals[..place].iter().all(|other| other != crop));
        }
        // Black and white after ImageNet's normalisation.
        let values = made.global.iter().chain(&made.local);
        assert!(values.clone().all(|value| (-2.12..=2.65).contains(value)));
        let mut short = vec![0.0; 3 * 98 * 98 - 1];
        let error = crops.local(&image, &mut stream(3, 0, 0), &mut short).unwrap_err();
        assert!(error.to_string().contains("3 x 98 x 98"), "{error}");
    }

    #[test]
    fn without_chance_a_crop_is_the_preprocessed_image() {
        let mut config = plain();
        whole(&mut config);
        (config.mean, config.std) = (vec![0.5, 0.4, 0.3], vec![0.2, 0.3, 0.4]);
        let preprocess = Preprocess {
            mean: config.mean.clone(),
            std: config.std.clone(),
            ..Preprocess::imagenet(24, 24)
        };
        let mut expected = vec![0.0; 3 * 24 * 24];
        preprocess.write_tensor(&square(), &mut expected).unwrap();
        let mut out = vec![0.0; 3 * 24 * 24];
        let crops = MultiCrop::new(config).unwrap();
        crops
            .global(1, &square().into(), &mut stream(0, 0, 0), &mut out)
            .unwrap();
        assert!(out == expected);
    }

    /// A crop before normalisation.
    fn pixels(crops: &MultiCrop, image: &RgbImage, view: &View, rng: &mut impl Rng) -> RgbImage {
        let plan = CropPlan::draw((image.width(), image.height()), view, &crops.config, rng);
        plan.apply(image, view.config.size, crops.config.interpolation)
            .unwrap()
    }

    /// Which part of 2,000 crops of the whole image differs from the crop that [`plain`] makes.
    fn share_changed(config: &MultiCropConfig, view: fn(&MultiCrop) -> View<'_>) -> f64 {
        let (mut config, mut without) = (config.clone(), plain());
        whole(&mut config);
        whole(&mut without);
        let (with, without) = (MultiCrop::new(config).unwrap(), MultiCrop::new(without).unwrap());
        let image = square();
        let unchanged = pixels(&without, &image, &view(&without), &mut stream(0, 0, 0));
        let mut generator = stream(11, 0, 0);
        let draws = 2000;
        let changed = (0..draws)
            .filter(|_| pixels(&with, &image, &view(&with), &mut generator) != unchanged)
            .count();
        changed as f64 / f64::from(draws)
    }

    #[test]
    fn blur_is_as_frequent_as_its_convention_says() {
        let views: [fn(&MultiCrop) -> View<'_>; 4] = [
            |crops| crops.global_view(0),
            |crops| crops.global_view(1),
            |crops| crops.global_view(2),
            |crops| crops.local_view(),
        ];
        for (convention, expected) in [
            (BlurConvention::AsTrained, [0.0, 0.9, 0.9, 0.5]),
            (BlurConvention::AsDeclared, [1.0, 0.1, 0.1, 0.5]),
        ] {
            let mut config = plain();
            config.blur = MultiCropConfig::default().blur;
            config.blur.convention = convention;
            // A blur of the least sigmas rounds away.
            config.blur.sigma = [1.0, 2.0];
            for (view, expected) in views.into_iter().zip(expected) {
                let share = share_changed(&config, view);
                assert!(
                    (share - expected).abs() < 0.04,
                    "{convention:?}: {share} for {expected}"
                );
                if expected == 0.0 || expected == 1.0 {
                    assert_eq!(share, expected);
                }
            }
        }
    }

    #[test]
    fn each_change_is_as_frequent_as_it_is_set() {
        type Setting = fn(&mut MultiCropConfig);
        let set: [(f64, Setting); 4] = [
            (0.5, |config| config.flip = 0.5),
            (0.8, |config| config.jitter.probability = 0.8),
            (0.2, |config| config.grey = 0.2),
            (0.2, |config| config.solarize.probability = 0.2),
        ];
        for (expected, change) in set {
            let mut config = plain();
            change(&mut config);
            let share = share_changed(&config, |crops| crops.global_view(1));
            assert!((share - expected).abs() < 0.04, "{share} for {expected}");
        }
        let mut config = plain();
        config.solarize.probability = 1.0;
        assert_eq!(share_changed(&config, |crops| crops.global_view(0)), 0.0);
        assert_eq!(share_changed(&config, MultiCrop::local_view), 0.0);
    }

    #[test]
    fn the_smallest_images_have_crops_too() {
        let crops = MultiCrop::new(MultiCropConfig::default()).unwrap();
        for (width, height) in [(1, 1), (1, 300), (300, 1), (2, 3)] {
            let grey = vec![9; (width * height) as usize];
            let image = RgbImage::from_grey(width, height, &grey).unwrap();
            crops.apply(&image.into(), &mut stream(5, 0, 0)).unwrap();
        }
    }

    #[test]
    fn a_grey_image_stays_grey_in_the_small_preset() {
        let levels: Vec<u8> = (0..784).map(|place| (place % 251) as u8).collect();
        let image = RgbImage::from_grey(28, 28, &levels).unwrap();
        let mut config = MultiCropConfig::small_grey(28, 14);
        (config.mean, config.std) = (vec![0.0; 3], vec![1.0; 3]);
        let crops = MultiCrop::new(config).unwrap();
        let made = crops.apply(&image.into(), &mut stream(6, 0, 0)).unwrap();
        let planes: Vec<&[f32]> = made.global.chunks_exact(28 * 28).collect();
        assert_eq!(planes.len(), 6);
        for crop in planes.chunks_exact(3) {
            assert!(crop[0] == crop[1] && crop[0] == crop[2]);
        }
    }
}
