//! Comparison with Pillow and torchvision on the files of `tests/fixtures`, and every way an input can be bad.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;

use super::*;

/// Largest difference that lossy WebP and JPEG within TIFF may have from Pillow's decoder: decoders round differently.
const LOSSY_LEVELS: u8 = 3;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn decode_file(name: &str) -> Result<RgbImage, DecodeError> {
    decode(&fs::read(fixture(name)).unwrap(), &DecodeOptions::default())
}

/// The largest difference between two images of the same size.
fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// The mean difference between two images of the same size.
fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    let total: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    total as f64 / a.len() as f64
}

fn allowed(name: &str) -> u8 {
    match name {
        "jpeg.tif" | "jpeg_grey.tif" | "lossy.webp" | "alpha_lossy.webp" => LOSSY_LEVELS,
        "ycbcr.tif" => 1,
        _ => 0,
    }
}

#[test]
fn every_format_decodes_as_pillow_does() {
    let bytes = fs::read(fixture("formats.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = expected.names();
    names.sort_unstable();
    assert!(names.len() > 80, "{}", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let pillow = expected.tensor(name).unwrap();
        let size = [pillow.shape()[1] as u32, pillow.shape()[0] as u32];
        match decode_file(&format!("formats/{name}")) {
            Ok(image) if [image.width(), image.height()] != size => {
                wrong.push(format!(
                    "{name}: {}x{} for {size:?}",
                    image.width(),
                    image.height()
                ));
            }
            Ok(image) => {
                let difference = largest_difference(image.data(), pillow.data());
                let mean = mean_difference(image.data(), pillow.data());
                // A one-pixel or three-row image is all edge.
                if difference > allowed(name) || mean > 0.5 && image.height() > 3 {
                    wrong.push(format!(
                        "{name}: differs by {difference} at most, {mean:.2} on average"
                    ));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} files differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_background_shows_through_as_in_pillow() {
    let bytes = fs::read(fixture("background.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert!(expected.len() > 15, "{}", expected.len());
    let options = DecodeOptions {
        background: Some([200, 17, 90]),
        ..DecodeOptions::default()
    };
    let mut wrong = Vec::new();
    for file in fs::read_dir(fixture("formats")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        let laid = decode(&bytes, &options).unwrap();
        let pillow = match expected.tensor(&name) {
            Ok(pillow) => pillow.data().to_vec(),
            // Nothing to see through.
            Err(_) => decode(&bytes, &DecodeOptions::default()).unwrap().into_data(),
        };
        let difference = largest_difference(laid.data(), &pillow);
        if difference > allowed(&name) || laid.data().len() != pillow.len() {
            wrong.push(format!("{name}: {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn resizes_are_pillows_to_the_bit() {
    let image = decode_file("images/rgb.png").unwrap();
    let bytes = fs::read(fixture("resize.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for (key, pillow) in expected.tensors() {
        let parts: Vec<&str> = key.split('.').collect();
        let numbers = |text: &str, by: char| text.split(by).map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        let (corners, size) = (numbers(parts[1], ','), numbers(parts[2], 'x'));
        let filter = match parts[0] {
            "bilinear" => Interpolation::Bilinear,
            _ => Interpolation::Bicubic,
        };
        let (width, height) = (corners[2] - corners[0], corners[3] - corners[1]);
        let part = image.view().crop(corners[0], corners[1], width, height).unwrap();
        let resized = resize(&part, size[0], size[1], filter).unwrap();
        assert!(resized.data() == pillow.data(), "{key}");
    }
}

#[test]
fn preprocessing_is_torchvisions() {
    let bytes = fs::read(fixture("preprocess.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for (key, wanted) in expected.tensors() {
        let (settings, file) = key.split_once('.').unwrap();
        let (resize, crop) = settings[1..].split_once('c').unwrap();
        let preprocess = Preprocess::imagenet(resize.parse().unwrap(), crop.parse().unwrap());
        let image = decode_file(&format!("images/{file}")).unwrap();
        let pixels = preprocess.pixels(&image).unwrap();
        assert_eq!(
            [pixels.height() as usize, pixels.width() as usize, 3],
            wanted.shape()
        );
        assert!(pixels.data() == wanted.data(), "{key}");
        seen += 1;
    }
    assert_eq!(seen, 20);
}

#[test]
fn exif_orientation_is_applied_on_request_only() {
    let bytes = fs::read(fixture("images/exif6.jpg")).unwrap();
    let stored = decode(&bytes, &DecodeOptions::default()).unwrap();
    assert_eq!((stored.width(), stored.height()), (120, 80));
    let options = DecodeOptions {
        exif: true,
        ..DecodeOptions::default()
    };
    let turned = decode(&bytes, &options).unwrap();
    assert_eq!((turned.width(), turned.height()), (80, 120));
    // Orientation 6: the stored left bottom is the upright left top.
    assert_eq!(turned.pixel(0, 0), stored.pixel(0, 79));
    assert_eq!(turned.pixel(79, 0), stored.pixel(0, 0));
}

#[test]
fn small_decoding_keeps_sizes_orientation_and_refusals() {
    let options = DecodeOptions {
        exif: true,
        jpeg_shorter_side: Some(20),
        ..DecodeOptions::default()
    };
    let bytes = fs::read(fixture("images/exif6.jpg")).unwrap();
    let turned = decode(&bytes, &options).unwrap();
    assert_eq!((turned.width(), turned.height()), (20, 30));
    let cut = decode(&bytes[..bytes.len() - 9], &options).unwrap_err();
    assert!(cut.to_string().contains("cut short"), "{cut}");
    let strict = DecodeOptions {
        max_pixels: 1_000,
        ..options
    };
    assert!(matches!(
        decode(&bytes, &strict),
        Err(DecodeError::TooLarge { width: 120, .. })
    ));
}

/// A PNG that says it is `width` x `height` pixels and holds next to nothing.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut png = fs::read(fixture("formats/rgb16.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    png
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let error = decode(&bomb(20_000, 20_000), &DecodeOptions::default()).unwrap_err();
    assert!(
        matches!(error, DecodeError::TooLarge { width: 20_000, .. }),
        "{error}"
    );
    assert!(decode(&bomb(u32::MAX >> 1, u32::MAX >> 1), &DecodeOptions::default()).is_err());
    let strict = DecodeOptions {
        max_pixels: 37 * 29 - 1,
        ..DecodeOptions::default()
    };
    for file in fs::read_dir(fixture("formats")).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let image = decode(&bytes, &DecodeOptions::default()).unwrap();
        let result = decode(&bytes, &strict);
        let too_large = matches!(result, Err(DecodeError::TooLarge { .. }));
        assert_eq!(
            too_large,
            image.width() * image.height() >= 37 * 29,
            "{}: {result:?}",
            path.display()
        );
    }
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let photo = fs::read(fixture("images/photo.jpg")).unwrap();
    assert_eq!(decode(&[], &DecodeOptions::default()), Err(DecodeError::Empty));
    assert_eq!(
        decode(b"hello, world\n", &DecodeOptions::default()),
        Err(DecodeError::UnknownFormat)
    );
    for end in [3, 100, photo.len() / 2, photo.len() - 1] {
        let error = decode(&photo[..end], &DecodeOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("JPEG image: cut short"), "{error}");
    }
}

/// What [`decode`] answers where a codec panicked: it catches that, so that one file cannot end a run.
const GAVE_UP: &str = "the decoder gave up on damaged data";

/// Decodes damaged bytes: an image of the pixels it says, or an error of one line. The codec must not have panicked.
fn decode_damaged(bytes: &[u8], options: &DecodeOptions, context: &str) -> Result<RgbImage, DecodeError> {
    let result = decode(bytes, options);
    match &result {
        Ok(image) => assert_eq!(
            image.data().len(),
            image.width() as usize * image.height() as usize * 3,
            "{context}"
        ),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{context}: {line}");
            assert!(!line.contains(GAVE_UP), "{context}: a panic, caught");
        }
    }
    result
}

/// Every fixture cut at many places, and with bytes overwritten: an error or an image, never a panic, caught or not, and never an
/// image from a file that lost a tenth of its bytes.
#[test]
fn no_damage_is_a_crash() {
    for file in fs::read_dir(fixture("formats")).unwrap() {
        let path = file.unwrap().path();
        let name = path.display().to_string();
        let is_gif = name.ends_with(".gif"); // may hold frames that are not read
        let whole = fs::read(&path).unwrap();
        for cut in 0..20 {
            let end = whole.len() * cut / 20;
            let context = format!("{name}: {end} of {} bytes", whole.len());
            let result = decode_damaged(&whole[..end], &DecodeOptions::default(), &context);
            assert!(result.is_err() || cut >= 18 || is_gif, "{context}: decoded");
        }
        for step in 0..40 {
            let mut damaged = whole.clone();
            let at = whole.len() * step / 40;
            let end = whole.len().min(at + 1 + step % 5);
            damaged[at..end].fill([0xFF, 0x00, 0x7F][step % 3]);
            let small = DecodeOptions {
                jpeg_shorter_side: Some(5),
                ..DecodeOptions::default()
            };
            for options in [DecodeOptions::default(), small] {
                // Either may come of it.
                let context = format!("{name}: bytes {at} to {end} overwritten");
                decode_damaged(&damaged, &options, &context).ok();
            }
        }
    }
}

#[test]
fn wide_samples_become_what_their_range_says() {
    let bytes = fs::read(fixture("ranges.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let lost: std::collections::BTreeMap<String, bool> = serde_json::from_str(&metadata["lost"]).unwrap();
    assert!(expected.len() > 40, "{}", expected.len());
    let mut wrong = Vec::new();
    for (key, wanted) in expected.tensors() {
        let at = key.rfind(".tif.").or(key.rfind(".png.")).unwrap() + 4;
        let options = DecodeOptions {
            sample_range: key[at + 1..].parse().unwrap(),
            ..DecodeOptions::default()
        };
        let file = fs::read(fixture("ranges").join(&key[..at])).unwrap();
        let mut mostly = false;
        let image = decode::decode_counting(&file, &options, &mut mostly).unwrap();
        if image.data() != wanted.data() {
            wrong.push(format!(
                "{key}: differs by {}",
                largest_difference(image.data(), wanted.data())
            ));
        }
        if let Some(lost) = lost.get(&key)
            && mostly != *lost
        {
            wrong.push(format!("{key}: most of it is said to be lost: {mostly}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_range_leaves_images_of_8_bits_alone_and_takes_what_pillow_cannot() {
    let options = DecodeOptions {
        sample_range: "10,90".parse().unwrap(),
        ..DecodeOptions::default()
    };
    for name in [
        "formats/grey8.png",
        "formats/rgb.tif",
        "formats/420.jpg",
        "formats/palette4.tif",
        "formats/grey4.tif",
        "formats/cmyk16.tif",
        "images/rgba.png",
    ] {
        let file = fs::read(fixture(name)).unwrap();
        let plain = decode(&file, &DecodeOptions::default());
        assert_eq!(decode(&file, &options), plain, "{name}");
    }
    let error = decode_file("ranges/rgb_float32.tif").unwrap_err().to_string();
    assert!(error.contains("32 bits need --sample-range"), "{error}");
}

#[test]
fn alpha_has_the_whole_range_of_its_type_whatever_colours_have() {
    let file = fs::read(fixture("ranges/greya16.png")).unwrap();
    let of = |range: &str, background| {
        let options = DecodeOptions {
            sample_range: range.parse().unwrap(),
            background,
            ..DecodeOptions::default()
        };
        decode(&file, &options).unwrap().into_data()
    };
    // Colours that are all white show the alpha: white over black.
    let alpha = of("-2,-1", Some([0; 3]));
    assert_eq!(of("-2,-1", None), [255; 13 * 7 * 3]);
    let auto = of("-9,-8", Some([0; 3]));
    assert_eq!(alpha, auto);
    assert!(alpha.iter().any(|&a| a < 100) && alpha.iter().any(|&a| a > 150));
}
