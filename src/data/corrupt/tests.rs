//! What holds for every corruption.

use super::*;

/// A scene with areas, edges and detail, in colour or in grey.
fn scene(width: u32, height: u32, grey: bool) -> RgbImage {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
            let inside = (u - 0.5).powi(2) + (v - 0.45).powi(2) < 0.09;
            let detail = ((x * 7 / width + y * 5 / height) % 2) as f32 * 0.15;
            let base = if inside { 0.65 } else { 0.15 + 0.2 * v };
            let colour = [base + detail, base * 0.8 + 0.1 * u, 0.3 + 0.3 * base];
            let pixel = if grey { [colour[0]; 3] } else { colour };
            data.extend(pixel.map(raster::level));
        }
    }
    RgbImage::new(width, height, data).unwrap()
}

fn severity(level: u8) -> Severity {
    Severity::new(level).unwrap()
}

/// Mean squared difference of levels from 0 to 255.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.data().iter().zip(b.data());
    let sum: f64 = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    sum / a.data().len() as f64
}

#[test]
fn names_are_read_back_and_others_are_refused() {
    let all: Vec<Corruption> = Corruption::all().collect();
    assert_eq!(all.len(), 15);
    for (place, corruption) in all.iter().enumerate() {
        assert_eq!(
            (*corruption as usize, corruption.name().parse().unwrap()),
            (place, *corruption)
        );
    }
    let error = "rain".parse::<Corruption>().unwrap_err().to_string();
    assert!(
        error.starts_with("corruptions: expected") && error.contains("`rain`"),
        "{error}"
    );
    for wrong in ["0", "6", "-1", "2.5", "", "300"] {
        let error = wrong.parse::<Severity>().unwrap_err().to_string();
        assert!(
            error.contains("1 to 5") && error.ends_with(&format!("`{wrong}`")),
            "{error}"
        );
    }
}

/// Over several rows, as a single draw may fall either way. Noise, brightness and contrast grow step by step; of the others some
/// published steps are none of this measure, and below 224 pixels some lengths meet their lower bounds: the ends must be in order,
/// but for glass, whose pixels change places by at least one at every severity and are blurred more at the higher ones.
#[test]
fn effects_grow_with_severity() {
    use Corruption::{
        Brightness, Contrast, ElasticTransform, GaussianNoise, GlassBlur, ImpulseNoise, ShotNoise,
    };
    for (side, rows) in [(28, 16), (96, 4)] {
        for grey in [false, true] {
            let clean = scene(side, side, grey);
            for corruption in Corruption::all() {
                let effects: Vec<f64> = Severity::all()
                    .map(|severity| {
                        let corrupted =
                            (0..rows).map(|row| corruption.apply(&clean, severity, 0, row).unwrap());
                        corrupted.map(|image| difference(&image, &clean)).sum::<f64>() / rows as f64
                    })
                    .collect();
                let context = format!("{corruption} at {side}, grey {grey}: {effects:?}");
                assert!(effects[0] > 0.5, "no effect: {context}");
                match corruption {
                    // Its first two severities move the whole image, the last three its details.
                    ElasticTransform => {
                        assert!(effects[4] > effects[2] && effects[1] > effects[0], "{context}")
                    }
                    GaussianNoise | ShotNoise | ImpulseNoise | Brightness | Contrast => {
                        assert!(effects.is_sorted_by(|a, b| a < b), "{context}");
                    }
                    GlassBlur => {}
                    _ => assert!(effects[4] > effects[0], "{context}"),
                }
            }
        }
    }
}

#[test]
fn the_seed_and_the_row_decide_and_nothing_else_does() {
    use Corruption::{Brightness, Contrast, DefocusBlur, JpegCompression, Pixelate, ZoomBlur};
    let clean = scene(40, 30, false);
    for corruption in Corruption::all() {
        let apply = |seed, row| corruption.apply(&clean, severity(3), seed, row).unwrap();
        assert_eq!(apply(1, 2), apply(1, 2), "{corruption}");
        let fixed = matches!(
            corruption,
            Brightness | Contrast | DefocusBlur | JpegCompression | Pixelate | ZoomBlur
        );
        assert_eq!(apply(1, 2) == apply(2, 2), fixed, "{corruption}: another seed");
        assert_eq!(apply(1, 2) == apply(1, 3), fixed, "{corruption}: another row");
    }
}

#[test]
fn grey_stays_grey_and_any_size_will_do() {
    for (width, height) in [(1, 1), (1, 7), (5, 3), (2, 2), (28, 28), (33, 60)] {
        for grey in [true, false] {
            let clean = scene(width, height, grey);
            for corruption in Corruption::all() {
                for severity in Severity::all() {
                    let corrupted = corruption.apply(&clean, severity, 0, 0).unwrap();
                    assert_eq!(
                        (corrupted.width(), corrupted.height()),
                        (width, height),
                        "{corruption}"
                    );
                    let pixels = corrupted.data().as_chunks::<3>().0;
                    let still_grey = pixels.iter().all(|[r, g, b]| r == g && g == b);
                    assert!(
                        still_grey || !grey,
                        "{corruption} {severity} coloured a grey image"
                    );
                }
            }
        }
    }
}
