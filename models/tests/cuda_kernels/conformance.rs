//! Every operation of every backend against its composition, forward and gradients: a new operation is a case in the list here, or in
//! that of `macula bench ops`; a new backend is a test here.

use candle_core::{DType, Device, Tensor};
use macula_models::ops::cuda::emulated;
use macula_models::ops::{
    BackendKind, BranchParameters, GeluKind, Middle, OpCase, OpComparison, Rotary, StackOptions,
    StackedBranch, attention_probabilities, backend_kind, compare_operations, compare_with_composition,
    gelu_of, patch_rows, prototype_logits, residual_stack, rotate, windows,
};

use crate::cuda_emulation::launcher;
use crate::stacks::parameters;

/// Images, tokens, heads and the width of one.
const SHAPE: [usize; 4] = [3, 11, 2, 8];

/// The operations that `macula bench ops` does not time.
fn more_cases() -> Vec<OpCase> {
    let [images, tokens, heads, head_dim] = SHAPE;
    let qkv: &[&[usize]] = &[&[images, tokens, 3, heads, head_dim]];
    let turned = angles();
    let mut cases = vec![
        OpCase::new("prototype_logits", &[&[33, 17], &[29, 17]], |x, compute| {
            prototype_logits(&x[0], &x[1], compute)
        }),
        OpCase::new("attention_probabilities", qkv, |x, _| {
            attention_probabilities(&x[0].detach(), 0.35)
        }),
        OpCase::new("rotate", qkv, move |x, _| rotate(&x[0], &turned)),
        OpCase::new("windows", &[&[2, 5, 8, 3]], |x, _| windows(&x[0], 2)),
        OpCase::new("windows of stride 1", &[&[2, 5, 8, 3]], |x, _| windows(&x[0], 1)),
        OpCase::new("patch_rows", &[&[2, 3, 15, 10]], |x, compute| {
            patch_rows(&x[0], 5, compute)
        }),
        OpCase::new("patch_rows of pixels alone", &[&[2, 3, 15, 10]], |x, compute| {
            // Behind the values of a patch there may be zeros.
            patch_rows(&x[0].detach(), 5, compute)?.narrow(2, 0, 75)
        }),
        branch_case(
            "residual_stack, turned",
            Middle::Attention { heads },
            Some(angles()),
        ),
    ];
    for kind in GeluKind::ALL {
        let gelu = move |x: &[Tensor], _| gelu_of(&x[0], kind);
        cases.push(OpCase::new(format!("gelu, {kind}"), &[&[37, 13]], gelu));
        cases.push(branch_case(
            &format!("residual_stack, {kind}"),
            Middle::Gelu(kind),
            None,
        ));
    }
    cases
}

/// Those of two tokens and a grid of 3 x 3 patches.
fn angles() -> Rotary {
    Rotary::new(100., SHAPE[3], 2, (3, 3)).unwrap()
}

/// A stack of one branch.
fn branch_case(name: &str, middle: Middle, rotary: Option<Rotary>) -> OpCase {
    let [images, tokens, heads, head_dim] = SHAPE;
    let width = heads * head_dim;
    let (expanded, inner) = match middle {
        Middle::Attention { .. } => (3 * width, width),
        _ => (4 * width, 4 * width),
    };
    let of_branch = BranchParameters::shapes(width, expanded, inner);
    let x = [images, tokens, width];
    let mut shapes: Vec<&[usize]> = vec![&x];
    shapes.extend(of_branch.iter().map(Vec::as_slice));
    OpCase::new(name, &shapes, move |x, compute| {
        // Weights as small as those of a network.
        let small = |x: &Tensor| if x.rank() == 2 { x * 0.2 } else { Ok(x.clone()) };
        let small = x[1..8]
            .iter()
            .map(small)
            .collect::<candle_core::Result<Vec<_>>>()?;
        let branch = StackedBranch {
            parameters: &parameters(&small),
            middle,
            samples: None,
            rotary: rotary.as_slice(),
        };
        let options = StackOptions {
            eps: 1e-6,
            compute,
            checkpoint: false,
        };
        residual_stack(&x[0], &[branch], options)
    })
}

/// The methods of the trait that compute, by its source.
fn operations() -> Vec<&'static str> {
    let source = include_str!("../../src/ops/backend/mod.rs");
    let (_, source) = source.split_once("trait Backend").unwrap();
    let (source, _) = source
        .split_once(
            "
}
",
        )
        .unwrap();
    let methods = source
        .split(
            "
    fn ",
        )
        .skip(1);
    methods
        .filter(|method| method.contains("-> Result<Tensor>"))
        .map(|method| method.split_once('(').unwrap().0)
        .collect()
}

/// Fails unless CPU tensors are those of `kind` in `scope`, and all its operations agree there with their compositions.
fn conforms(
    kind: BackendKind,
    compute: DType,
    scope: impl FnOnce(&dyn Fn() -> Vec<OpComparison>) -> Vec<OpComparison>,
) {
    let found = scope(&|| {
        assert_eq!(backend_kind(&Device::Cpu), kind);
        compare_with_composition(compute, &more_cases()).unwrap()
    });
    for op in &found {
        assert!(op.is_within(), "{kind:?} {compute:?}: {op:?}");
    }
    let operations = operations();
    assert!(operations.len() > 15, "{operations:?}");
    for operation in operations {
        let of_it = |op: &OpComparison| op.name.split([' ', ',']).next() == Some(operation);
        assert!(found.iter().any(of_it), "{operation} has a case");
    }
}

#[test]
fn the_kernels_of_the_processor_conform() {
    conforms(BackendKind::Cpu, DType::F32, |work| work());
}

#[test]
#[ignore = "needs a C++ compiler"]
fn the_kernels_of_an_emulated_gpu_conform() {
    for compute in [DType::F32, DType::BF16] {
        conforms(BackendKind::Cuda, compute, |work| emulated(launcher(), work));
    }
}

/// Every operation of `macula bench ops --device cuda`.
#[test]
#[ignore = "needs a C++ compiler"]
fn every_operation_agrees_with_the_cpu() {
    for compute in [DType::F32, DType::BF16] {
        let found = emulated(launcher(), || compare_operations(&Device::Cpu, compute, &[])).unwrap();
        assert_eq!(found.len(), 20);
        for op in found {
            println!(
                "{compute:?} {:.1e} {:.1e} {}",
                op.output_error, op.gradient_error, op.name
            );
            assert!(op.is_within(), "{compute:?}: {op:?}");
        }
    }
}
