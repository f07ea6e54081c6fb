//! Predictions of each test row: kept, compared, tabled by class; and the check for leaks.

use std::fs;

use crate::harness::{Workspace, names};

/// Rows told apart by their first value, `wrong` of them on the wrong side.
fn sided(w: &Workspace, name: &str, n: usize, wrong: usize) {
    let rows: Vec<(Option<&str>, Vec<f32>)> = (0..n)
        .map(|i| {
            let side = if (i % 2 == 0) == (i >= wrong) { 3.0 } else { -3.0 };
            (
                Some(if i % 2 == 0 { "cat" } else { "dog" }),
                vec![side, (i % 7) as f32 * 0.1],
            )
        })
        .collect();
    w.features(name, &rows);
}

#[test]
fn a_probe_from_few_rows() {
    let w = Workspace::new();
    sided(&w, "train", 60, 6);
    sided(&w, "test", 40, 2);
    let few = "eval logreg --train train --test test --n-per-class 5 --n-tries 4";
    let result = w.succeeds(&format!("{few} --json")).json();
    let row = &result["rows"][0];
    assert_eq!(
        (&row["n_per_class"], &row["n_tries"], &result["n_train"]),
        (&5.into(), &4.into(), &10.into())
    );
    assert_eq!(
        result["settings"]["top1_of_tries"]
            .as_array()
            .expect("a list")
            .len(),
        4
    );
    assert!(row["top1"].as_f64().expect("a number") > 0.6);
    w.fails(2, &format!("{few} --c 1,10"), &["--c", "found 2"]);
    w.fails(
        2,
        "eval logreg --train train --test test --n-per-class 0",
        &["n_per_class"],
    );
}

#[test]
fn two_results_on_the_same_rows() {
    let w = Workspace::new();
    sided(&w, "train", 60, 0);
    sided(&w, "good", 40, 2);
    sided(&w, "bad", 40, 12);
    sided(&w, "short", 30, 2);
    for test in ["good", "bad", "short"] {
        w.succeeds(&format!(
            "eval knn --train train --test {test} --k 5,10 --out knn-{test}"
        ));
    }
    w.succeeds("eval logreg --c 1 --train train --test good --out logreg");
    let result = w
        .succeeds("eval compare --a knn-good --b knn-bad --k 5 --json")
        .json();
    let row = &result["rows"][0];
    let number = |key: &str| row[key].as_f64().expect("a number");
    assert_eq!(result["n_test"], 40);
    assert!(
        (number("top1_a") - 0.95).abs() < 1e-12 && (number("top1_b") - 0.7).abs() < 1e-12,
        "{row}"
    );
    assert!(
        (number("difference") - 0.25).abs() < 1e-12 && number("low") > 0.0 && number("high") < 0.5,
        "{row}"
    );
    assert_eq!((number("only_a"), number("only_b")), (10.0, 0.0));
    assert!((number("p_value") - 2.0 / 1024.0).abs() < 1e-12, "{row}");
    let same = w
        .succeeds("eval compare --a knn-good --b logreg --k 10 --json")
        .json();
    assert_eq!(
        (&same["rows"][0]["difference"], &same["rows"][0]["p_value"]),
        (&0.0.into(), &1.0.into())
    );

    w.fails(
        2,
        "eval compare --a knn-good --b knn-bad",
        &["knn-good", "--k", "5", "10"],
    );
    w.fails(2, "eval compare --a knn-good --b knn-bad --k 7", &["--k 7"]);
    w.fails(
        2,
        "eval compare --a knn-good --b knn-short --k 5",
        &["knn-short", "40", "30"],
    );
    w.fails(
        2,
        "eval compare --a train --b knn-bad --k 5",
        &["train", "predictions.parquet"],
    );
    fs::write(w.path("knn-bad/predictions.parquet"), "text").expect("damaged");
    w.fails(
        2,
        "eval compare --a knn-good --b knn-bad --k 5",
        &["predictions.parquet", "damaged"],
    );
}

#[test]
fn classes_have_a_table_and_a_confusion_matrix() {
    let w = Workspace::new();
    sided(&w, "train", 60, 0);
    sided(&w, "test", 40, 3); // rows 0 and 2 are cats taken for dogs, row 1 a dog taken for a cat
    let eval = "eval knn --train train --test test --k 5";
    let result = w.succeeds(&format!("{eval} --per-class --out r --json")).json();
    let classes = result["per_class"].as_array().expect("classes");
    assert_eq!(classes.len(), 2);
    assert_eq!(
        (&classes[0]["class"], &classes[0]["n"]),
        (&"cat".into(), &20.into())
    );
    assert_eq!(
        (&classes[0]["accuracy"], &classes[1]["accuracy"]),
        (&0.9.into(), &0.95.into())
    );
    let confusion = fs::read_to_string(w.path("r/confusion-k5.csv")).expect("written");
    assert_eq!(confusion, "label,cat,dog\ncat,18,2\ndog,1,19\n");
    assert!(w.succeeds(&format!("{eval} --per-class")).stdout.contains("dog"));

    // Another k over the same folder leaves nothing of the first behind; few-shot draws keep no predictions.
    w.succeeds("eval knn --train train --test test --k 3 --out r --force");
    assert!(names(&w.path("r")).contains(&"confusion-k3.csv".to_owned()));
    assert!(!w.path("r/confusion-k5.csv").exists());
    w.succeeds("eval knn --train train --test test --k 3 --n-per-class 5 --n-tries 2 --out r --force");
    assert_eq!(
        names(&w.path("r")),
        ["result.json", "table.csv", "table.md", "table.parquet"]
    );
}

#[test]
fn near_duplicates_of_train_rows_are_told() {
    let w = Workspace::new();
    let row = |label, x: f32, y: f32| (Some(label), vec![x, y]);
    w.features(
        "train",
        &[row("cat", 1.0, 0.0), row("cat", 1.0, 0.5), row("dog", 0.0, 1.0)],
    );
    w.features("test", &[row("cat", 2.0, 1.0), row("dog", -1.0, 1.0)]);
    let eval = "eval knn --train train --test test --k 1";
    let run = w.succeeds(&format!("{eval} --leak-check --out r"));
    assert!(run.stderr.contains("1 of 2 test rows"), "{}", run.stderr);
    assert!(run.stderr.contains("0.png and 1.png"), "{}", run.stderr);
    let pairs = fs::read_to_string(w.path("r/near_duplicates.csv")).expect("written");
    assert!(
        pairs.starts_with("test,train,similarity\n0.png,1.png,"),
        "{pairs}"
    );
    let run = w.succeeds(&format!("{eval} --leak-check=0.5"));
    assert!(run.stderr.contains("2 of 2 test rows"), "{}", run.stderr);
    assert!(!w.succeeds(eval).stderr.contains("leak"));
    w.fails(2, &format!("{eval} --leak-check=1.5"), &["leak_check", "1.5"]);
}
