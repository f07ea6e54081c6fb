//! Snow, fog and bright light. Frost has a file of its own.

use rand_chacha::ChaCha8Rng;

use super::filter::{magnified, normal, streak, uniform};
use super::plasma::plasma;
use super::raster::Raster;

/// One severity of snow.
struct Snow {
    /// Mean and deviation of the noise that flakes are cut from.
    mean: f32,
    deviation: f32,
    /// How often the noise is magnified: pixels of a flake at 224, at least 1.
    flake: f32,
    /// Noise below this is no flake.
    threshold: f32,
    /// Half the length of a flake's streak and its deviation, in pixels at 224.
    radius: f32,
    sigma: f32,
    /// How much of the image stays as it is beside its whitened self.
    image: f32,
}

const fn snow_of(values: [f32; 7]) -> Snow {
    let [mean, deviation, flake, threshold, radius, sigma, image] = values;
    Snow {
        mean,
        deviation,
        flake,
        threshold,
        radius,
        sigma,
        image,
    }
}

const SNOWS: [Snow; 5] = [
    snow_of([0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8]),
    snow_of([0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7]),
    snow_of([0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7]),
    snow_of([0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65]),
    snow_of([0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55]),
];
/// Thickness of the fog, and by how much its detail decays.
const FOGS: [(f32, f32); 5] = [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)];
/// What is added to the value of every pixel.
const LIGHTS: [f32; 5] = [0.1, 0.2, 0.3, 0.4, 0.5];

/// The image, whitened, under flakes that fall from the upper side and as many turned upside down.
pub(super) fn snow(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let flakes = flakes(&image, &SNOWS[level], rng);
    let share = SNOWS[level].image;
    let last = flakes.data.len() - 1;
    let mut out = image;
    for (place, pixel) in out.data.chunks_exact_mut(out.channels).enumerate() {
        let white = luma(pixel) * 1.5 + 0.5;
        let fallen = flakes.data[place] + flakes.data[last - place];
        for value in pixel {
            *value = share * *value + (1.0 - share) * value.max(white) + fallen;
        }
    }
    out
}

/// Flakes with their streaks, 0 to 1.
fn flakes(image: &Raster, snow: &Snow, rng: &mut ChaCha8Rng) -> Raster {
    let (width, height) = (image.width, image.height);
    let unit = image.unit();
    let noise = Raster::plane(width, height, || snow.mean + snow.deviation * normal(rng));
    let mut flakes = Raster::plane(width, height, || 0.0);
    magnified(&noise, (snow.flake * unit).max(1.0), 1.0, &mut flakes);
    let flakes = flakes.map(|value| {
        if value < snow.threshold {
            0.0
        } else {
            value.min(1.0)
        }
    });
    let degrees = uniform(-135.0, -45.0, rng);
    streak(&flakes, 2.0 * snow.radius * unit, snow.sigma * unit, degrees)
}

/// ITU-R 601 luma.
fn luma(pixel: &[f32]) -> f32 {
    match pixel {
        [red, green, blue] => 0.299 * red + 0.587 * green + 0.114 * blue,
        _ => pixel[0],
    }
}

/// The image under a cloud, darkened so that its brightest level stays.
pub(super) fn fog(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let (thickness, decay) = FOGS[level];
    let brightest = image.data.iter().copied().fold(0.0, f32::max);
    let cloud = plasma(image.width, image.height, decay, rng);
    let mut out = image;
    for (pixel, cloud) in out.data.chunks_exact_mut(out.channels).zip(&cloud.data) {
        for value in pixel {
            *value = (*value + thickness * cloud) * brightest / (brightest + thickness);
        }
    }
    out
}

/// Raises the value of every pixel and keeps its hue and saturation, up to white's value.
pub(super) fn brightness(image: Raster, level: usize) -> Raster {
    let mut out = image;
    for pixel in out.data.chunks_exact_mut(out.channels) {
        let value = pixel.iter().copied().fold(0.0, f32::max);
        let raised = (value + LIGHTS[level]).min(1.0);
        for sample in pixel {
            // Black has no hue: it turns grey.
            *sample = if value > 0.0 {
                *sample * raised / value
            } else {
                raised
            };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brightness_adds_to_the_largest_channel_and_keeps_the_proportions() {
        let image = |data: Vec<f32>| Raster {
            width: data.len() / 3,
            height: 1,
            channels: 3,
            data,
        };
        let brighter = brightness(image(vec![0.4, 0.2, 0.1, 0.0, 0.0, 0.0, 0.9, 0.9, 0.0]), 1);
        let expected = [0.6, 0.3, 0.15, 0.2, 0.2, 0.2, 1.0, 1.0, 0.0];
        for (found, expected) in brighter.data.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{brighter:?}");
        }
    }

    #[test]
    fn fog_keeps_the_brightest_level_in_range_and_lifts_black() {
        let image = Raster::plane(32, 32, || 0.0);
        let black = fog(image.clone(), 4, &mut crate::rng::stream(0, "test", 0));
        assert_eq!(black, image, "no light, no fog, as published");
        let mut half = image;
        half.data[0] = 0.5;
        let fogged = fog(half, 4, &mut crate::rng::stream(0, "test", 0));
        assert!(fogged.data.iter().all(|value| (0.0..=0.5).contains(value)));
        assert!(fogged.data.iter().sum::<f32>() > 100.0);
    }

    #[test]
    fn snow_covers_more_and_whitens() {
        let dark = Raster::plane(64, 64, || 0.1);
        let brightness = |level| {
            let snowed = snow(dark.clone(), level, &mut crate::rng::stream(0, "test", 0));
            snowed.data.iter().sum::<f32>() / 4096.0
        };
        assert!(brightness(0) > 0.2 && brightness(4) > brightness(0) + 0.1);
    }
}
