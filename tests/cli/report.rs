//! Results put together, compared and written; wrong ones named.

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

/// A good, a bad, and once more the good model, by k-NN and logistic regression.
fn results() -> Workspace {
    let w = Workspace::new();
    sided(&w, "train", 60, 0);
    for (name, wrong) in [("good", 2), ("bad", 14)] {
        sided(&w, name, 40, wrong);
        w.succeeds(&format!(
            "eval knn --train train --test {name} --k 5,20 --out r/{name}/knn"
        ));
        w.succeeds(&format!(
            "eval logreg --c 1 --train train --test {name} --out r/{name}/logreg"
        ));
        w.succeeds(&format!("eval cluster --features {name} --out r/{name}/cluster"));
    }
    w
}

#[test]
fn a_better_model_is_significant_and_the_same_one_is_not() {
    let w = results();
    let specs = "good=r/good bad=r/bad twin=r/good/knn";
    // One file counts once, under its first name.
    let run = w.succeeds(&format!("report {specs} --baseline bad --json"));
    let json = run.json();
    let rows = json["rows"].as_array().unwrap();
    let find = |model: &str, task: &str| {
        let row = rows
            .iter()
            .find(|row| row["model"] == model && row["task"].as_str().unwrap().starts_with(task));
        row.unwrap_or_else(|| panic!("{model} {task}: {json}"))
    };
    assert!(rows.iter().all(|row| row["model"] != "twin"));
    let knn = find("good", "k-NN");
    assert_eq!(
        (&knn["task"], &knn["best"], &knn["n_test"]),
        (&"k-NN, k = 20".into(), &true.into(), &40.into())
    );
    assert!((knn["difference"].as_f64().unwrap() - 0.3).abs() < 1e-9, "{knn}");
    assert!(
        knn["difference_low"].as_f64().unwrap() > 0.0 && knn["p_holm"].as_f64().unwrap() < 0.05,
        "{knn}"
    );
    assert!(
        knn["p_holm"].as_f64().unwrap() > knn["p_value"].as_f64().unwrap(),
        "two tests, corrected: {knn}"
    );
    assert_eq!(
        (&knn["verdict"], &knn["compared_by"]),
        (&"better".into(), &"paired bootstrap, McNemar".into())
    );
    let cluster = find("good", "k-means");
    assert!(
        cluster["compared_by"]
            .as_str()
            .unwrap()
            .starts_with("intervals only"),
        "{cluster}"
    );

    // The same predictions under two names.
    w.succeeds("eval knn --train train --test good --k 5,20 --out again");
    let same = w
        .succeeds("report a=r/good/knn b=again --baseline a --json")
        .json();
    let twin = &same["rows"][1];
    assert_eq!(
        (&twin["difference"], &twin["p_value"]),
        (&0.0.into(), &1.0.into())
    );
    assert_eq!(twin["verdict"], "no difference shown");

    // Other rows cannot be paired.
    sided(&w, "short", 30, 2);
    w.succeeds("eval knn --train train --test short --k 20 --out short-knn");
    let short = w
        .succeeds("report a=r/good/knn b=short-knn --baseline a --json")
        .json();
    assert!(
        short["rows"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["verdict"] != "better")
    );
}

#[test]
fn files_and_formats() {
    let w = results();
    let run = w.succeeds("report good=r/good bad=r/bad --baseline bad --out report --title Cats");
    assert!(
        run.stdout.contains("good") && run.stdout.contains("difference from bad"),
        "{}",
        run.stdout
    );
    assert_eq!(
        names(&w.path("report")),
        [
            "report.csv",
            "report.html",
            "report.json",
            "report.md",
            "report.parquet",
            "report.tex"
        ]
    );
    let page = fs::read_to_string(w.path("report/report.html")).unwrap();
    assert!(page.contains("<title>Cats</title>") && page.contains("<svg") && page.contains("confusion"));
    assert_eq!(
        w.succeeds("report good=r/good bad=r/bad --baseline bad --title Cats --format html")
            .stdout
            .trim_end(),
        page.trim_end()
    );
    assert!(
        w.succeeds("report good=r/good --format latex")
            .stdout
            .contains("\\begin{tabular}")
    );
    assert!(
        w.succeeds("report good=r/good --format csv")
            .stdout
            .starts_with("model,")
    );
    assert!(
        w.succeeds("report good=r/good --format markdown")
            .stdout
            .starts_with("| model |")
    );
    w.fails(2, "report good=r/good --out report", &["report.json", "--force"]);
    w.succeeds("report good=r/good --out report --force");
}

#[test]
fn wrong_results_are_named() {
    let w = results();
    w.write("text/result.json", "text");
    w.write("empty/other.txt", "");
    w.write("binary.json", [0xff, 0xfe, 0x00]);
    w.write("picture.png", "text");
    w.fails(2, "report", &["RESULTS"]);
    w.fails(2, "report nowhere", &["nowhere", "no such file"]);
    w.fails(2, "report x=nowhere", &["x=nowhere", "no such file"]);
    w.fails(2, "report text", &["text/result.json", "not JSON"]);
    w.fails(2, "report binary.json", &["binary.json", "not a result"]);
    w.fails(2, "report empty", &["empty", "found none"]);
    w.fails(2, "report train/meta.json", &["meta.json", "field `task`"]);
    w.fails(
        2,
        "report good=r/good --baseline best",
        &["--baseline", "good", "best"],
    );
    w.fails(2, "report good=r/good --k 7", &["--k", "7", "knn"]);
    w.fails(
        2,
        "report good=r/good --picture picture.png",
        &["picture.png", "PNG"],
    );
    w.fails(2, "report good=r/good --picture none.png", &["none.png"]);
    // Both are one model to macula, and say different things.
    w.fails(2, "report r", &["good/", "bad/", "NAME="]);
    w.succeeds("eval compare --a r/good/knn --b r/bad/knn --k 5 --out compared");
    w.fails(2, "report compared", &["compared", "compare"]);
}
