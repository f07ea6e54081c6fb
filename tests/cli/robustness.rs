//! Errors on corrupted test images, against a baseline, and what is refused.

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::harness::{Workspace, names};

/// `n` images a class in folders `NAME/bright` and `NAME/dark`, 16 x 16 pixels: a light or a less light square on black,
/// which brightness and contrast can make alike and blur cannot.
fn two_classes(w: &Workspace, name: &str, n: u32) {
    for (class, shade) in [("bright", 200), ("dark", 90)] {
        std::fs::create_dir_all(w.path(&format!("{name}/{class}"))).expect("created");
        for i in 0..n {
            let inside = |v: u32| (3 + i % 3..12).contains(&v);
            let pixel = |x, y| {
                Rgb([if inside(x) && inside(y) {
                    shade + (i % 7) as u8 * 3
                } else {
                    20
                }; 3])
            };
            let path = w.path(&format!("{name}/{class}/{i}.png"));
            RgbImage::from_fn(16, 16, pixel).save(path).expect("saved");
        }
    }
}

fn row<'a>(result: &'a Value, corruption: &str) -> &'a Value {
    let rows = result["rows"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["corruption"] == corruption);
    found.unwrap_or_else(|| panic!("no {corruption} in {result}"))
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

const DATA: &str = "eval robustness --train-data train --test-data test --bootstrap-resamples 50";

#[test]
fn errors_under_corruption_are_counted_and_held_against_a_baseline() {
    let w = Workspace::new();
    two_classes(&w, "train", 12);
    two_classes(&w, "test", 8);
    let eval =
        format!("{DATA} --model pixels --k 3 --json --corruptions defocus_blur,contrast,gaussian_noise");
    let run = w.succeeds(&format!(
        "{eval} --severities 5,1 --out r/first --pictures all.png"
    ));
    let first = run.json();
    let order: Vec<&str> = first["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["corruption"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        order,
        ["clean", "gaussian_noise", "defocus_blur", "contrast", "mean"]
    );
    assert_eq!(
        (&first["task"], &first["n_train"], &first["n_test"]),
        (&json!("robustness"), &json!(24), &json!(16))
    );
    assert_eq!(number(row(&first, "clean"), "error"), 0.0);
    // A blurred square is still there; without contrast both classes are one.
    assert_eq!(number(row(&first, "defocus_blur"), "severity_1"), 0.0);
    assert!(number(row(&first, "contrast"), "severity_5") >= 0.4, "{first}");
    for one in first["rows"].as_array().expect("rows") {
        let [low, error, high] = ["error_low", "error", "error_high"].map(|key| number(one, key));
        assert!(low <= error && error <= high && one["ce"].is_null(), "{one}");
    }
    let contrast = row(&first, "contrast");
    let mean = (number(contrast, "severity_1") + number(contrast, "severity_5")) / 2.0;
    assert!((number(contrast, "error") - mean).abs() < 1e-12);
    assert_eq!(
        names(&w.path("r/first")),
        ["result.json", "table.csv", "table.md", "table.parquet"]
    );
    let picture = image::open(w.path("all.png")).expect("a picture");
    assert!(picture.width() > 3 * 112 && picture.height() > 3 * 112);
    w.fails(2, &format!("{eval} --out r/first"), &["result.json", "--force"]);
    w.fails(2, &format!("{eval} --pictures all.png"), &["all.png", "--force"]);

    // Neither threads nor batches nor the other corruptions change an error.
    let alone = format!("{DATA} --model pixels --k 3 --json --corruptions gaussian_noise --severities 1,5");
    let alone = w.succeeds(&format!("{alone} --threads 1 --batch 3")).json();
    assert_eq!(row(&alone, "gaussian_noise"), row(&first, "gaussian_noise"));

    // The same model has CE 1 wherever it errs at all; a coarser one has its own.
    let with_baseline = format!("{eval} --severities 1,5 --baseline r/first/result.json");
    let same = w.succeeds(&with_baseline).json();
    assert_eq!(
        (
            number(row(&same, "contrast"), "ce"),
            number(row(&same, "contrast"), "relative_ce")
        ),
        (1.0, 1.0)
    );
    let coarse = w
        .succeeds(&format!("{with_baseline} --resize 4 --crop 4 --out r/coarse"))
        .json();
    let ratio = number(row(&coarse, "contrast"), "error") / number(contrast, "error");
    assert!(
        (number(row(&coarse, "contrast"), "ce") - ratio).abs() < 1e-12,
        "{coarse}"
    );
    assert_eq!(
        coarse["settings"]["baseline"]["model"],
        first["settings"]["model"]
    );

    let refused = [
        ("--test-data test --k 3 --severities 1", "severities"),
        ("--test-data test --k 5 --severities 1,5", "classifier"),
        (
            "--test-data test --k 3 --severities 1,5 --max-test 9",
            "test rows",
        ),
        ("--test-data train --k 3 --severities 1,5", "test rows"),
        (
            "--test-data test --k 3 --severities 1,5 --corruptions fog",
            "corruptions",
        ),
    ];
    for (other, word) in refused {
        let mut arguments =
            format!("eval robustness --model pixels --train-data train {other} --baseline r/first");
        if !other.contains("--corruptions") {
            arguments += " --corruptions defocus_blur,contrast,gaussian_noise";
        }
        w.fails(
            2,
            &arguments,
            &["--baseline", "r/first", word, "expected", "found"],
        );
    }
    w.fails(
        2,
        &format!("{eval} --baseline nowhere"),
        &["--baseline", "nowhere"],
    );

    let report = w.succeeds("report full=r/first coarse=r/coarse --json").json();
    let shown: Vec<&Value> = report["rows"].as_array().expect("rows").iter().collect();
    let of = |model: &str, metric: &str| {
        shown
            .iter()
            .find(|row| row["model"] == model && row["metric"] == metric)
    };
    let error = of("full", "mean error").unwrap_or_else(|| panic!("{report}"));
    assert_eq!(number(error, "value"), number(row(&first, "mean"), "error"));
}

