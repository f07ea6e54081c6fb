//! Numbers at the edge: features that are not finite or too large for their type, images without variance, defaults that do
//! not fit, too many threads.

use std::fs;

use crate::harness::{Workspace, names};

/// Ten black images and one that is not, in two classes.
fn images(w: &Workspace, bright: u8) {
    for i in 0..11u8 {
        let shade = if i == 7 { bright } else { 0 };
        let image = image::RgbImage::from_pixel(6, 4, image::Rgb([0, shade, 0]));
        let path = w.path(&format!("images/{}/{i:02}.png", ["a", "b"][usize::from(i % 2)]));
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        image.save(path).expect("saved");
    }
}

/// Extracting gives one failed row, `b/07.png`, with `words`, under every policy.
fn one_row_fails(w: &Workspace, extract: &str, words: &[&str]) {
    let mut all = vec!["07.png", "output `pixels`", "at place 24 of 72"];
    all.extend(words);
    w.fails(1, &format!("{extract} --out fail"), &all);
    assert_eq!(names(&w.path("fail")), [""; 0], "nothing is left of it");
    for (policy, rows) in [("skip", 10), ("null", 11)] {
        w.succeeds(&format!("{extract} --out {policy} --on-error {policy} --batch 4"));
        let errors = fs::read_to_string(w.path(&format!("{policy}/errors.csv"))).expect("read");
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 2, "{errors}");
        for word in &all {
            assert!(lines[1].contains(word), "expected {word} in {errors}");
        }
        let folder = macula::extract::FeatureFolder::open(&w.path(policy)).expect("opened");
        assert_eq!((folder.n_written(), folder.n_failed()), (10, 1), "{policy}");
        let features = folder.read("pixels").expect("read");
        assert_eq!(
            features.rows,
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 10],
            "folders are in the order of their paths"
        );
        assert!(features.matrix.view().data().iter().all(|value| *value == 0.0));
        assert_eq!(features.n_null, rows - 10);
    }
}

#[test]
fn infinite_features_are_a_failed_row() {
    let w = Workspace::new();
    images(&w, 255);
    // 1 / 1e-39 is beyond f32.
    one_row_fails(
        &w,
        "extract --model pixels --data images --std 1e-39,1e-39,1e-39",
        &["expected finite values, found inf"],
    );
    for layout in ["npy", "safetensors"] {
        w.succeeds(&format!(
            "extract --model pixels --data images --std 1e-39,1e-39,1e-39 --out {layout} --layout {layout} --on-error skip"
        ));
    }
}

#[test]
fn f16_never_overflows_quietly() {
    let w = Workspace::new();
    images(&w, 255);
    let extract = "extract --model pixels --data images --std 1e-5,1e-5,1e-5";
    one_row_fails(
        &w,
        &format!("{extract} --dtype f16"),
        &["values up to 65504 for f16", "found 100000"],
    );
    for layout in ["npy", "safetensors"] {
        w.fails(
            1,
            &format!("{extract} --dtype f16 --layout {layout} --out {layout}"),
            &["07.png", "65504"],
        );
    }
    w.succeeds(&format!("{extract} --out f32"));
    let w = Workspace::new();
    images(&w, 160); // 62,745
    w.succeeds(&format!("{extract} --dtype f16 --out f16"));
}

#[test]
fn features_of_others_that_are_not_finite_are_refused_with_row_and_column() {
    let w = Workspace::new();
    let mut rows: Vec<(Option<&str>, Vec<f32>)> = (0..40)
        .map(|i| {
            let side = if i % 2 == 0 { 1.0 } else { -1.0 };
            (
                Some(if i % 2 == 0 { "a" } else { "b" }),
                vec![side, 0.5, 0.1 * i as f32],
            )
        })
        .collect();
    w.features("good", &rows);
    rows[11].1[2] = f32::NAN;
    rows[30].1[0] = f32::INFINITY;
    w.features("bad", &rows);
    let words = [
        "error: bad: column `cls`",
        "NaN or infinity in 2 of 40 rows",
        "first NaN at place 2 of row 11 (11.png)",
    ];
    for verb in [
        "eval knn --k 3 --train good --test bad",
        "eval linear-probe --train bad --test good",
        "eval logreg --train good --test bad",
        "eval cluster --features bad",
        "eval retrieval --features bad",
        "eval retrieval --query bad --database good",
        "index build --features bad --out i",
        "curate dedup --features bad --out c",
    ] {
        w.fails(2, verb, &words);
    }
}

