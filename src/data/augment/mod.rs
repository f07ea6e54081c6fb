//! How training varies an image: the colour changes ([`photometric`]), the blur ([`blur`]), the random crop ([`crop`]), its smooth warp ([`warp`]), what is
//! drawn for a crop before it is made of these ([`plan`], [`planned`]), the same for images of bands ([`bands`]), and the recipe of DINOv2's global and local crops ([`multi_crop`],
//! settings in [`multi_crop_config`], those for small images in [`presets`]). Every operation works on 8-bit pixels and rounds as torchvision does on a Pillow image,
//! so that a network trained here sees what the reference's sees. All randomness comes from the generator that the caller
//! hands in.

mod bands;
pub(crate) mod blur;
pub(crate) mod crop;
pub(crate) mod multi_crop;
pub(crate) mod multi_crop_config;
pub(crate) mod photometric;
pub(crate) mod plan;
pub(crate) mod planned;
mod presets;
mod warp;

pub use multi_crop::{Crops, MultiCrop};
pub use multi_crop_config::MultiCropConfig;
pub use plan::{Colour, CropPlan};
pub use planned::PlannedImage;
pub use warp::Warp;

use rand::Rng;

use super::image::RgbImage;

/// A number from `range[0]` to `range[1]`, uniformly; the ends may come in either order.
pub(super) fn uniform(range: [f64; 2], rng: &mut impl Rng) -> f64 {
    range[0] + (range[1] - range[0]) * rng.random::<f64>()
}

/// The image with `change` done to its samples, `[height, width, 3]`.
fn with_samples(image: RgbImage, change: impl FnOnce(&mut [u8])) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let mut samples = image.into_data();
    change(&mut samples);
    RgbImage::new(width, height, samples).expect("the length has not changed")
}

#[cfg(test)]
mod golden {
    //! The values that torchvision's functional transforms gave on Pillow images.

    use safetensors::SafeTensors;

    use crate::data::RgbImage;

    /// The image under `key` of `tests/fixtures/photometric.expected.safetensors`.
    pub fn image(key: &str) -> RgbImage {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/photometric.expected.safetensors"
        );
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(key).unwrap();
        let [height, width, 3] = *tensor.shape() else {
            panic!("{key}: {:?}", tensor.shape());
        };
        RgbImage::new(width as u32, height as u32, tensor.data().to_vec()).unwrap()
    }

    /// The largest difference between two images, which have one size.
    pub fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
        assert_eq!((a.width(), a.height()), (b.width(), b.height()));
        let pairs = a.data().iter().zip(b.data());
        pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }
}