#[test]
fn logistic_regression_and_a_part_of_the_test_images() {
    let w = Workspace::new();
    two_classes(&w, "train", 20);
    two_classes(&w, "test", 8);
    let eval = format!(
        "{DATA} --model pixels --classifier logreg --corruptions brightness,frost --severities 1,5 --json"
    );
    let few = w.succeeds(&format!("{eval} --max-test 6")).json();
    assert_eq!(few["n_test"], 6);
    assert_eq!(few["settings"]["classifier"]["kind"], "logreg");
    assert!(few["settings"]["c"].as_f64().expect("the chosen C") > 0.0);
    assert_eq!(number(row(&few, "clean"), "error"), 0.0);
    // Light raised by half makes what was dark bright.
    let all = w.succeeds(&eval).json();
    assert!(number(row(&all, "brightness"), "severity_5") >= 0.4, "{all}");
    assert_ne!(
        few["settings"]["test_rows_sha256"],
        all["settings"]["test_rows_sha256"]
    );
    w.fails(2, &format!("{eval} --max-test 0"), &["--max-test", "found 0"]);
}

#[test]
fn what_makes_no_sense_is_named() {
    let w = Workspace::new();
    two_classes(&w, "train", 3);
    two_classes(&w, "test", 2);
    let eval = format!("{DATA} --model pixels --k 2");
    w.fails(
        2,
        &format!("{eval} --corruptions fog,rain"),
        &["--corruptions", "jpeg_compression", "`rain`"],
    );
    for wrong in ["0", "6", "1,x"] {
        w.fails(
            2,
            &format!("{eval} --severities {wrong}"),
            &["--severities", "1 to 5"],
        );
    }
    w.fails(
        2,
        &format!("{DATA} --model pixels --k 20"),
        &["--k", "6 training rows", "20"],
    );
    w.fails(2, &format!("{DATA} --model pixels --k 0"), &["k"]);
    w.fails(
        2,
        &format!("{DATA} --model nowhere.onnx --k 2"),
        &["nowhere.onnx"],
    );

    w.write("unlabelled.csv", "path\ntest/dark/0.png\n");
    let other = |list: &str| eval.replace("--test-data test", &format!("--test-data {list}"));
    w.fails(
        2,
        &other("unlabelled.csv"),
        &["--test-data", "unlabelled.csv", "label", "0.png"],
    );
    w.write(
        "strange.csv",
        "path,label\ntest/dark/0.png,dark\ntest/dark/1.png,grey\n",
    );
    w.fails(2, &other("strange.csv"), &["--test-data", "`grey`", "1.png"]);

    // A row that cannot be read is left out of every condition, where that is asked for.
    w.write("test/dark/9.png", "no image");
    let quick = format!("{eval} --corruptions contrast --severities 2 --json");
    w.fails(1, &quick, &["9.png"]);
    assert_eq!(
        w.succeeds(&format!("{quick} --on-error skip")).json()["n_test"],
        4
    );
}
