//! Labels of train and test that do not agree.

use crate::harness::Workspace;

/// Rows of these labels, in two groups of features by the first letter of the label.
fn features(w: &Workspace, name: &str, labels: &[&str]) {
    let rows: Vec<(Option<&str>, Vec<f32>)> = labels
        .iter()
        .enumerate()
        .map(|(row, label)| {
            let side = if label.starts_with(['0', 'c', 'C']) {
                1.0
            } else {
                -1.0
            };
            (Some(*label), vec![side, 0.01 * row as f32, 0.3, -0.2])
        })
        .collect();
    w.features(name, &rows);
}

/// The classifiers, quick.
const CLASSIFIERS: [&str; 4] = [
    "knn --k 3",
    "linear-probe --steps 50",
    "logreg --c 1",
    "logreg --n-per-class 4",
];

#[test]
fn test_labels_that_train_lacks_are_named_and_counted() {
    let w = Workspace::new();
    features(&w, "train", &["0", "1"].repeat(20));
    features(&w, "test", &["0", "1.0", "1.0", "7", "1"]);
    for classifier in CLASSIFIERS {
        w.fails(
            2,
            &format!("eval {classifier} --train train --test test"),
            &[
                "error: test: ",
                "labels that train has",
                "2 classes in 3 of 5 rows",
                "`1.0` (2 rows; is it `1`?)",
                "`7` (1 row)",
                "first 1.png",
                "--allow-unknown-labels",
            ],
        );
    }
    features(&w, "words", &["cat", "dog"].repeat(20));
    features(&w, "spelt", &["Cat", "dog ", "dog"]);
    w.fails(
        2,
        "eval knn --k 3 --train words --test spelt",
        &["`Cat` (1 row; is it `cat`?)", "`dog ` (1 row; is it `dog`?)"],
    );
    let many: Vec<String> = (0..40).map(|i| format!("x{i}")).collect();
    features(&w, "many", &many.iter().map(String::as_str).collect::<Vec<_>>());
    w.fails(
        2,
        "eval logreg --c 1 --train words --test many",
        &["40 classes in 40 of 40 rows", "and 35 more"],
    );
}

#[test]
fn rows_of_unknown_labels_count_as_wrong_where_they_are_allowed() {
    let w = Workspace::new();
    features(&w, "train", &["0", "1"].repeat(20));
    features(&w, "test", &["0", "1", "1", "7", "c"]);
    for (number, classifier) in CLASSIFIERS.into_iter().enumerate() {
        let run = w.succeeds(&format!(
            "eval {classifier} --train train --test test --allow-unknown-labels --json --per-class --out r{number}"
        ));
        assert!(
            run.stderr.contains("count as wrong") && run.stderr.contains("2 classes in 2 of 5 rows"),
            "{}",
            run.stderr
        );
        let result = run.json();
        let row = &result["rows"][0];
        assert_eq!(
            (&row["top1"], &row["top5"]),
            (&0.6.into(), &0.6.into()),
            "{classifier}: {row}"
        );
        // Classes 0 and 1 are right, 7 and c are wrong.
        assert_eq!(row["mean_per_class"], 0.5, "{classifier}: {row}");
        assert_eq!(
            result["settings"]["unknown_labels"],
            serde_json::json!({ "rows": 2, "classes": ["7", "c"] }),
            "{classifier}"
        );
        let classes: Vec<&str> = result["per_class"]
            .as_array()
            .expect("classes")
            .iter()
            .map(|class| class["class"].as_str().expect("a name"))
            .collect();
        assert_eq!(classes, ["0", "1", "7", "c"], "{classifier}");
    }
    let confusion = std::fs::read_to_string(w.path("r2/confusion.csv")).expect("read");
    assert_eq!(confusion.lines().next(), Some("label,0,1,7,c"));
    let known = w
        .succeeds("eval knn --k 3 --train train --test train --json")
        .json();
    assert_eq!(known["settings"]["unknown_labels"], serde_json::Value::Null);
}

#[test]
fn rows_without_a_label_are_counted() {
    let w = Workspace::new();
    let rows: Vec<(Option<&str>, Vec<f32>)> = (0..6)
        .map(|row| ((row % 3 != 1).then_some("a"), vec![row as f32, 1.0]))
        .collect();
    w.features("holes", &rows);
    w.fails(
        2,
        "eval cluster --features holes",
        &["holes", "none for 2 of 6 rows, first 1.png"],
    );
}

