//! Protocols that linfa carries: support vector machines on few rows, mixtures of Gaussians, clusters by density; and those that
//! vectors of texts are given to: zero-shot classification, images and captions. All of them into a report.

use std::fs;

use macula::tables;

use crate::harness::{Workspace, fixture};

#[test]
fn machines_on_few_rows() {
    let w = Workspace::new();
    w.two_classes("train", 60, 4);
    w.two_classes("test", 40, 4);
    let run = "eval svm --train train --test test --n-per-class 4,1 --n-tries 2 --bootstrap-resamples 50";
    let json = w.succeeds(&format!("{run} --out r/svm --json")).json();
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for (row, n_per_class) in rows.iter().zip([1, 4]) {
        assert_eq!(
            (&row["n_per_class"], &row["n_train"]),
            (&n_per_class.into(), &(2 * n_per_class).into())
        );
        assert_eq!((&row["map"], &row["top1"]), (&1.0.into(), &1.0.into()), "{row}");
    }
    assert_eq!(json["settings"]["costs"], serde_json::json!([1.0]));
    assert!(w.path("r/svm/predictions.parquet").exists());
    w.succeeds("report r/svm --out report");
    let report = fs::read_to_string(w.path("report/report.html")).expect("written");
    assert!(report.contains("SVM, 4 per class"), "{report}");
    w.fails(
        2,
        &format!("{run} --cost 1,2"),
        &["cost", "3 rows of every class", "1"],
    );
    w.fails(2, "eval svm --train train --test test --n-per-class 0", &["0"]);
}

#[test]
fn mixtures_and_density() {
    let w = Workspace::new();
    w.two_classes("f", 60, 4);
    let json = w
        .succeeds("eval cluster --features f --method gmm --components 2 --out r/gmm --json")
        .json();
    assert_eq!(
        (&json["rows"][0]["k"], &json["rows"][0]["accuracy"]),
        (&2.into(), &1.0.into())
    );
    assert_eq!(json["settings"]["method"], "gmm");
    let density = "eval cluster --features f --method dbscan --min-points 3 --radius 0.5";
    let json = w
        .succeeds(&format!("{density} --max-rows 50 --out r/dbscan --json"))
        .json();
    assert_eq!(json["n_test"], 50);
    assert_eq!(json["rows"][0]["noise"], 0.0);
    assert_eq!(json["settings"]["radius"], serde_json::json!([0.5]));
    w.succeeds("report r/gmm r/dbscan --out report");
    let report = fs::read_to_string(w.path("report/report.html")).expect("written");
    assert!(
        report.contains("mixture of Gaussians, k = 2") && report.contains("DBSCAN"),
        "{report}"
    );
    w.fails(
        2,
        &format!("{density} --k 2"),
        &["DBSCAN finds the number of clusters", "2"],
    );
    w.fails(
        2,
        "eval cluster --features f --method dbscan --radius 0",
        &["radius", "0"],
    );
    w.fails(2, "eval cluster --features f --method gmm --k 61", &["60", "61"]);
}

/// The vectors, labels and numbers of `tests/fixtures/make_text.py`, with the images as feature folder `f`.
fn made_texts(w: &Workspace) -> serde_json::Value {
    let text = fs::read_to_string(fixture("text/images.json")).expect("read");
    let made: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let vectors: Vec<Vec<f32>> = serde_json::from_value(made["images"].clone()).expect("vectors");
    let labels: Vec<String> = serde_json::from_value(made["labels"].clone()).expect("labels");
    let rows: Vec<_> = labels
        .iter()
        .zip(vectors)
        .map(|(label, vector)| (Some(label.as_str()), vector))
        .collect();
    w.features("f", &rows);
    for name in ["classes.parquet", "captions.parquet"] {
        let bytes = fs::read(fixture("text").join(name)).expect("read");
        w.write(name, bytes);
    }
    made
}

fn close(found: &serde_json::Value, expected: &serde_json::Value, name: &str) {
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("no {name}: {value}"));
    let (found, expected) = (number(found), number(expected));
    assert!((found - expected).abs() < 1e-6, "{name}: {found} {expected}");
}

