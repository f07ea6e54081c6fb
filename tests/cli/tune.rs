//! `macula tune` as a user runs it.

use crate::harness::Workspace;

/// What makes a step take milliseconds.
const SMALL: &str = "--recipe dino --recipe dinov2-small --candidates 3 --set batch_size=4 --set backbone.depth=1 \
     --set backbone.embed_dim=16 --set backbone.num_heads=2 --set loss.head.hidden=16 --set loss.head.prototypes=16";

#[test]
fn a_search_leaves_a_table_and_a_run_that_goes_on() {
    let space = Workspace::new();
    let text = space
        .succeeds(&format!(
            "tune --data sample:train --budget 4s --out tune --json {SMALL}"
        ))
        .stdout;
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON and nothing else");
    let best = found["best"].as_str().expect("a run").to_owned();
    let table = std::fs::read_to_string(space.path("tune/table.csv")).expect("a table");
    assert_eq!(table.lines().count(), 4, "{table}");
    for word in ["candidate", "recipe", "settings", "rungs", "steps", "agreement"] {
        assert!(
            table.lines().next().is_some_and(|head| head.contains(word)),
            "{word}: {table}"
        );
    }
    // Both recipes as they are, and one that is changed.
    assert!(
        table.contains("dino,as it is") && table.contains("dinov2-small,as it is"),
        "{table}"
    );
    assert_eq!(table.matches("optimizer.learning_rate=").count(), 1, "{table}");
    let config = std::fs::read_to_string(space.path(&best).join("config.toml")).expect("a run");
    assert!(
        config.contains("keep_best = false"),
        "nothing in a run says which step is best: {config}"
    );
    space.succeeds(&format!("export {best} --out best.onnx"));
    let again = space.succeeds("tune --out tune --resume").stdout;
    assert!(again.contains(&format!("best: {best}")), "{again}");

    space.fails(
        2,
        &format!("tune --data sample:train --budget 4s --out tune {SMALL}"),
        &["--force"],
    );
    for (arguments, words) in [
        ("--budget 4s --set steps=10", &["--set", "--budget"][..]),
        ("--budget 4s --candidates 1", &["--candidates", "found 1"]),
        ("--budget soon", &["soon"]),
        ("--budget 4s --select knn", &["--select", "--knn-data"]),
        ("--budget 4s --recipe dina", &["recipe", "dina"]),
        ("--budget 1ms", &["--budget", "20 steps"]),
    ] {
        space.fails(
            2,
            &format!("tune --data sample:train --out other {arguments}"),
            words,
        );
    }
}
