//! What the tests of this folder share: golden files and comparisons.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};

use crate::cluster::Ranks;
use crate::cluster::simulated::{Network, on_ranks};
use crate::data;
use crate::train::config::TrainConfig;
use crate::train::run::TrainRequest;
use crate::train::start::Start;

#[path = "../../models/tests/cuda_emulation/mod.rs"]
pub(crate) mod cuda_emulation;

/// A file of `tests/fixtures`.
pub(crate) fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The tensors of a safetensors fixture.
pub(crate) fn fixture(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture_path(name), &Device::Cpu).unwrap()
}

/// A run of `config` on the sample into `out`, to its end.
pub(crate) fn request(config: &TrainConfig, out: &Path, start: &Start) -> TrainRequest {
    TrainRequest {
        config: config.clone(),
        source: Arc::from(data::open("sample:train").unwrap()),
        out: out.to_path_buf(),
        replace: false,
        start: start.clone(),
        teacher: None,
        device: Device::Cpu,
        threads: 1,
        until: None,
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// All values as f64.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// The one value of a tensor of one element.
pub(crate) fn scalar(tensor: &Tensor) -> f64 {
    let values = values(tensor);
    assert_eq!(values.len(), 1, "one value");
    values[0]
}

/// Fails unless every value of `found` is within `tolerance` of `expected`, relative to the largest expected value.
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f64, |best, value| best.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        // Written so that NaN fails.
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}[{i}]: found {a}, expected {b}"
        );
    }
}

/// Fails unless the scalar `found` is within `tolerance` of `expected`, relatively.
pub(crate) fn assert_scalar(what: &str, found: &Tensor, expected: f64, tolerance: f64) {
    let found = scalar(found);
    assert!(
        (found - expected).abs() <= tolerance * expected.abs(),
        "{what}: found {found}, expected {expected}"
    );
}

/// What `work` gives for each of `parts` when each is a process of its own.
pub(crate) fn on_processes(
    parts: &[Tensor],
    work: impl Fn(&Tensor, &dyn Ranks) -> Tensor + Sync,
) -> Vec<Tensor> {
    on_ranks(parts.len(), Network::default(), |ranks| {
        work(&parts[ranks.rank()], ranks.as_ref())
    })
}
