//! Files smaller than f32: their drift is measured, stated and limited.

use macula::extract::FeatureFolder;

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

/// Networks of others: what they have is exported, verified and extracted, and what they lack is refused with a list of that.
#[test]
fn networks_of_every_shape_are_exported_and_extracted() {
    let w = Workspace::new();
    let network = |name: &str| golden("backbones").join(name).display().to_string();
    let siglip = network("siglip_hf");
    w.succeeds(&format!("export {siglip} --out siglip.onnx"));
    w.succeeds(&format!(
        "export {siglip} --out int8.onnx --dtype int8 --calibration sample:train --calibration-images 8 \
         --compared-images 16 --max-drift 0.5"
    ));
    for name in ["beit_hf", "eva02_apart_timm.safetensors", "pe_open"] {
        let model = network(name);
        w.succeeds(&format!(
            "export {model} --heads 2 --image-size dynamic --out {name}.onnx"
        ));
    }
    // What stands for an image where there is no class token.
    for (model, output) in [
        (siglip.as_str(), "embedding"),
        ("siglip.onnx", "embedding"),
        (&network("ijepa_hf"), "patch_mean"),
    ] {
        w.succeeds(&format!(
            "extract --model {model} --data sample:test --out features --force"
        ));
        let features = FeatureFolder::open(&w.path("features")).expect("complete");
        let kept: Vec<&str> = features
            .meta()
            .outputs
            .iter()
            .map(|output| output.name.as_str())
            .collect();
        assert_eq!(kept, [output], "{model}");
    }
    let has = ["`cls`", "patch, patch_mean, embedding"];
    w.fails(2, &format!("export {siglip} --out no.onnx --outputs cls"), &has);
    w.fails(
        2,
        &format!("extract --model {siglip} --data sample:test --out no --outputs cls"),
        &has,
    );
    w.fails(
        2,
        &format!("viz attention --model {siglip} --data sample:test --out no.png"),
        &["class token"],
    );
}

/// Smaller files of CLIP, SigLIP and DINOv3 stay near those in f32, and their features near each other's.
#[test]
fn networks_of_others_are_exported_smaller() {
    let w = Workspace::new();
    for (name, output) in [
        ("clip_hf", "embedding"),
        ("siglip_hf", "embedding"),
        ("dinov3_hf", "cls"),
    ] {
        let model = golden("backbones").join(name).display().to_string();
        for (dtype, cosine) in [("f16", 0.9999), ("int8", 0.98)] {
            let summary = w.succeeds(&format!(
                "export {model} --out {name}-{dtype}.onnx --outputs {output} --dtype {dtype} --calibration sample:train \
                 --calibration-images 16 --compared-images 32 --max-drift 0.2 --json"
            ));
            let drift = summary.json()["drift"]["mean_cosine"].as_f64().expect("a number");
            assert!(drift > cosine && drift <= 1.000001, "{name} {dtype}: {drift}");
            w.succeeds(&format!(
                "extract --model {name}-{dtype}.onnx --data sample:test --out {name}-{dtype}"
            ));
        }
        let table = w.succeeds(&format!(
            "eval knn --train {name}-f16 --test {name}-int8 --k 1 --json"
        ));
        let top1 = table.json()["rows"][0]["top1"].as_f64().expect("an accuracy");
        assert!(top1 > 0.8, "{name}: int8 finds f16's own images: {top1}");
    }
}

#[test]
fn released_networks_are_opened_by_name() {
    let w = Workspace::new();
    let model = golden("backbones/dinov3_timm.safetensors").display().to_string();
    for (name, words) in [
        (
            "dinov3-vits16",
            ["expected width 384, found 32", "patch size 16, found 4"],
        ),
        ("dinov3-small", ["found `dinov3-small`", "openclip:MODEL/TAG"]),
    ] {
        let extract = format!("extract --model {model} --arch {name} --data sample:test --out no");
        w.fails(2, &extract, &words);
    }
}
