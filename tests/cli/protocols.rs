//! Protocols that linfa carries: support vector machines on few rows, mixtures of Gaussians, clusters by density; into a report.

use std::fs;

use crate::harness::Workspace;

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
