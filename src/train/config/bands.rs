//! Training on bands in place of RGB.

use super::TrainConfig;
use super::validate::prefixed;
use crate::data::bands::{self, Bands};
use crate::data::transform::check_count;
use crate::{Error, Result};

impl TrainConfig {
    /// Channels of the images: 3, or their bands.
    pub fn channels(&self) -> usize {
        bands::channels(self.data.loader.bands)
    }

    /// These settings for images of `bands`, whose `mean` and standard deviation (`std`) were measured: nothing that needs colours.
    pub fn on_bands(mut self, bands: Bands, mean: Vec<f32>, std: Vec<f32>) -> Self {
        self.data.loader.bands = Some(bands);
        self.crops = self.crops.without_colour(mean, std);
        self
    }

    /// Checks what the number of channels decides about.
    pub(super) fn validate_bands(&self) -> Result<()> {
        self.data.validate()?;
        let bands = self.data.loader.bands;
        check_count("crops.mean", self.crops.mean.len(), bands)?;
        check_count("crops.std", self.crops.std.len(), bands)?;
        let Some(bands) = bands else {
            return Ok(());
        };
        if self.distill.is_some() {
            let reason = format!("expected none in a distillation, which is of RGB images, found {bands}");
            return Err(Error::input("data.loader.bands", reason));
        }
        prefixed("crops", self.crops.need_no_colour())
    }
}

#[cfg(test)]
mod tests {
    use crate::train::config::TrainConfig;
    use crate::train::recipes::{self, DataFacts};

    fn on_five_bands(name: &str, side: u32) -> TrainConfig {
        let facts = DataFacts {
            images: 1000,
            side,
            grey: true,
            framed: false,
        };
        let config = recipes::recipe(name, "images", &facts).unwrap();
        config.on_bands("5,first".parse().unwrap(), vec![0.5; 5], vec![0.1; 5])
    }

    #[test]
    fn every_recipe_takes_bands_and_survives_its_file() {
        for name in recipes::NAMES {
            for side in [28, 64, 375] {
                let config = on_five_bands(name, side);
                config.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(config.vit().unwrap().in_channels, 5);
                let text = toml::to_string(&config).unwrap();
                assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), config, "{name}");
            }
        }
    }

    #[test]
    fn what_bands_cannot_have_is_refused_by_its_name() {
        type Change = fn(&mut TrainConfig);
        let changes: [(Change, &str); 8] = [
            (|c| c.crops.grey = 0.2, "crops.grey: expected 0 with bands"),
            (
                |c| c.crops.jitter.hue = 0.1,
                "crops.jitter.hue: expected 0 with bands",
            ),
            (
                |c| c.crops.jitter.saturation = 0.1,
                "crops.jitter.saturation: expected 0 with bands",
            ),
            (
                |c| c.crops.solarize.probability = 0.2,
                "crops.solarize.probability: expected 0 with bands",
            ),
            (
                |c| c.crops.mean.truncate(3),
                "crops.mean: expected as many numbers as std, at least one, found 3 and 5",
            ),
            (
                |c| c.data.loader.bands = Some("4".parse().unwrap()),
                "crops.mean: expected 4 numbers, one a band, found 5",
            ),
            (
                |c| c.data.loader.bands = None,
                "crops.mean: expected 3 numbers, one a colour, found 5",
            ),
            (
                |c| c.data.loader.background = Some([0; 3]),
                "data.loader.background: expected none with bands",
            ),
        ];
        for (change, expected) in changes {
            let mut config = on_five_bands("dinov2-small", 28);
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let mut config = on_five_bands("dinov2-small", 28);
        config.data.loader.crops_on = crate::data::loader::CropsOn::Gpu;
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.starts_with("data.loader.crops_on: expected cpu with bands"),
            "{error}"
        );
    }
}
