//! What images are before a network sees them: samples of more than 8 bits, and preprocessing that files state.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Run, Workspace, fixture, golden};

/// Lines of stderr that speak of saturation.
fn notices(run: &Run) -> Vec<&str> {
    run.stderr
        .lines()
        .filter(|line| line.contains("saturate"))
        .collect()
}

/// A folder of three images of 13 x 7 pixels: two that saturate, one of 8 bits.
fn deep_images(w: &Workspace) {
    for name in ["grey12in16.png", "uint16.tif"] {
        w.write(
            &format!("deep/{name}"),
            fs::read(fixture("ranges").join(name)).expect("there"),
        );
    }
    let plain = image::RgbImage::from_pixel(13, 7, image::Rgb([200, 100, 50]));
    plain.save(w.path("deep/plain.png")).expect("written");
}

#[test]
fn images_that_saturate_are_counted_once_and_a_range_is_recorded() {
    let w = Workspace::new();
    deep_images(&w);
    let clipped = w.succeeds("extract --model pixels:rgb --data deep --out clipped");
    let [notice] = notices(&clipped)[..] else {
        panic!("{}", clipped.stderr);
    };
    assert!(
        notice.starts_with("warning: ") && notice.contains("2 images"),
        "{notice}"
    );
    assert!(
        notice.contains("grey12in16.png") && notice.contains("--sample-range"),
        "{notice}"
    );
    assert_eq!(w.preprocess("clipped").get("sample_range"), None);

    let auto = w.succeeds("extract --model pixels:rgb --data deep --out auto --sample-range auto");
    assert_eq!(notices(&auto), [""; 0]);
    assert_eq!(w.preprocess("auto")["sample_range"], "auto");
    let narrow = w.succeeds("extract --model pixels:rgb --data deep --out narrow --sample-range 0,100");
    assert!(notices(&narrow)[0].contains("2 images"), "{}", narrow.stderr);
    assert_eq!(w.preprocess("narrow")["sample_range"], json!([0.0, 100.0]));
    // The image of 8 bits is the same in all; the others are not.
    let (clipped, auto) = (w.column("clipped", "pixels"), w.column("auto", "pixels"));
    let of = |all: &[f32], row: usize| all[row * 273..(row + 1) * 273].to_vec();
    assert_eq!(of(&clipped, 1), of(&auto, 1));
    assert_ne!(of(&clipped, 0), of(&auto, 0));

    // One file that Pillow reads as black or white, alone; a failed run says it too, before its error.
    w.write(
        "one/a.tif",
        fs::read(fixture("ranges/float32.tif")).expect("there"),
    );
    w.write("one/b.png", "no image");
    let failed = w.macula("extract --model pixels:rgb --crop 7 --data one --out failed");
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert!(notices(&failed)[0].contains("1 image "), "{}", failed.stderr);
    w.fails(
        2,
        "extract --model pixels --data deep --out no --sample-range 9,1",
        &["--sample-range", "LOW,HIGH", "9,1"],
    );
    w.fails(
        2,
        "extract --model pixels --data deep --out no --sample-range full",
        &["auto", "full"],
    );
}

#[test]
fn a_range_goes_from_training_into_the_model_and_from_there_into_extraction() {
    let w = Workspace::new();
    for row in 0..12 {
        let level = |x: u32, y: u32| image::Luma([((x * 7 + y * 11 + row * 5) % 40 * 100) as u16]);
        let deep = image::ImageBuffer::from_fn(28, 28, level);
        fs::create_dir_all(w.path("deep")).expect("created");
        deep.save(w.path(&format!("deep/{row:02}.png"))).expect("written");
    }
    let settings = "--set steps=2 --set batch_size=4 --set backbone.embed_dim=32 --set backbone.depth=2 \
                    --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 \
                    --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64";
    let dry = w.succeeds(&format!(
        "train --data deep --out run {settings} --dry-run --sample-range 0,4000"
    ));
    assert!(
        dry.stdout.contains("sample_range = [0.0, 4000.0]"),
        "{}",
        dry.stdout
    );
    let trained = w.succeeds(&format!(
        "train --data deep --out run {settings} --sample-range 0,4000"
    ));
    assert_eq!(notices(&trained), [""; 0], "{}", trained.stderr);
    let config = fs::read_to_string(w.path("run/config.toml")).expect("written");
    assert!(config.contains("sample_range = [0.0, 4000.0]"), "{config}");
    let warned = w.succeeds(&format!("train --data deep --out clipped {settings}"));
    assert!(notices(&warned)[0].contains("00.png"), "{}", warned.stderr);

    w.succeeds("extract --model run --data deep --out own --output patch_mean");
    assert_eq!(w.preprocess("own")["sample_range"], json!([0.0, 4000.0]));
    w.succeeds("export run --out m.onnx");
    w.succeeds("extract --model m.onnx --data deep --out onnx --output patch_mean");
    assert_eq!(w.preprocess("onnx")["sample_range"], json!([0.0, 4000.0]));
    let clipped =
        w.succeeds("extract --model m.onnx --data deep --out other --output patch_mean --sample-range clip");
    assert_eq!(w.preprocess("other").get("sample_range"), None);
    assert!(notices(&clipped)[0].contains("12 images"), "{}", clipped.stderr);
    let read = |folder: &str| w.column(folder, "patch_mean");
    let (own, onnx, other) = (read("own"), read("onnx"), read("other"));
    let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst(&own, &onnx) < 1e-3 && worst(&onnx, &other) > 1e-2);
}

