//! Images of bands from files to features: trained on, exported, extracted and scored, and what cannot have them refuses.

use std::fs;
use std::path::Path;

use macula::extract::FeatureFolder;
use serde_json::json;

use crate::harness::Workspace;

/// Settings of a run that takes seconds.
const SMALL: &str = "--set steps=4 --set batch_size=8 --set crops.local.count=2 --set backbone.embed_dim=32 --set backbone.depth=2 \
     --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=32 \
     --set loss.head.bottleneck=16 --set loss.head.prototypes=64 --set monitor.log_every=2";

/// Side of the images in pixels.
const SIDE: usize = 28;

/// Sixteen images of `bands` bands in two classes, which differ in their first and last band: values from 0 to 9999, `[H, W, C]`.
fn scenes(bands: usize) -> Vec<(&'static str, usize, Vec<u16>)> {
    let value = |class: usize, number: usize, place: usize| {
        let (pixel, band) = (place / bands, place % bands);
        let bright = if class == 0 { band == 0 } else { band == bands - 1 };
        let noise = (pixel * 37 + number * 101 + band * 53) % 997;
        let level = if bright { 6000 } else { 1000 } + 500 * band.min(4);
        (level + noise) as u16
    };
    let image = |class: usize, number: usize| {
        let values = (0..SIDE * SIDE * bands).map(|place| value(class, number, place));
        (["field", "forest"][class], number, values.collect())
    };
    (0..2)
        .flat_map(|class| (0..8).map(move |number| image(class, number)))
        .collect()
}

/// A TIFF of at least four `bands`, 16-bit samples side by side, low byte first.
fn tiff(bands: u16, samples: &[u16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let directory = 8 + data.len() as u32;
    let behind = directory + 2 + 12 * 10 + 4;
    // Tag, type (3 for 16 bits, 4 for 32), count, value or place.
    let entries: [(u16, u16, u32, u32); 10] = [
        (256, 4, 1, SIDE as u32),
        (257, 4, 1, SIDE as u32),
        (258, 3, bands.into(), behind),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, bands.into()),
        (278, 4, 1, SIDE as u32),
        (279, 4, 1, data.len() as u32),
        (338, 3, u32::from(bands) - 1, behind + 2 * u32::from(bands)),
    ];
    let mut bytes = b"II\x2a\0".to_vec();
    bytes.extend(directory.to_le_bytes());
    bytes.extend(data);
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend((0..bands).flat_map(|_| 16_u16.to_le_bytes()));
    bytes.extend((1..bands).flat_map(|_| 0_u16.to_le_bytes()));
    bytes
}

/// An `.npy` file of version 1.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    header.insert_str(header.len() - 1, &" ".repeat(64 - (header.len() + 10) % 64));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Writes `scenes` as TIFF below `folder`.
fn tiffs(w: &Workspace, folder: &str, bands: u16) {
    for (class, number, values) in scenes(bands.into()) {
        w.write(&format!("{folder}/{class}/{number}.tif"), tiff(bands, &values));
    }
}

/// Writes `scenes` as arrays of f32 from -1 to 1, bands first.
fn arrays(w: &Workspace, folder: &str, bands: usize) {
    for (class, number, values) in scenes(bands) {
        let value = |band: usize, pixel: usize| f32::from(values[pixel * bands + band]) / 5000.0 - 1.0;
        let planes = (0..bands).flat_map(|band| (0..SIDE * SIDE).map(move |pixel| (band, pixel)));
        let data: Vec<u8> = planes
            .flat_map(|(band, pixel)| value(band, pixel).to_le_bytes())
            .collect();
        let shape = format!("({bands}, {SIDE}, {SIDE})");
        w.write(
            &format!("{folder}/{class}/{number}.npy"),
            npy("<f4", &shape, &data),
        );
    }
}

/// Extracts `data` by the run (to `candle`) and by its export (to `onnx`), and fails unless features agree.
fn both_see_the_same(w: &Workspace, data: &str) {
    w.succeeds(&format!("extract --model m.onnx --data {data} --out onnx"));
    w.succeeds(&format!("extract --model run --data {data} --out candle"));
    assert!(apart(&w.column("onnx", "cls"), &w.column("candle", "cls")) < 1e-4);
}

