//! Whole chains: export, extract, evaluate.

use std::fs;

use macula::extract::FeatureFolder;

use crate::harness::{Workspace, fixture, golden, names};

#[test]
fn export_extract_and_evaluate_a_golden_checkpoint() {
    let w = Workspace::new();
    let checkpoint = golden("official_reg4.safetensors").display().to_string();
    let exported = w.succeeds(&format!(
        "export {checkpoint} --heads 3 --image-size 70 --outputs cls,patch,patch_mean,reg,layer:1.cls --out m.onnx --json"
    ));
    for row in exported.json()["comparisons"].as_array().expect("rows") {
        assert!(row["max_rel"].as_f64().expect("a number") < 1e-5, "{row}");
    }
    w.succeeds("extract --model m.onnx --data sample:test --out onnx --output cls,patch,reg --threads 2");
    w.succeeds(&format!(
        "extract --model {checkpoint} --heads 3 --data sample:test --out candle --output cls,patch,reg --resize 80 --crop 70"
    ));
    let read = |folder: &str, column: &str| {
        let features = FeatureFolder::open(&w.path(folder))
            .expect("complete")
            .read(column)
            .expect("read");
        (features.matrix.into_data(), features.labels)
    };
    for column in ["cls", "patch", "reg"] {
        let (onnx, labels) = read("onnx", column);
        let (candle, _) = read("candle", column);
        assert_eq!(labels.len(), 1000);
        let largest = candle.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = onnx
            .iter()
            .zip(&candle)
            .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-5 * largest, "{column}: {worst} of {largest}");
    }
    let knn = w
        .succeeds("eval knn --train onnx --test onnx --k 1 --json")
        .json();
    assert_eq!(knn["task"], "knn");
    assert_eq!((&knn["n_train"], &knn["n_test"]), (&1000.into(), &1000.into()));
    // Every image is its own nearest neighbour.
    assert_eq!(knn["rows"][0]["top1"], 1.0);
}

#[test]
fn an_export_that_deviates_is_not_written() {
    let w = Workspace::new();
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    w.fails(
        1,
        &format!("export {checkpoint} --heads 3 --out m.onnx --tolerance 1e-12"),
        &["m.onnx", "not written", "deviates"],
    );
    assert!(names(&w.path("")).is_empty());
}

