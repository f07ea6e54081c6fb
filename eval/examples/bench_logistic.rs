//! Times one logistic regression on raw little-endian files, for `benchmarks/logreg_vs_sklearn.py`.
//!
//! `bench_logistic FEATURES.f32 LABELS.u32 DIM CLASSES C TOLERANCE` prints one JSON line.

use macula_eval::MatrixView;
use macula_eval::protocols::logistic::{LogisticParams, fit};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [features, labels, dim, classes, c, tolerance] = arguments.as_slice() else {
        return Err("expected FEATURES.f32 LABELS.u32 DIM CLASSES C TOLERANCE".into());
    };
    let features: Vec<f32> = words(features)?.into_iter().map(f32::from_le_bytes).collect();
    let labels: Vec<u32> = words(labels)?.into_iter().map(u32::from_le_bytes).collect();
    let x = MatrixView::new(&features, labels.len(), dim.parse()?)?;
    let params = LogisticParams::new(c.parse()?).tolerance(tolerance.parse()?);
    rayon::broadcast(|_| ());
    let start = Instant::now();
    let model = fit(x, &labels, classes.parse()?, &params)?;
    let seconds = start.elapsed().as_secs_f64();
    let parameters = [model.weights(), model.biases()].concat();
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "objective": model.objective(),
            "iterations": model.iterations(),
            "converged": model.converged(),
            "parameters": parameters,
        })
    );
    Ok(())
}

fn words(path: &str) -> std::io::Result<Vec<[u8; 4]>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| [word[0], word[1], word[2], word[3]])
        .collect())
}