/// Largest difference, as a share of the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0_f32, |most, value| most.max(value.abs()));
    let pairs = a.iter().zip(b);
    pairs.fold(0_f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

fn table(path: &Path) -> toml::Table {
    fs::read_to_string(path).expect("there").parse().expect("TOML")
}

/// The mean and deviation of each band of `scenes`, of values over 10,000.
fn expected_statistics(bands: usize) -> Vec<(f64, f64)> {
    let all: Vec<u16> = scenes(bands)
        .into_iter()
        .flat_map(|(_, _, values)| values)
        .collect();
    let of_band = |band: usize| {
        let values: Vec<f64> = all
            .iter()
            .skip(band)
            .step_by(bands)
            .map(|&value| f64::from(value) / 10_000.0)
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    };
    (0..bands).map(of_band).collect()
}

#[test]
fn a_network_of_five_bands_is_trained_exported_and_scored() {
    let w = Workspace::new();
    tiffs(&w, "scenes", 5);
    w.succeeds(&format!(
        "train --data scenes --bands 5 --sample-range 0,10000 --knn-data scenes --knn-every 2 --out run {SMALL}"
    ));
    let config = table(&w.path("run/config.toml"));
    let loader = &config["data"]["loader"];
    assert_eq!(loader["bands"].as_integer(), Some(5));
    let crops = config["crops"].as_table().expect("a section");
    for (band, (mean, std)) in expected_statistics(5).into_iter().enumerate() {
        for (field, expected) in [("mean", mean), ("std", std)] {
            let found = crops[field][band].as_float().expect("a number");
            assert!(
                (found - expected).abs() < 1e-6,
                "{field} of band {band}: {found} for {expected}"
            );
        }
    }
    assert_eq!(crops["grey"].as_float(), Some(0.0));
    assert_eq!(crops["jitter"]["hue"].as_float(), Some(0.0));

    let exported = w.succeeds("export run --out m.onnx --json").json();
    for row in exported["comparisons"].as_array().expect("rows") {
        assert!(row["max_rel"].as_f64().expect("a number") < 1e-4, "{row}");
    }
    both_see_the_same(&w, "scenes");
    let stated = w.preprocess("onnx");
    assert_eq!(
        (&stated["bands"], &stated["sample_range"]),
        (&json!(5), &json!([0.0, 10000.0]))
    );
    assert_eq!(stated, w.preprocess("candle"));
    let knn = w
        .succeeds("eval knn --model run --train-data scenes --test-data scenes --k 1 --json")
        .json();
    assert_eq!(knn["rows"][0]["top1"], 1.0);

    // f16 is compared on the run's own images.
    w.succeeds("export run --out half.onnx --dtype f16 --compared-images 8");
    // It goes on, alone and from its last checkpoint.
    w.succeeds("train --resume --out run");
    w.succeeds("train --from run --data scenes --out further --set steps=2");
    w.succeeds(&format!(
        "train --from run/teacher.safetensors --bands 5 --sample-range 0,10000 --data scenes --out anew {SMALL}"
    ));
    refusals_of_a_model(&w);
}

/// What a model of five bands cannot do, of images of other bands and with parts that see pictures alone.
fn refusals_of_a_model(w: &Workspace) {
    tiffs(w, "four", 4);
    w.fails(
        1,
        "extract --model m.onnx --data four --out no",
        &["field/0.tif", "expected 5 bands, found 4"],
    );
    w.png("photos/a.png", 28, 28, 100);
    w.fails(
        1,
        "extract --model run --data photos --out no",
        &["a.png", "expected 5 bands, found 3"],
    );
    w.fails(
        1,
        "extract --model run --data sample:test --out no",
        &["expected an image file that bands"],
    );
    w.fails(
        2,
        "extract --model run --data scenes --out no --background 0,0,0",
        &["--background", "expected none with bands"],
    );
    w.fails(
        2,
        "extract --model run --data scenes --out no --mean 0.5,0.5,0.5",
        &["mean: expected 5 numbers, one a band, found 3"],
    );
    let rgb = "expected a model of RGB images, found one of 5 bands";
    for command in [
        "viz pca --model run --data scenes --n 2 --out no.png",
        "serve --model run --port 0",
        "eval robustness --model run --train-data scenes --test-data scenes --corruptions contrast --severities 1",
    ] {
        w.fails(2, command, &[rgb]);
    }
    w.fails(
        2,
        "train --from run --data photos --out no --bands 3",
        &["--bands", "expected the run's own images, 5, found 3"],
    );
    w.fails(
        2,
        "train --from run/teacher.safetensors --data photos --out no",
        &["--from", "expected a network of 3 channels", "found one of 5"],
    );
    w.fails(
        2,
        "distill --teacher run --data scenes --out no",
        &["crops.mean", "expected 3 numbers"],
    );
    assert!(!w.path("no").exists());
}

#[test]
fn floats_with_their_bands_first_need_nothing_said_again() {
    let w = Workspace::new();
    arrays(&w, "arrays", 2);
    w.succeeds(&format!(
        "train --data arrays --bands 2,first --sample-range -1,1 --select rankme --knn-every 2 --out run {SMALL}"
    ));
    w.succeeds("export run --out m.onnx");
    both_see_the_same(&w, "arrays");
    assert_eq!(w.preprocess("onnx")["bands"], json!("2,first"));
    // Beside pictures, an array is no image.
    w.png("arrays/field/a.png", 28, 28, 9);
    let mixed = w.succeeds("extract --model pixels --data arrays --out mixed");
    assert!(mixed.stderr.contains("npy"), "{}", mixed.stderr);
    let rows = FeatureFolder::open(&w.path("mixed")).expect("complete");
    assert_eq!(rows.read("pixels").expect("read").labels.len(), 1);
}

#[test]
fn grey_of_sixteen_bits_is_one_band() {
    let w = Workspace::new();
    for (class, number, values) in scenes(1) {
        let grey: Vec<u16> = values.iter().map(|value| value * 6 + 1000).collect();
        let image = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(SIDE as u32, SIDE as u32, grey);
        let path = w.path(&format!("deep/{class}/{number}.png"));
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        image.expect("fits").save(&path).expect("written");
    }
    w.succeeds(&format!(
        "train --data deep --bands 1 --sample-range auto --out run {SMALL}"
    ));
    w.succeeds("export run --out m.onnx");
    both_see_the_same(&w, "deep");
}

#[test]
fn what_cannot_be_bands_is_said_in_one_line() {
    let w = Workspace::new();
    tiffs(&w, "scenes", 5);
    let train = |rest: &str| format!("train --data scenes --out no {rest}");
    w.fails(
        2,
        &train("--bands 4 --sample-range 0,10000"),
        &["scenes/field/0.tif", "TIFF image: expected 4 bands, found 5"],
    );
    w.fails(
        2,
        &train("--bands 5"),
        &[
            "scenes/field/0.tif",
            "samples of 16 bits need a range",
            "--sample-range",
        ],
    );
    w.fails(2, &train("--bands 0"), &["--bands", "expected 1 to 1024 bands"]);
    let five = "--bands 5 --sample-range 0,10000";
    w.fails(
        2,
        &train(&format!("{five} --set crops.grey=0.2")),
        &["crops.grey: expected 0 with bands"],
    );
    w.fails(
        2,
        &train(&format!("{five} --set data.loader.crops_on=gpu")),
        &["data.loader.crops_on: expected cpu with bands"],
    );
    w.fails(
        2,
        &train(&format!("{five} --background 0,0,0")),
        &["background", "expected none with bands"],
    );
    w.fails(
        2,
        "train --data sample:train --bands 1 --out no",
        &["expected an image file that bands are read from"],
    );
    // One that is not finite is passed over in training and named, and ends an extraction.
    arrays(&w, "arrays", 2);
    let mut data = vec![0; 2 * SIDE * SIDE * 4];
    data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    w.write(
        "arrays/field/0.npy",
        npy("<f4", &format!("(2, {SIDE}, {SIDE})"), &data),
    );
    let run = w.succeeds(&format!(
        "train --data arrays --bands 2,first --sample-range -1,1 --out run {SMALL}"
    ));
    let not_finite = "field/0.npy: npy image: expected finite samples, found NaN in band 0, row 0, column 0";
    assert!(run.stderr.contains(not_finite), "{}", run.stderr);
    w.fails(1, "extract --model run --data arrays --out no", &[not_finite]);
    w.fails(
        2,
        "extract --model pixels --data arrays --out no",
        &["arrays/", "an array, not a picture", "--bands"],
    );
    assert!(!w.path("no").exists());
}