/// As `mpiexec -n 2 macula extract` would start them.
#[test]
fn processes_of_a_launcher_take_a_shard_each() {
    let mut w = Workspace::new();
    w.succeeds("extract --model pixels --data sample:test --out whole");
    w.variable("PMI_SIZE", "2");
    for rank in ["0", "1"] {
        w.variable("PMI_RANK", rank);
        w.succeeds("extract --model pixels --data sample:test --out parts");
    }
    // The one that is asked for counts.
    w.succeeds("extract --model pixels --data sample:test --out other --shard 0/3");
    let folders = |name: &str| {
        let entries = fs::read_dir(w.path(name)).expect("a folder");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("one").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(folders("parts"), ["shard-00000-of-00002", "shard-00001-of-00002"]);
    assert_eq!(folders("other"), ["shard-00000-of-00003"]);
    let read = |name: &str| {
        let folder = FeatureFolder::open(&w.path(name)).expect("complete");
        folder.read("pixels").expect("read")
    };
    assert!(read("parts").matrix == read("whole").matrix);
}

#[test]
fn shards_read_as_one_and_equal_one_run() {
    let w = Workspace::new();
    w.succeeds("extract --model pixels --data sample:test --out whole");
    for shard in ["0/3", "1/3", "2/3"] {
        w.succeeds(&format!(
            "extract --model pixels --data sample:test --out parts --shard {shard}"
        ));
    }
    let read = |name: &str| {
        FeatureFolder::open(&w.path(name))
            .expect("complete")
            .read("pixels")
            .expect("read")
    };
    let (whole, parts) = (read("whole"), read("parts"));
    assert_eq!(whole.rows, parts.rows);
    assert_eq!(whole.labels, parts.labels);
    assert!(whole.matrix == parts.matrix);
    fs::remove_dir_all(w.path("parts/shard-00001-of-00003")).expect("removed");
    w.fails(2, "eval knn --train parts --test whole", &["parts", "shards"]);
}

#[test]
fn gradients_of_pixels_are_a_model_without_a_network() {
    let w = Workspace::new();
    w.succeeds("extract --model hog --data sample:test --out hog");
    let folder = FeatureFolder::open(&w.path("hog")).expect("complete");
    let model = &folder.meta().model;
    assert_eq!((&model["kind"], &model["cell"]), (&"hog".into(), &4.into()));
    // 6 x 6 blocks of 2 x 2 cells with 9 orientations, each block of length 1 or nothing at all.
    let features = folder.read("hog").expect("read").matrix;
    let features = features.view();
    assert_eq!((features.rows(), features.dim()), (1000, 1296));
    for block in features.row(3).chunks_exact(36) {
        let square: f32 = block.iter().map(|value| value * value).sum();
        assert!((square - 1.0).abs() < 1e-4 || square == 0.0, "{square}");
    }
    w.succeeds("extract --model hog:8 --data sample:test --out coarse");
    let coarse = FeatureFolder::open(&w.path("coarse")).expect("complete");
    assert_eq!(coarse.read("hog").expect("read").matrix.view().dim(), 144);
    // Two folders of different cells are not one model's.
    w.fails(2, "eval knn --train hog --test coarse --k 5", &["1296", "144"]);
    let eval = "--train-data sample:train --test-data sample:test";
    let knn = w
        .succeeds(&format!("eval knn --model hog {eval} --k 20 --json"))
        .json();
    let top1 = knn["rows"][0]["top1"].as_f64().expect("a number");
    assert!(top1 > 0.8, "{top1}");
    for (model, words) in [
        ("hog:0", "hog:CELL"),
        ("hog:20", "2 cells a side"),
        ("hog --output cls", "no output `cls`"),
    ] {
        w.fails(
            2,
            &format!("extract --model {model} --data sample:test --out no"),
            &[words],
        );
    }
}

#[test]
fn a_resumed_extraction_equals_an_uninterrupted_one() {
    let w = Workspace::new();
    // Few rows a part, so that the sample has several: 224 x 224 RGB is 0.6 MB an image.
    let extract = "extract --model pixels:rgb --data sample:test --resize 224 --crop 224 --out";
    w.succeeds(&format!("{extract} whole"));
    w.succeeds(&format!("{extract} cut"));
    let parts: Vec<String> = names(&w.path("cut"))
        .into_iter()
        .filter(|n| n.starts_with("part-"))
        .collect();
    assert!(parts.len() > 3, "{parts:?}");
    for name in &parts[2..] {
        fs::remove_file(w.path("cut").join(name)).expect("removed");
    }
    fs::remove_file(w.path("cut/_SUCCESS")).expect("removed");
    w.fails(2, &format!("{extract} cut"), &["cut", "--resume", "--force"]);
    w.succeeds(&format!("{extract} cut --resume"));
    assert_eq!(names(&w.path("cut")), names(&w.path("whole")));
    for name in names(&w.path("whole")) {
        let bytes = |folder: &str| fs::read(w.path(folder).join(&name)).expect("read");
        assert!(bytes("cut") == bytes("whole"), "{name} differs");
    }
}

#[test]
fn fast_decoding_is_close_written_down_and_not_mixed_with_full() {
    let w = Workspace::new();
    fs::create_dir(w.path("photos")).expect("made");
    for name in ["photo.jpg", "exif6.jpg", "rgb.png"] {
        fs::copy(fixture("images").join(name), w.path("photos").join(name)).expect("copied");
    }
    let extract = "extract --model pixels:rgb --data photos --resize 40 --crop 40 --out";
    w.succeeds(&format!("{extract} full"));
    w.succeeds(&format!("{extract} fast --fast-decode"));
    let full = FeatureFolder::open(&w.path("full")).expect("opened");
    let fast = FeatureFolder::open(&w.path("fast")).expect("opened");
    assert!(full.meta().preprocess.get("fast_decode").is_none());
    assert_eq!(fast.meta().preprocess["fast_decode"], true);
    let (full, fast) = (
        full.read("pixels").expect("read"),
        fast.read("pixels").expect("read"),
    );
    let mut equal = 0;
    for row in 0..3 {
        let (a, b) = (full.matrix.view().row(row), fast.matrix.view().row(row));
        let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum() };
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine > 0.995, "{cosine}");
        equal += usize::from(a == b);
    }
    assert_eq!(equal, 1, "only the PNG has the same pixels");
    w.fails(
        2,
        &format!("{extract} full --fast-decode --resume"),
        &["full", "preprocess"],
    );
    let whole = "extract --model pixels:rgb --data photos --resize 0 --crop 40 --out whole --fast-decode";
    w.fails(2, whole, &["--fast-decode", "resized"]);
}

