//! The check every operation passes: forward and gradients against the plain candle composition in f64, and that
//! composition's own gradients against central differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Values in (-2, 2) from `seed`.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-2f32..2.)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All values as f64.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails unless `found` is within `tolerance` of `expected`, relative to the largest expected value (or 1).
pub(crate) fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: count");
    let largest = expected.iter().fold(1f64, |best, value| best.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}[{i}]: found {a}, expected {b}"
        );
    }
}

type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn gradients(inputs: &[Tensor], weights: &Tensor, function: Function) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(input).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = function(&tensors).unwrap();
    let loss = (&output * weights.to_dtype(output.dtype()).unwrap()).unwrap();
    let store = loss.sum_all().unwrap().backward().unwrap();
    let grads = vars
        .iter()
        .map(|var| store.get(var).expect("a gradient for every input").clone());
    (output.detach(), grads.collect())
}

/// Checks `op` (f32) against `oracle` (any dtype) at `inputs`.
pub(crate) fn check(inputs: &[Tensor], op: Function, oracle: Function) {
    let doubles: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.to_dtype(DType::F64).unwrap())
        .collect();
    let shape = oracle(&doubles).unwrap().dims().to_vec();
    let weights = random(99, &shape);
    let (expected, oracle_grads) = gradients(&doubles, &weights, oracle);
    let (found, grads) = gradients(inputs, &weights, op);
    assert_eq!(found.dims(), shape, "shape of the output");
    assert_close("output", &values(&found), &values(&expected), 1e-6);
    let weights = weights.to_dtype(DType::F64).unwrap();
    let loss = |at: &[Tensor]| values(&(oracle(at).unwrap() * &weights).unwrap().sum_all().unwrap())[0];
    for (i, (grad, oracle_grad)) in grads.iter().zip(&oracle_grads).enumerate() {
        assert_eq!(grad.dims(), inputs[i].dims(), "shape of gradient {i}");
        assert_close(
            &format!("gradient {i}"),
            &values(grad),
            &values(oracle_grad),
            2e-6,
        );
        let mut differences = Vec::new();
        let at = values(&doubles[i]);
        for j in 0..at.len() {
            let shifted = |step: f64| {
                let mut moved = at.clone();
                moved[j] += step;
                let mut all = doubles.clone();
                all[i] = Tensor::from_vec(moved, inputs[i].dims(), &Device::Cpu).unwrap();
                loss(&all)
            };
            differences.push((shifted(1e-5) - shifted(-1e-5)) / 2e-5);
        }
        assert_close(
            &format!("finite difference {i}"),
            &values(grad),
            &differences,
            5e-6,
        );
    }
}

/// Checks that `op` in bf16 follows itself in f32, forward and gradients, and rounds.
pub(crate) fn check_bf16(inputs: &[Tensor], op: &dyn Fn(&[Tensor], DType) -> Result<Tensor>) {
    let shape = op(inputs, DType::F32).unwrap().dims().to_vec();
    let weights = random(99, &shape);
    let [(expected, expected_grads), (found, grads)] =
        [DType::F32, DType::BF16].map(|compute| gradients(inputs, &weights, &|x| op(x, compute)));
    assert_eq!(found.dtype(), DType::F32);
    assert_ne!(values(&found), values(&expected), "nothing was rounded");
    // Factors have 8 bits, and a term is the product of two.
    assert_close("output", &values(&found), &values(&expected), 0.01);
    for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        assert_close(&format!("gradient {i}"), &values(grad), &values(expected), 0.02);
    }
}

/// What `work` gives on a pool of `threads` threads.
pub(crate) fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(work)
}

/// Says in the output of the tests, which hides what passing ones print, that one did not run.
pub(crate) fn skipped(what: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "SKIPPED: {what}").expect("stderr");
}