/// A Hugging Face folder of the golden checkpoint with a processor beside it.
fn hugging_face(w: &Workspace, processor: &Value) {
    let folder = golden("hf_plain");
    for file in fs::read_dir(&folder).expect("the golden folder") {
        let file = file.expect("listed").path();
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        w.write(&format!("hf/{name}"), fs::read(&file).expect("read"));
    }
    w.write("hf/preprocessor_config.json", processor.to_string());
}

#[test]
fn what_lies_beside_a_checkpoint_is_used_written_into_the_export_and_overridden_by_flags() {
    let w = Workspace::new();
    let mut processor = json!({
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 49}, "crop_size": {"height": 42, "width": 42}, "resample": 2,
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
    });
    hugging_face(&w, &processor);
    let expected = json!({
        "resize": 49, "crop": [42, 42], "crop_start": "down", "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    });
    let same = |found: &Value| {
        let text = |value: &Value| -> Vec<String> {
            let fields = value.as_object().expect("an object").iter();
            let short = |value: &Value| match value.as_f64() {
                Some(number) => format!("{number:.4}"),
                None => value.to_string(),
            };
            let flat = |(key, value): (&String, &Value)| match value.as_array() {
                Some(list) => format!("{key} {:?}", list.iter().map(short).collect::<Vec<_>>()),
                None => format!("{key} {}", short(value)),
            };
            let mut fields: Vec<String> = fields.map(flat).collect();
            fields.sort();
            fields
        };
        assert_eq!(text(found), text(&expected));
    };
    let run = w.succeeds("extract --model hf --data sample:test --shard 0/100 --out candle");
    same(&preprocess_of_shard(&w, "candle"));
    assert!(
        run.stderr
            .contains("preprocessing from hf/preprocessor_config.json: "),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("assumed"), "{}", run.stderr);
    w.succeeds("export hf --out m.onnx");
    w.succeeds("extract --model m.onnx --data sample:test --shard 0/100 --out onnx");
    same(&preprocess_of_shard(&w, "onnx"));
    w.succeeds("extract --model hf --data sample:test --shard 0/100 --out other --crop 28 --mean 0,0,0");
    let other = preprocess_of_shard(&w, "other");
    assert_eq!(
        (&other["crop"], &other["mean"]),
        (&json!([28, 28]), &json!([0.0, 0.0, 0.0]))
    );
    assert_eq!(other["resize"], 49);

    processor["resample"] = json!(0);
    hugging_face(&w, &processor);
    w.fails(
        2,
        "extract --model hf --data sample:test --out no",
        &[
            "hf/preprocessor_config.json: resample",
            "found 0",
            "--interpolation",
        ],
    );
    w.succeeds("extract --model hf --data sample:test --shard 0/100 --out filter --interpolation bicubic");

    // Nothing states anything: said, for a checkpoint as for an ONNX file, unless flags give it all.
    fs::remove_file(w.path("hf/preprocessor_config.json")).expect("removed");
    let run = w.succeeds("extract --model hf --data sample:test --shard 0/100 --out assumed");
    let assumed = run
        .stderr
        .lines()
        .filter(|line| line.contains("ImageNet's preprocessing is assumed"));
    assert_eq!(assumed.count(), 1, "{}", run.stderr);
    let given = "--resize 42 --crop 42 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5";
    let run = w.succeeds(&format!(
        "extract --model hf --data sample:test --shard 0/100 --out given {given}"
    ));
    assert!(!run.stderr.contains("assumed"), "{}", run.stderr);
    fs::copy(fixture("onnx/hidden_state.onnx"), w.path("foreign.onnx")).expect("copied");
    let run =
        w.succeeds("extract --model foreign.onnx --crop 28 --data sample:test --shard 0/100 --out foreign");
    assert!(
        run.stderr.contains("ImageNet's preprocessing is assumed"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("cls is the class token (first of 5) of last_hidden_state"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("there is last_hidden_state, pooler_output, image_embeds"),
        "{}",
        run.stderr
    );
    // An output that was asked for and is the file's own needs no word; one that was not asked for and is no class token does.
    let run = w.succeeds(
        "extract --model foreign.onnx --crop 28 --data sample:test --shard 0/100 --out named --output pooler_output",
    );
    assert!(!run.stderr.contains("taking output"), "{}", run.stderr);
    fs::copy(fixture("onnx/hidden_state_patches.onnx"), w.path("patches.onnx")).expect("copied");
    let run =
        w.succeeds("extract --model patches.onnx --crop 28 --data sample:test --shard 0/100 --out patches");
    assert!(
        run.stderr
            .contains("taking output patch_mean; there is last_hidden_state, which --output names"),
        "{}",
        run.stderr
    );
}

fn preprocess_of_shard(w: &Workspace, folder: &str) -> Value {
    let path = w.path(folder).join("shard-00000-of-00100");
    let meta = fs::read_to_string(Path::new(&path).join("meta.json")).expect("written");
    serde_json::from_str::<Value>(&meta).expect("JSON")["preprocess"].clone()
}
