//! Retrieval and clustering over feature folders.

use crate::harness::{Workspace, names};

/// Rows of `(label, angle)` on the unit circle.
fn circle(w: &Workspace, name: &str, rows: &[(&str, f32)]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|&(label, angle)| (Some(label), vec![angle.cos(), angle.sin()]))
        .collect();
    w.features(name, &rows);
}

fn value(result: &serde_json::Value, metric: &str) -> f64 {
    let rows = result["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["metric"] == metric);
    let row = row.unwrap_or_else(|| panic!("no {metric} in {result}"));
    let number = |key: &str| row[key].as_f64().expect("a number");
    assert!(
        number("low") <= number("value") && number("value") <= number("high"),
        "{row}"
    );
    number("value")
}

#[test]
fn a_folder_against_itself_and_against_another() {
    let w = Workspace::new();
    circle(
        &w,
        "f",
        &[("a", 0.0), ("a", 0.1), ("b", 0.25), ("a", 0.45), ("c", 3.0)],
    );
    let alone = w.succeeds("eval retrieval --features f --out r --json").json();
    assert_eq!(
        (&alone["task"], &alone["n_test"]),
        (&"retrieval".into(), &5.into())
    );
    // rankings of the three a: (a b a), (a b a), (b a a)
    let expected = (2.0 * (1.0 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0
        + ((0.0 + 0.5) / 2.0 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0)
        / 3.0;
    assert!((value(&alone, "mAP") - expected).abs() < 1e-6);
    assert!((value(&alone, "R@1") - 2.0 / 3.0).abs() < 1e-6);
    for metric in ["mAP@100", "R@5", "R@10", "mP@1", "mP@10", "GAP"] {
        value(&alone, metric);
    }
    assert_eq!(alone["settings"]["column"], "cls");
    assert_eq!(
        names(&w.path("r")),
        ["result.json", "table.csv", "table.md", "table.parquet"]
    );

    circle(&w, "q", &[("a", 0.05), ("b", 0.3)]);
    let two = w
        .succeeds("eval retrieval --query q --database f --k 1 --json")
        .json();
    assert_eq!((&two["n_train"], &two["n_test"]), (&5.into(), &2.into()));
    assert_eq!(value(&two, "R@1"), 1.0);
}

#[test]
fn revisited_ground_truth_goes_by_file_name() {
    let w = Workspace::new();
    // The harness names its images 0.png, 1.png, ..: the ground truth lists them in another order.
    circle(&w, "base", &[("x", 0.0), ("x", 0.2), ("x", 0.4), ("x", 0.6)]);
    circle(&w, "query", &[("x", 0.0)]);
    w.write(
        "gnd.json",
        r#"{"imlist": ["3", "2", "1", "0"], "qimlist": ["0"],
            "gnd": [{"bbx": [0, 0, 9, 9], "easy": [3], "hard": [1], "junk": [2]}]}"#,
    );
    let eval = "eval retrieval --query query --database base --ground-truth";
    let result = w.succeeds(&format!("{eval} gnd.json --json")).json();
    // Ranked 0 1 2 3, that is easy, junk, hard, negative.
    for metric in [
        "easy mAP",
        "medium mAP",
        "hard mAP",
        "medium mP@1",
        "medium mP@10",
    ] {
        assert_eq!(value(&result, metric), 1.0, "{metric}");
    }
    w.write(
        "far.json",
        r#"{"imlist": ["0"], "qimlist": ["0"], "gnd": [{"easy": [4]}]}"#,
    );
    w.fails(2, &format!("{eval} far.json"), &["far.json", "easy", "4"]);
    w.write(
        "name.json",
        r#"{"imlist": ["nowhere"], "qimlist": ["0"], "gnd": [{"easy": [0]}]}"#,
    );
    w.fails(2, &format!("{eval} name.json"), &["base", "nowhere"]);
    w.write("text.json", "not JSON");
    w.fails(2, &format!("{eval} text.json"), &["text.json", "imlist"]);
    w.fails(2, &format!("{eval} none.json"), &["none.json"]);
}

#[test]
fn copies_with_whitening_and_score_normalisation() {
    let w = Workspace::new();
    circle(&w, "base", &[("0", 0.0), ("1", 1.0), ("2", 2.0)]);
    circle(&w, "query", &[("0", 0.05), ("2", 2.1), ("none", 0.6)]);
    circle(&w, "train", &[("t", 0.3), ("t", 1.4), ("t", 3.0), ("t", 5.0)]);
    let eval = "eval retrieval --query query --database base --copies";
    let plain = w.succeeds(&format!("{eval} --candidates 1 --json")).json();
    assert_eq!(value(&plain, "muAP"), 1.0);
    assert_eq!(value(&plain, "R@P90"), 1.0);
    assert_eq!(plain["settings"]["n_distractors"], 1);
    let whole = w.succeeds(&format!(
        "{eval} --training train --whiten --components 2 --score-normalisation --json"
    ));
    assert_eq!(whole.json()["settings"]["n_training"], 4);
    w.fails(2, &format!("{eval} --whiten"), &["--training"]);
    w.fails(
        2,
        &format!("{eval} --training train --whiten --components 3"),
        &["components", "3"],
    );
}

#[test]
fn clusters_are_compared_with_classes() {
    let w = Workspace::new();
    w.two_classes("f", 40, 4);
    let result = w.succeeds("eval cluster --features f --k 2,5 --json").json();
    let rows = result["rows"].as_array().expect("rows");
    assert_eq!((rows[0]["k"].as_u64(), rows[1]["k"].as_u64()), (Some(2), Some(5)));
    for metric in ["nmi", "ari", "accuracy"] {
        assert!(
            (rows[0][metric].as_f64().expect("a number") - 1.0).abs() < 1e-9,
            "{metric}"
        );
        assert!(rows[1][metric].as_f64().expect("a number") < 1.0, "{metric}");
    }
    let number = |name: &str| rows[1][name].as_f64().expect("a number");
    assert!(number("accuracy_low") < number("accuracy") && number("accuracy") < number("accuracy_high"));
    let default = w.succeeds("eval cluster --features f --json --threads 1").json();
    assert_eq!(default["rows"][0], rows[0]);
    assert!(
        w.succeeds("eval cluster --features f")
            .stdout
            .contains("accuracy")
    );
}

#[test]
fn what_cannot_be_ranked_or_clustered() {
    let w = Workspace::new();
    w.two_classes("f", 20, 4);
    w.two_classes("wide", 20, 6);
    w.features("unlabelled", &[(None, vec![1.0, 2.0]), (None, vec![2.0, 1.0])]);
    circle(&w, "alone", &[("a", 0.0), ("b", 1.0)]);
    w.features(
        "nan",
        &[(Some("a"), vec![f32::NAN, 0.0]), (Some("b"), vec![1.0, 0.0])],
    );
    w.fails(2, "eval retrieval", &["--features"]);
    w.fails(2, "eval retrieval --query f", &["--database"]);
    w.fails(2, "eval retrieval --query f --database wide", &["4", "6"]);
    w.fails(
        2,
        "eval retrieval --features unlabelled",
        &["unlabelled", "label"],
    );
    w.fails(2, "eval retrieval --features alone", &["labels"]);
    w.fails(2, "eval retrieval --features nan", &["NaN"]);
    w.fails(2, "eval retrieval --features f --k 0", &["ks"]);
    w.fails(2, "eval cluster --features unlabelled", &["unlabelled", "label"]);
    w.fails(2, "eval cluster --features f --k 21", &["21", "20"]);
    w.fails(2, "eval cluster --features f --k 0", &["k", "0"]);
    w.fails(2, "eval cluster --features nan", &["NaN"]);
    w.fails(2, "eval cluster --features nowhere", &["nowhere"]);
}