#[test]
fn eval_extracts_first_keeps_the_features_and_takes_them_again() {
    let w = Workspace::new();
    for (class, shade) in [("dark", 20), ("light", 200)] {
        for i in 0..12 {
            w.png(&format!("train/{class}/{i}.png"), 8, 8, shade + i);
            w.png(&format!("test/{class}/{i}.png"), 8, 8, shade + 20 + i);
        }
    }
    let eval = |protocol: &str| {
        w.succeeds(&format!(
            "eval {protocol} --model pixels --train-data train --test-data test"
        ))
    };
    assert!(eval("knn --k 3").stdout.contains("1.0000"));
    let part = w.path("macula-features/pixels/train/part-00000.parquet");
    let written = fs::metadata(&part).expect("kept").modified().expect("a time");
    let again = eval("logreg --c 1");
    assert!(again.stderr.contains("kept there"), "{}", again.stderr);
    assert_eq!(
        fs::metadata(&part).expect("kept").modified().expect("a time"),
        written
    );
    w.fails(
        2,
        "eval knn --k 3 --model pixels --crop 4 --train-data train --test-data test",
        &["macula-features/pixels/train", "other settings", "--force"],
    );
}

#[test]
fn a_network_gives_the_linear_probe_its_last_blocks_and_mean_patch() {
    let w = Workspace::new();
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    let run = w.succeeds(&format!(
        "eval linear-probe --model {checkpoint} --heads 3 --resize 28 --crop 28 --epochs 1 --learning-rates 0.1 \
         --train-data sample:test --test-data sample:test --json"
    ));
    let result = run.json();
    assert_eq!(result["settings"]["column"], "cls,patch_mean");
    assert_eq!(
        result["rows"].as_array().expect("rows").len(),
        2,
        "with and without average pooling"
    );
    assert!(result["rows"][0]["top1"].as_f64().expect("a number") > 0.2);
    assert!(
        result["rows"][1]["top1"].is_null(),
        "only the chosen head is tested"
    );
}

#[test]
fn without_cls_the_last_block_stands_for_it() {
    let w = Workspace::new();
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    let run = w.succeeds(&format!("inspect {checkpoint} --heads 3 --json"));
    let depth = run.json()["config"]["depth"].as_u64().expect("a number");
    w.succeeds(&format!(
        "extract --model {checkpoint} --heads 3 --resize 28 --crop 28 --data sample:test --out f \
         --output layer:0.cls,layer:{}.cls",
        depth - 1
    ));
    let result = w.succeeds("eval knn --train f --test f --k 1 --json").json();
    assert_eq!(result["settings"]["column"], format!("layer:{}.cls", depth - 1));
}

#[test]
fn inspect_says_what_a_file_holds() {
    let w = Workspace::new();
    let inspect = |file: &str| w.succeeds(&format!("inspect {file} --json")).json();
    let checkpoint = inspect(&golden("hf_reg4").display().to_string());
    assert_eq!(
        (&checkpoint["kind"], &checkpoint["config"]["num_registers"]),
        (&"checkpoint".into(), &4.into())
    );
    let official = golden("official_swiglu.pth").display().to_string();
    w.succeeds(&format!(
        "export {official} --heads 3 --image-size dynamic --external-data-over 1000 --out m.onnx"
    ));
    let onnx = inspect("m.onnx");
    let data = onnx["file"]["external_files"][0]
        .as_str()
        .expect("a name")
        .to_owned();
    assert!(data.starts_with("m.onnx.") && data.ends_with(".data"), "{data}");
    assert_eq!(names(&w.path("")), ["m.onnx", data.as_str()]);
    assert_eq!(
        onnx["file"]["inputs"][0],
        "pixel_values [batch, 3, height, width]"
    );
    fs::remove_file(w.path(&data)).expect("removed");
    w.fails(
        2,
        "extract --model m.onnx --data sample:test --out f",
        &["m.onnx"],
    );
    w.two_classes("features", 10, 4);
    assert_eq!(inspect("features")["meta"]["outputs"][0]["name"], "cls");
}