#[test]
fn knn_uses_the_numbers_of_neighbours_that_fit() {
    let w = Workspace::new();
    let ks = |rows: usize| {
        let name = format!("rows{rows}");
        w.two_classes(&name, rows, 4);
        let run = w.succeeds(&format!("eval knn --train {name} --test {name} --json"));
        let result = run.json();
        let ks: Vec<u64> = result["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row["k"].as_u64().expect("a number"))
            .collect();
        assert_eq!(result["settings"]["ks"], serde_json::json!(ks));
        assert_eq!(
            run.stderr.contains(&format!("as there are {rows} train rows")),
            ks.len() < 4,
            "{}",
            run.stderr
        );
        ks
    };
    assert_eq!(ks(200), [10, 20, 100, 200]);
    assert_eq!(ks(150), [10, 20, 100]);
    assert_eq!(ks(40), [10, 20]);
    assert_eq!(ks(6), [6]);
    // A number that was asked for stays an error.
    w.fails(
        2,
        "eval knn --train rows40 --test rows40 --k 20,41",
        &["41", "40 training rows"],
    );
}

#[test]
fn flat_images_train() {
    let w = Workspace::new();
    for i in 0..16 {
        w.png(&format!("flat/{i}.png"), 32, 32, 128);
    }
    for (name, extra) in [("hog", ""), ("pixels", "--set loss.pixel_weight=1")] {
        w.succeeds(&format!(
            "train --data flat --out {name} --set steps=6 --set batch_size=8 --set crops.local.count=2 --set backbone.embed_dim=32 \
             --set backbone.depth=2 --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 \
             --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64 --set monitor.log_every=1 \
             {extra}"
        ));
        let text = fs::read_to_string(w.path(&format!("{name}/metrics.jsonl"))).expect("read");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 6);
        for line in lines {
            let loss = line["loss"].as_f64().expect("a loss");
            assert!(loss.is_finite() && loss < 1e4, "{name}: {line}");
            assert!(line["grad_norm"].as_f64().is_some_and(f64::is_finite), "{line}");
        }
    }
}

#[test]
fn too_many_threads_are_refused_by_every_verb() {
    let w = Workspace::new();
    w.two_classes("f", 40, 4);
    w.png("images/a/1.png", 8, 8, 10);
    for verb in [
        "demo",
        "train --data images --out r",
        "distill --teacher t.pth --data images --out r",
        "export untrained --arch vit-tiny/14 --out m.onnx",
        "extract --model pixels --data images --out e",
        "eval knn --train f --test f",
        "eval linear-probe --train f --test f",
        "eval logreg --train f --test f",
        "eval cluster --features f",
        "eval retrieval --features f",
        "eval segment --model pixels --train-data images --test-data images",
        "eval depth --model pixels --train-data images --test-data images",
        "eval robustness --model pixels --train-data images --test-data images",
        "eval compare --a f --b f",
        "index build --features f --out i",
        "index query --index i --features f --out o.parquet",
        "index score --index i --features f",
        "curate dedup --features f --out c",
        "curate overlap --features f --against f --out c",
        "curate retrieve --features f --seeds f --out c",
        "curate sample --features f --size 3 --out c",
        "curate quality --data images --out c",
        "report f",
        "viz pca --model pixels --data images --out p.png",
        "viz attention --model pixels --data images --out p.png",
        "viz neighbours --features f --data images --out p.png",
        "viz map --features f --out p.png",
        "bench train --recipe dino",
        "bench extract --model pixels --data images",
        "bench ops",
        "bench products",
        "bench exchange",
    ] {
        let run = w.macula(&format!("{verb} --threads 3000"));
        let last = run.stderr.lines().last().unwrap_or_default();
        assert_eq!(run.code, 2, "{verb}: {}", run.stderr);
        assert!(
            last.contains("--threads") && last.contains("3000"),
            "{verb}: {last}"
        );
    }
}
