//! k-NN against numbers computed with the formula of `dinov2/eval/knn.py` in Python on the same features.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use macula_eval::protocols::knn::{KnnConfig, KnnResult, evaluate};
use macula_eval::{MatrixView, Split, TrainTest};
use safetensors::SafeTensors;

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = tensors.tensor(name).unwrap().data().to_vec();
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn labels(tensors: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let bytes = tensors.tensor(name).unwrap().data().to_vec();
    bytes
        .chunks_exact(8)
        .map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
        .collect()
}

fn run() -> (KnnResult, serde_json::Value) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let bytes = std::fs::read(folder.join("features.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (train, test) = (f32s(&tensors, "train"), f32s(&tensors, "test"));
    let (train_labels, test_labels) = (labels(&tensors, "train_labels"), labels(&tensors, "test_labels"));
    let n_classes = 1 + *train_labels.iter().max().unwrap() as usize;
    let config = KnnConfig {
        ks: vec![1, 10, 20, 100, 200],
        ..KnnConfig::default()
    };
    let train = Split::new(MatrixView::new(&train, 400, 16).unwrap(), &train_labels);
    let test = Split::new(MatrixView::new(&test, 120, 16).unwrap(), &test_labels);
    let result = evaluate(&TrainTest::new(train, test, n_classes), &config).unwrap();

    let expected = std::fs::read(folder.join("knn.expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    (result, expected)
}

#[test]
fn accuracies_are_those_of_the_reference() {
    let (result, expected) = run();
    assert_eq!(result.rows.len(), 5);
    for row in &result.rows {
        let expected = &expected["knn"][row.k.to_string()];
        for (name, found) in [("top1", row.top1), ("top5", row.top5)] {
            // One neighbour votes for one class; the reference fills its five up with classes that had no vote.
            let expected = expected[if row.k == 1 { "top1" } else { name }].as_f64().unwrap();
            assert!(
                (found - expected).abs() < 1e-9,
                "k = {}: {name} {found}, expected {expected}",
                row.k
            );
        }
        assert!(row.top1_low < row.top1 && row.top1 < row.top1_high);
    }
}