#[test]
fn inspect_lists_the_tensors_of_any_weight_file() {
    let w = Workspace::new();
    let known = golden("checkpoints/lightly_last.ckpt").display().to_string();
    let run = w.succeeds(&format!("inspect {known} --json"));
    let (found, notices) = (run.json(), &run.stderr);
    let teacher = "state_dict.teacher_embedding_model.wrapped_model._model.";
    assert_eq!(found["kind"], "checkpoint");
    assert_eq!(found["prefix"], teacher);
    assert_eq!(found["stored"][format!("{teacher}cls_token")], "f32 [1, 1, 64]");
    for part in [
        &format!("below `{teacher}` is used")[..],
        "heads of 64 are assumed, 1 of them",
    ] {
        assert!(notices.contains(part), "{notices}");
    }
    // A network that is only recognised, and one with a tensor that cannot be rebuilt: listed, with the reason.
    let heads = golden("dino_head.safetensors").display().to_string();
    let found = w.succeeds(&format!("inspect {heads} --json")).json();
    assert_eq!(found["kind"], "weights");
    assert!(
        found["architecture"].is_null() && found["stored"].as_object().is_some_and(|all| !all.is_empty())
    );
    let broken = golden("checkpoints/broken_sparse.pth").display().to_string();
    let text = w.succeeds(&format!("inspect {broken} --heads 1")).stdout;
    for part in [
        "architecture: plain vision transformer",
        "`norm.weight` cannot be rebuilt: it is sparse",
        "stored.norm.weight: not read: it is sparse",
        "stored.cls_token: f32 [1, 1, 8]",
    ] {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
}

#[test]
fn results_are_kept_as_files() {
    let w = Workspace::new();
    w.two_classes("train", 60, 4);
    w.two_classes("test", 20, 4);
    for (protocol, first) in [
        ("knn --k 5", "k"),
        ("logreg --c 0.1,1", "c"),
        ("linear-probe --epochs 2", "head"),
    ] {
        let name = protocol.split(' ').next().expect("a word");
        w.succeeds(&format!("eval {protocol} --train train --test test --out {name}"));
        assert_eq!(
            names(&w.path(name)),
            [
                if name == "knn" {
                    "confusion-k5.csv"
                } else {
                    "confusion.csv"
                },
                "per_class.csv",
                "predictions.parquet",
                "result.json",
                "table.csv",
                "table.md",
                "table.parquet"
            ]
        );
        let text = fs::read_to_string(w.path(name).join("result.json")).expect("a result");
        let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(result["task"], name);
        let row = &result["rows"][0];
        for key in [first, "top1", "top5", "top1_low", "top1_high", "mean_per_class"] {
            assert!(!row[key].is_null(), "{name}: no `{key}` in {row}");
        }
        assert_eq!(row["top1"], 1.0, "{name}: the classes are far apart");
        w.fails(
            2,
            &format!("eval {protocol} --train train --test test --out {name}"),
            &["--force"],
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_result_on_any_number_of_threads() {
    let w = Workspace::new();
    w.succeeds("extract --model pixels --data sample:test --out f");
    for protocol in [
        "knn --k 5,10 --n-per-class 20 --n-tries 3",
        "logreg --c 0.01,1",
        "linear-probe --epochs 2",
    ] {
        let rows = |threads: usize| {
            let run = w.succeeds(&format!(
                "eval {protocol} --train f --test f --threads {threads} --json"
            ));
            run.json()["rows"].clone()
        };
        assert_eq!(rows(1), rows(2), "{protocol}");
    }
}

#[test]
fn a_part_is_filled_by_many_batches() {
    let w = Workspace::new();
    for shade in 0..10 {
        w.png(&format!("images/{shade}.png"), 8, 8, 20 * shade);
    }
    w.succeeds("extract --model pixels --data images --batch 3 --out features");
    let parts: Vec<String> = names(&w.path("features"))
        .into_iter()
        .filter(|name| name.ends_with(".parquet"))
        .collect();
    assert_eq!(parts, ["part-00000.parquet"]);
}
