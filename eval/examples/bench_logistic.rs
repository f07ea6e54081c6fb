//! Times logistic regressions on raw little-endian files, for `benchmarks/logreg_vs_sklearn.py` and
//! `benchmarks/c_sweep_vs_sklearn.py`.
//!
//! `bench_logistic FEATURES.f32 LABELS.u32 DIM CLASSES C TOLERANCE` prints one JSON line,
//! `bench_logistic sweep FEATURES.f32 LABELS.u32 VAL.f32 VAL.u32 DIM CLASSES TOLERANCE` one for each of the 45 values of C,
//! every fit started from the one before.

use macula_eval::MatrixView;
use macula_eval::protocols::logistic::{CSelection, LogisticModel, LogisticParams, LogisticSolver, fit};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, rest @ ..] = arguments.as_slice()
        && word == "sweep"
    {
        return sweep(rest);
    }
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

fn sweep(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [features, labels, val, val_labels, dim, classes, tolerance] = arguments else {
        return Err("expected sweep FEATURES.f32 LABELS.u32 VAL.f32 VAL.u32 DIM CLASSES TOLERANCE".into());
    };
    let floats = |path: &str| words(path).map(|words| words.into_iter().map(f32::from_le_bytes).collect());
    let integers = |path: &str| words(path).map(|words| words.into_iter().map(u32::from_le_bytes).collect());
    let (features, val): (Vec<f32>, Vec<f32>) = (floats(features)?, floats(val)?);
    let (labels, val_labels): (Vec<u32>, Vec<u32>) = (integers(labels)?, integers(val_labels)?);
    let (dim, tolerance) = (dim.parse()?, tolerance.parse()?);
    let x = MatrixView::new(&features, labels.len(), dim)?;
    let val = MatrixView::new(&val, val_labels.len(), dim)?;
    let CSelection::Grid(values) = CSelection::default() else {
        return Err("expected a grid".into());
    };
    rayon::broadcast(|_| ());
    let start = Instant::now();
    let mut solver = LogisticSolver::new(x, &labels, classes.parse()?)?;
    let mut before: Option<LogisticModel> = None;
    for c in values {
        let params = LogisticParams::new(c).tolerance(tolerance);
        let params = linfa::ParamGuard::check(params)?;
        let model = solver.fit(&params, before.as_ref())?;
        let predicted = model.predict(val)?;
        let right = predicted.iter().zip(&val_labels).filter(|(a, b)| a == b).count();
        println!(
            "{}",
            serde_json::json!({
                "c": c,
                "seconds": start.elapsed().as_secs_f64(),
                "objective": model.objective(),
                "iterations": model.iterations(),
                "val_top1": right as f64 / val_labels.len() as f64,
            })
        );
        before = Some(model);
    }
    Ok(())
}

fn words(path: &str) -> std::io::Result<Vec<[u8; 4]>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| [word[0], word[1], word[2], word[3]])
        .collect())
}
