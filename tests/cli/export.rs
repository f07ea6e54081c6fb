//! Files smaller than f32: their drift is measured, stated and limited.

use crate::harness::{Workspace, golden, names};
use crate::index::hits;

/// Exports the golden network for the sample's images as `dtype`.
fn arguments(dtype: &str, further: &str) -> String {
    let checkpoint = golden("official_plain.safetensors").display().to_string();
    format!(
        "export {checkpoint} --heads 3 --image-size 28 --resize 28 --crop 28 --out {dtype}.onnx --dtype {dtype} \
         --calibration sample:train --calibration-images 16 --compared-images 200 {further}"
    )
}

/// Share of the queries whose nearest row is the one of their own number.
fn own_neighbours(w: &Workspace, table: &str) -> f64 {
    let hits = hits(w, table);
    let own = hits.iter().filter(|(query, row, _)| query == row).count();
    own as f64 / hits.len() as f64
}

#[test]
fn smaller_files_state_their_drift() {
    let w = Workspace::new();
    let f16 = w.succeeds(&arguments("f16", "--json")).json();
    let int8 = w.succeeds(&arguments("int8", "--json --max-drift 0.2")).json();
    for (summary, size, cosine) in [(&f16, 0.7, 0.99999), (&int8, 0.7, 0.99)] {
        let drift = &summary["drift"];
        let number = |name: &str| drift[name].as_f64().expect("a number");
        assert!(number("size_ratio") < size, "{drift}");
        assert!(
            number("mean_cosine") > cosine && number("mean_cosine") <= 1.000001,
            "{drift}"
        );
        assert!(number("min_cosine") <= number("mean_cosine"), "{drift}");
        assert!(number("speed_ratio") > 0., "{drift}");
        let labelled = &drift["labelled"];
        assert_eq!(
            (&labelled["n_train"], &labelled["n_test"]),
            (&150.into(), &50.into())
        );
        let knn = |name: &str| labelled[name].as_f64().expect("a number");
        assert!((knn("knn") - knn("knn_f32")).abs() < 0.2, "{labelled}");
    }
    assert_eq!(f16["layers"].as_array().expect("a list").len(), 0);
    let layers = int8["layers"].as_array().expect("a list");
    let left = layers.iter().filter(|layer| layer["left"] == true).count();
    assert!(left > 0 && left < layers.len() / 4, "{layers:?}");
    assert!(
        layers
            .iter()
            .all(|layer| layer["relative_error"].as_f64().expect("a number") > 0.)
    );
    // The files are ordinary models: among the features in f32, those of an image are nearest to its own.
    w.succeeds(&arguments("f32", ""));
    for (dtype, min) in [("f32", 0.999), ("f16", 0.999), ("int8", 0.99)] {
        w.succeeds(&format!(
            "extract --model {dtype}.onnx --data sample:test --out features-{dtype}"
        ));
        w.succeeds(&format!(
            "index build --features features-{dtype} --out index-{dtype}"
        ));
        w.succeeds(&format!(
            "index query --index index-f32 --features features-{dtype} --k 1 --out hits-{dtype}.parquet"
        ));
        let same = own_neighbours(&w, &format!("hits-{dtype}.parquet"));
        assert!(same >= min, "{dtype}: {same}");
    }
}

#[test]
fn a_file_that_drifts_too_far_is_not_written() {
    let w = Workspace::new();
    w.fails(
        1,
        &arguments("int8", "--max-drift 0"),
        &["int8.onnx", "not written", "--max-drift"],
    );
    assert!(names(&w.path("")).is_empty());
    w.fails(2, &arguments("int4", ""), &["--dtype", "int4"]);
    w.fails(
        2,
        &arguments("int8", "--float-layers 2"),
        &["--float-layers", "found 2"],
    );
    w.fails(
        2,
        &arguments("f16", "--compared-images 0"),
        &["--compared-images"],
    );
}
