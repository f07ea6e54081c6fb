//! The CUDA kernels, run on the processor, and the operations made of them: forward and gradients against the CPU's kernels and the
//! compositions of candle arithmetic, a file a family. Needs a C++ compiler: `cargo test --release --workspace --test cuda_kernels --
//! --ignored`. `conformance` holds every backend to the composition, those of the processor without a compiler too.
#![allow(clippy::unwrap_used)]

mod attention;
mod conformance;
mod crops;
#[path = "../cuda_emulation/mod.rs"]
mod cuda_emulation;
mod layers;
mod losses;
mod networks;
mod stacks;
mod tokens;
mod updates;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use cuda_emulation::launcher;
use macula_models::ops::cuda::geometry::Launch;
use macula_models::ops::cuda::{Access, Buffer, Cell, emulated};
use macula_models::ops::{composed, gelu, layer_norm, linear, swiglu};

/// Rows and widths: single ones, fewer than a warp's lanes or a block's rows, more than one block has.
const SIZES: [(usize, usize); 8] = [
    (1, 1),
    (1, 3),
    (3, 33),
    (2, 129),
    (5, 1000),
    (70, 7),
    (300, 36),
    (67, 260),
];

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let value = |place: usize| {
        let mut z = (seed << 40).wrapping_add((place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.
    };
    Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// As a share of the largest expected value, or of 1.
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: count");
    let largest = expected.iter().fold(1f64, |max, value| max.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}[{i}]: found {a}, expected {b}"
        );
    }
}

type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The value at `inputs` and the gradients of all of them, of a sum weighted by random numbers.
fn outcome(inputs: &[Tensor], function: Function) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(input).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = function(&tensors).unwrap();
    let weights = random(99, output.dims()).to_dtype(output.dtype()).unwrap();
    let store = (&output * weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let gradients = vars
        .iter()
        .map(|var| store.get(var).expect("a gradient for every input").clone());
    (output.detach(), gradients.collect())
}

/// Holds `function` on the emulated GPU against its composition in f64. The first `rounded` inputs are of `dtype`.
fn check(what: &str, inputs: &[Tensor], (rounded, dtype): (usize, DType), function: Function) {
    let as_given = |(place, input): (usize, &Tensor)| match place < rounded {
        true => input.to_dtype(dtype).unwrap(),
        false => input.clone(),
    };
    let given: Vec<Tensor> = inputs.iter().enumerate().map(as_given).collect();
    let double: Vec<Tensor> = given
        .iter()
        .map(|input| input.to_dtype(DType::F64).unwrap())
        .collect();
    let (expected, expected_gradients) = composed(|| outcome(&double, function));
    let (found, gradients) = emulated(launcher(), || outcome(&given, function));
    // bf16 keeps eight bits of what is stored, between the steps of an operation as well.
    let tolerance = if dtype == DType::BF16 { 2e-2 } else { 4e-6 };
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    assert_close(what, &values(&found), &values(&expected), tolerance);
    for (place, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_eq!(found.dims(), expected.dims(), "{what}: shape of gradient {place}");
        let name = format!("{what}, gradient {place}");
        assert_close(&name, &values(found), &values(expected), tolerance);
    }
}

/// In f32 only.
const SINGLE: (usize, DType) = (0, DType::F32);

#[test]
#[ignore = "needs a C++ compiler"]
fn wrong_types_and_shapes_are_refused() {
    let error = |work: &dyn Fn() -> Result<Tensor>| emulated(launcher(), work).unwrap_err().to_string();
    let double = random(1, &[2, 3]).to_dtype(DType::F64).unwrap();
    let width = random(2, &[3]);
    let message = error(&|| layer_norm(&double, &width, &width, 1e-6));
    assert!(message.contains("expected f32, found F64"), "{message}");
    let message = error(&|| gelu(&double));
    assert!(
        message.contains("expected f32 or bf16 on this device, found F64"),
        "{message}"
    );
    let message = error(&|| swiglu(&random(1, &[2, 3])));
    assert!(
        message.contains("expected an even last dimension, found 3"),
        "{message}"
    );
    let message = error(&|| linear(&random(1, &[2, 3]), &random(2, &[5, 4]), None, DType::F32));
    assert!(message.contains("expected weight [5, 3]"), "{message}");
    let wide = random(1, &[2, 7000]);
    let gain = Var::from_tensor(&random(2, &[7000])).unwrap();
    let message = error(&|| {
        let y = layer_norm(&wide, &gain, &gain, 1e-6)?;
        let total = y.sum(D::Minus1)?.sum_all()?;
        Ok(total.backward()?.get(&gain).expect("a gradient").clone())
    });
    assert!(
        message.contains("whose sums fit into 48 KiB, found 7000"),
        "{message}"
    );
}

/// The emulation itself: what it is there to see, it sees.
#[test]
#[ignore = "needs a C++ compiler"]
fn faults_of_kernels_are_seen() {
    let memory = vec![0f32; 64];
    let buffer = |access| Buffer {
        dtype: DType::F32,
        address: memory.as_ptr().expose_provenance() as u64,
        bytes: 256,
        access,
    };
    let shape = Launch {
        grid: [1, 1],
        block: 64,
        shared: 256,
    };
    let run = |kernel: &str, access, count: Cell| {
        let cells = [Cell::Buffer(Some(buffer(access))), count];
        launcher().launch(kernel, &shape, &cells).unwrap_err()
    };
    let half = Cell::Int(32);
    for (kernel, access, count, expected) in [
        (
            "broken_no_barrier",
            Access::Write,
            Cell::Int(64),
            "a barrier is missing",
        ),
        (
            "broken_barrier_of_some",
            Access::Write,
            half.clone(),
            "a barrier that others never reach",
        ),
        (
            "broken_writes_before",
            Access::Write,
            half.clone(),
            "wrote before a buffer",
        ),
        (
            "broken_unaligned",
            Access::Change,
            Cell::Int(3),
            "not a multiple of what is read or written at once",
        ),
        (
            "broken_copy",
            Access::Change,
            half.clone(),
            "a copy that its thread does not wait for",
        ),
        (
            "gelu_forward_f32",
            Access::Write,
            half.clone(),
            "expected arguments FFFiiii, found Fi",
        ),
        (
            "broken_no_barrier",
            Access::Write,
            Cell::Float(1.),
            "expected arguments Fi, found Ff",
        ),
        ("no_such_kernel", Access::Write, half, "no such kernel"),
    ] {
        let error = run(kernel, access, count);
        assert!(error.contains(expected), "{kernel}: {error}");
    }
}