#[test]
fn a_single_class_is_named() {
    let w = Workspace::new();
    features(&w, "train", &["cat"; 30]);
    for classifier in CLASSIFIERS {
        w.fails(
            2,
            &format!("eval {classifier} --train train --test train"),
            &["train", "only `cat` in 30 rows"],
        );
    }
}

#[test]
fn classes_that_are_spelt_alike_are_told() {
    let w = Workspace::new();
    features(&w, "train", &["cat", "Cat", "dog", "dog"].repeat(5));
    let run = w.succeeds("eval knn --k 3 --train train --test train");
    assert!(
        run.stderr
            .contains("`Cat` and `cat` are two classes, spelt alike"),
        "{}",
        run.stderr
    );
    let run = w.succeeds("eval cluster --features train");
    assert!(run.stderr.contains("spelt alike"), "{}", run.stderr);
}

#[test]
fn queries_are_held_against_the_database() {
    let w = Workspace::new();
    features(&w, "base", &["cat", "dog"].repeat(4));
    features(&w, "strange", &["cat", "eel", "dog"]);
    let run = w.succeeds("eval retrieval --query strange --database base --json");
    assert!(
        run.stderr
            .contains("queries without a match in base: 1 class in 1 of 3 rows: `eel`"),
        "{}",
        run.stderr
    );
    features(&w, "spelt", &["cat", "Dog", "Dog"]);
    w.fails(
        2,
        "eval retrieval --query spelt --database base",
        &["`Dog` (2 rows; is it `dog`?)", "--allow-unknown-labels"],
    );
    w.succeeds("eval retrieval --query spelt --database base --allow-unknown-labels");
}

#[test]
fn robustness_holds_labels_against_train_before_it_reads_images() {
    let w = Workspace::new();
    for (split, classes) in [("train", ["dark", "light"]), ("test", ["dark", "Light"])] {
        for (class, shade) in classes.iter().zip([10u8, 240]) {
            for i in 0..3 {
                w.png(&format!("{split}/{class}/{i}.png"), 16, 16, shade + i);
            }
        }
    }
    let eval = "eval robustness --model pixels --train-data train --test-data test --corruptions contrast --severities 1";
    w.fails(
        2,
        eval,
        &[
            "--test-data test",
            "`Light` (3 rows; is it `light`?)",
            "first Light/0.png",
        ],
    );
    let result = w.succeeds(&format!("{eval} --allow-unknown-labels --json"));
    // Fewer training images than the default number of neighbours.
    assert!(result.stderr.contains("k = 6"), "{}", result.stderr);
    let result = result.json();
    assert_eq!(result["rows"][0]["error"], 0.5, "{result}");
    assert_eq!(result["settings"]["unknown_labels"]["rows"], 3);
    assert_eq!(result["settings"]["classifier"]["k"], serde_json::json!([6]));
}

#[test]
fn test_masks_with_labels_that_train_masks_lack_are_refused_before_training() {
    let w = Workspace::new();
    let scene = |name: &str, labels: &[u8]| {
        let mut list = "image,mask\n".to_owned();
        for (i, label) in labels.iter().enumerate() {
            let image = format!("{name}/{i}.png");
            w.png(&image, 8, 8, 40 * label);
            let mask = image::GrayImage::from_fn(8, 8, |x, _| image::Luma([if x < 4 { *label } else { 0 }]));
            mask.save(w.path(&format!("{name}/mask{i}.png"))).expect("saved");
            list += &format!("{image},{name}/mask{i}.png\n");
        }
        w.write(&format!("{name}.csv"), list);
    };
    scene("train", &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2]);
    scene("test", &[1, 4, 5, 5]);
    let eval = "eval segment --model pixels --train-data train.csv --test-data test.csv --iterations 5";
    w.fails(
        2,
        eval,
        &[
            "--test-data test.csv",
            "labels up to 2 (`2`) or 255",
            "4 (32 pixels), 5 (64 pixels) in 3 of 4 masks",
            "mask1.png",
            "--allow-empty-classes",
        ],
    );
    w.fails(2, &format!("{eval} --on-error skip"), &["in 3 of 4 masks"]);
    w.succeeds(&format!("{eval} --classes 6 --allow-empty-classes"));
}
