//! Crops for images far smaller than those DINOv2 was made for. The values are this project's, not a paper's.

use super::multi_crop_config::{BlurConfig, BlurConvention, JitterConfig, MultiCropConfig, ViewConfig};

/// Local crops of an image, where there are any.
const LOCAL_COUNT: usize = 6;
/// From this size on, in pixels, global crops of colour images are blurred.
const MIN_BLURRED: u32 = 64;

impl MultiCropConfig {
    /// For small grey images such as Fashion-MNIST's: 2 global crops of `global_size` pixels from 0.4 to 1 of the image and
    /// 6 local ones of `local_size` from 0.15 to 0.4, because a twentieth of 28 x 28 pixels shows nothing; brightness and
    /// contrast as DINOv2's, neither hue, saturation nor grey, which do nothing to a grey image, and no blur, whose nine
    /// pixels are a third of the image. A `local_size` of 0 makes no local crops. Mirroring stays on: switch it off where
    /// left and right matter, as in digits.
    pub fn small_grey(global_size: u32, local_size: u32) -> Self {
        Self {
            grey: 0.0,
            jitter: JitterConfig {
                saturation: 0.0,
                hue: 0.0,
                ..JitterConfig::default()
            },
            ..Self::small(global_size, local_size)
        }
    }

    /// For small colour images, of about 32 to 96 pixels: the windows of [`MultiCropConfig::small_grey`], milder than
    /// DINOv2's 0.32 to 1 and 0.05 to 0.32, because a twentieth of 32 x 32 pixels is 7 x 7; colour jitter, grey with 0.2 and
    /// solarisation as DINOv2's, which do not depend on size. Below 64 pixels there is no blur, as in SimCLR's recipe for
    /// CIFAR-10, since nine pixels are a quarter of the image; from 64 on every second crop of the second kind is blurred,
    /// with a largest sigma as large to the crop as DINOv2's 2 pixels are to 224. A `local_size` of 0 makes no local crops.
    pub fn small_colour(global_size: u32, local_size: u32) -> Self {
        let small = Self::small(global_size, local_size);
        if global_size < MIN_BLURRED {
            return small;
        }
        Self {
            blur: BlurConfig {
                other_global: 0.5,
                sigma: [0.1, 2.0 * f64::from(global_size) / 224.0],
                ..small.blur
            },
            ..small
        }
    }

    /// What both have in common.
    fn small(global_size: u32, local_size: u32) -> Self {
        Self {
            global: ViewConfig {
                count: 2,
                size: global_size,
                scale: [0.4, 1.0],
            },
            local: ViewConfig {
                count: if local_size == 0 { 0 } else { LOCAL_COUNT },
                size: local_size.max(1),
                scale: [0.15, 0.4],
            },
            blur: BlurConfig {
                convention: BlurConvention::AsDeclared,
                first_global: 0.0,
                other_global: 0.0,
                local: 0.0,
                ..BlurConfig::default()
            },
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_valid_and_no_local_size_is_no_local_crop() {
        for (global, local) in [(28, 14), (32, 0), (64, 24), (96, 32), (224, 98), (1, 1)] {
            for config in [
                MultiCropConfig::small_grey(global, local),
                MultiCropConfig::small_colour(global, local),
            ] {
                config.validate().unwrap();
                assert_eq!(config.global.size, global);
                assert_eq!(config.local.count == 0, local == 0);
            }
        }
    }

    #[test]
    fn only_larger_colour_images_are_blurred() {
        let max = |config: &MultiCropConfig| config.blur.effective(config.blur.other_global);
        assert_eq!(max(&MultiCropConfig::small_colour(32, 16)), 0.0);
        assert_eq!(max(&MultiCropConfig::small_grey(96, 32)), 0.0);
        let large = MultiCropConfig::small_colour(112, 48);
        assert_eq!((max(&large), large.blur.sigma), (0.5, [0.1, 1.0]));
        assert_eq!(large.blur.effective(large.blur.local), 0.0);
        assert_eq!(large.jitter, JitterConfig::default());
        assert_eq!(large.grey, 0.2);
    }
}