#[test]
fn zero_shot_accuracies_are_those_of_numpy() {
    let w = Workspace::new();
    let made = made_texts(&w);
    let run = "eval zero-shot --features f --text classes.parquet";
    let json = w.succeeds(&format!("{run} --out r --per-class --json")).json();
    assert_eq!(
        (&json["task"], &json["n_test"]),
        (&"zero-shot".into(), &60.into())
    );
    let row = &json["rows"][0];
    for name in ["top1", "top5", "mean_per_class", "cross_entropy"] {
        close(&row[name], &made["zero_shot"][name], name);
    }
    for name in ["top1", "top5"] {
        let end = |which: &str| row[format!("{name}_{which}")].as_f64().expect("an end");
        let value = row[name].as_f64().expect("a number");
        assert!(end("low") < value && value < end("high"), "{row}");
    }
    assert_eq!(json["per_class"].as_array().map(Vec::len), Some(9));
    assert_eq!(json["settings"]["n_texts"], 31);
    assert_eq!(json["settings"]["logit_scale"], 20.0);
    let predictions = tables::read_own(&w.path("r/predictions.parquet"), Some(&["predicted"])).expect("read");
    let predicted = predictions.column("predicted").expect("there");
    let predicted: Vec<_> = predicted
        .str()
        .expect("text")
        .iter()
        .map(Option::unwrap_or_default)
        .collect();
    assert_eq!(serde_json::json!(predicted), made["zero_shot"]["predicted"]);
    w.succeeds("report r --out report");
    let report = fs::read_to_string(w.path("report/report.md")).expect("written");
    assert!(report.contains("zero-shot"), "{report}");
    // Row by row against another classifier of the same images.
    w.succeeds("eval knn --train f --test f --k 3 --out k");
    w.succeeds("eval compare --a r --b k");
}

#[test]
fn images_and_texts_search_for_each_other() {
    let w = Workspace::new();
    let made = made_texts(&w);
    let run = "eval retrieval --features f --text captions.parquet";
    let json = w.succeeds(&format!("{run} --out r --json")).json();
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6);
    for row in rows {
        let name = row["metric"].as_str().expect("a name");
        close(&row["value"], &made["retrieval"][name], name);
    }
    // Images 1 to 39 have captions, 0 and the last 20 have none.
    assert_eq!(json["settings"]["n_images_without_texts"], 21);
    w.succeeds("report r --out report");
    let report = fs::read_to_string(w.path("report/report.md")).expect("written");
    for way in ["image to text R@1", "text to image R@1"] {
        assert!(report.contains(way), "{report}");
    }
}

#[test]
fn texts_that_do_not_fit_are_refused_by_name() {
    let w = Workspace::new();
    made_texts(&w);
    let zero_shot =
        |features: &str, text: &str| format!("eval zero-shot --features {features} --text {text}");
    let wide: Vec<_> = ["ant", "bee"].map(|label| (Some(label), vec![1.0f32; 9])).into();
    w.features("wide", &wide);
    w.fails(
        2,
        &zero_shot("wide", "classes.parquet"),
        &[
            "classes.parquet",
            "vector",
            "9 values",
            "`cls` of wide",
            "found 8",
        ],
    );
    let spelt: Vec<_> = ["Ant", "bee", "gnat"]
        .map(|label| (Some(label), vec![1.0f32; 8]))
        .into();
    w.features("spelt", &spelt);
    let run = zero_shot("spelt", "classes.parquet");
    w.fails(
        2,
        &run,
        &[
            "spelt",
            "`Ant` (1 row; is it `ant`?)",
            "`gnat`",
            "--allow-unknown-labels",
        ],
    );
    let json = w.succeeds(&format!("{run} --allow-unknown-labels --json")).json();
    assert_eq!(json["settings"]["n_classes"], 9);
    w.fails(
        2,
        &zero_shot("f", "captions.parquet"),
        &["captions.parquet", "class and vector", "text, vector, image"],
    );
    w.fails(
        2,
        "eval retrieval --features f --text classes.parquet",
        &["classes.parquet", "image and vector"],
    );
    w.fails(
        2,
        "eval retrieval --features spelt --text captions.parquet",
        &[
            "captions.parquet",
            "one image of spelt",
            "`elsewhere/3.png`",
            "with 0 images",
        ],
    );
    w.write("list.csv", "class,vector\nant,1\n");
    w.fails(2, &zero_shot("f", "list.csv"), &["list.csv", "Parquet"]);
    w.fails(2, &zero_shot("f", "nowhere.parquet"), &["nowhere.parquet"]);
    let mut cut = fs::read(fixture("text/classes.parquet")).expect("read");
    for byte in &mut cut[100..400] {
        *byte = 0xff;
    }
    w.write("damaged.parquet", cut);
    w.fails(2, &zero_shot("f", "damaged.parquet"), &["damaged.parquet"]);
}
