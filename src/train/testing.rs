//! What the tests of this folder share: golden files and comparisons.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Barrier, Mutex};

use candle_core::{DType, Device, Result, Tensor};

use super::ranks::Ranks;

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

/// Threads that stand for processes: what each brings to a reduction lies in its own slot.
struct Meeting {
    barrier: Barrier,
    slots: Mutex<Vec<Tensor>>,
}

struct Process<'a> {
    index: usize,
    meeting: &'a Meeting,
}

impl Process<'_> {
    fn reduce(&self, tensor: &Tensor, join: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.meeting.slots.lock().unwrap()[self.index] = tensor.clone();
        self.meeting.barrier.wait();
        let all = self.meeting.slots.lock().unwrap().clone();
        self.meeting.barrier.wait();
        let (first, rest) = all.split_first().unwrap();
        rest.iter().try_fold(first.clone(), |sum, next| join(&sum, next))
    }
}

impl Ranks for Process<'_> {
    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        self.reduce(tensor, |a, b| a + b)
    }

    fn max(&self, tensor: &Tensor) -> Result<Tensor> {
        self.reduce(tensor, |a, b| a.maximum(b))
    }
}

/// What `work` gives for each of `parts` when each is a process of its own.
pub(crate) fn on_processes(
    parts: &[Tensor],
    work: impl Fn(&Tensor, &dyn Ranks) -> Tensor + Sync,
) -> Vec<Tensor> {
    let meeting = &Meeting {
        barrier: Barrier::new(parts.len()),
        slots: Mutex::new(parts.to_vec()),
    };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |(index, part)| scope.spawn(move || work(part, &Process { index, meeting }));
        let threads: Vec<_> = parts.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
