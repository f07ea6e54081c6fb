//! Stacks of residual branches, of images of one size and of two.

use candle_core::{DType, Result, Tensor, Var};
use macula_models::ops::cuda::emulated;
use macula_models::ops::{
    BranchParameters, BranchSamples, DirectGradients, GeluKind, Middle, Packing, Rotary, StackOptions,
    StackedBranch, linear, packed_residual_stack, residual_stack,
};

use crate::cuda_emulation::launcher;
use crate::{assert_close, outcome, random, values};

pub(crate) fn parameters(x: &[Tensor]) -> BranchParameters {
    BranchParameters::from_list(std::array::from_fn(|place| x[place].clone()))
}

/// What stands between the projections of a branch of `width`: its name, itself, and the widths of both projections.
fn middles(width: usize, heads: usize) -> [(&'static str, Middle, usize, usize); 3] {
    [
        ("attention", Middle::Attention { heads }, 3 * width, width),
        ("GELU", Middle::GELU, 4 * width, 4 * width),
        ("SwiGLU", Middle::SwiGlu, 2 * width + 2, width + 1),
    ]
}

/// `x` and the parameters of two branches.
fn stack_inputs(x: Tensor, width: usize, expanded: usize, inner: usize) -> Vec<Tensor> {
    let shapes = BranchParameters::shapes(width, expanded, inner);
    let mut inputs = vec![x];
    for branch in 0..2 {
        let seeds = 10 * (branch + 1)..;
        // Weights as small as those of a network, or attention is all on one token.
        let scale = 0.5 / (width as f64).sqrt();
        inputs.extend(shapes.iter().zip(seeds).map(|(shape, seed)| match shape.len() {
            2 => (random(seed, shape) * scale).unwrap(),
            _ => random(seed, shape),
        }));
    }
    inputs
}

/// A stack of branches on `samples`, in turn with the parameters of two, against the CPU's kernels: values and gradients.
fn check_stack(
    what: &str,
    inputs: &[Tensor],
    (middle, rotary): (Middle, &[Rotary]),
    samples: &[Option<&BranchSamples>],
    stack: impl Fn(&Tensor, &[StackedBranch], StackOptions) -> Result<Tensor>,
) {
    let run = |compute: DType, checkpoint: bool| {
        let stack = &stack;
        move |x: &[Tensor]| {
            let all = [parameters(&x[1..8]), parameters(&x[8..15])];
            let branches: Vec<StackedBranch> = samples
                .iter()
                .zip(all.iter().cycle())
                .map(|(samples, parameters)| StackedBranch {
                    parameters,
                    middle,
                    samples: *samples,
                    rotary,
                })
                .collect();
            let options = StackOptions {
                eps: 1e-6,
                compute,
                checkpoint,
            };
            stack(&x[0], &branches, options)
        }
    };
    let (expected, expected_gradients) = outcome(inputs, &run(DType::F32, false));
    for (compute, checkpoint, tolerance) in [
        (DType::F32, false, 1e-5),
        (DType::F32, true, 1e-5),
        (DType::BF16, false, 3e-2),
        (DType::BF16, true, 3e-2),
    ] {
        let what = format!("{what} {compute:?} checkpoint {checkpoint}");
        let (found, gradients) = emulated(launcher(), || outcome(inputs, &run(compute, checkpoint)));
        assert_close(&what, &values(&found), &values(&expected), tolerance);
        for (place, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
            assert_eq!(
                (found.dims(), found.dtype()),
                (expected.dims(), DType::F32),
                "{what} {place}"
            );
            assert_close(
                &format!("{what}, gradient {place}"),
                &values(found),
                &values(expected),
                tolerance,
            );
        }
    }
}

/// A network of three branches, one on all samples, one on some and one on none.
#[test]
#[ignore = "needs a C++ compiler"]
fn stacks_of_branches_in_f32_and_bf16() {
    let some = BranchSamples {
        kept: vec![3, 0],
        factors: vec![2., 1.5],
    };
    let none = BranchSamples {
        kept: vec![],
        factors: vec![],
    };
    for (tokens, width, heads) in [
        (1, 6, 2),
        (5, 12, 3),
        (17, 33, 3),
        (33, 130, 2),
        (18, 64, 1),
        (66, 128, 2),
    ] {
        for (name, middle, expanded, inner) in middles(width, heads) {
            check_stack(
                &format!("{name} [4, {tokens}, {width}]"),
                &stack_inputs(random(1, &[4, tokens, width]), width, expanded, inner),
                (middle, &[]),
                &[None, Some(&some), Some(&none)],
                residual_stack,
            );
        }
    }
}

/// Images of two sizes in one tensor, against one size after the other: branches on all images, on some of both sizes, on some of
/// one size only, and on none.
#[test]
#[ignore = "needs a C++ compiler"]
fn packed_stacks_of_branches_in_f32_and_bf16() {
    let samples = |kept: &[u32]| BranchSamples {
        kept: kept.to_vec(),
        factors: kept.iter().map(|&sample| 1. + sample as f32 / 4.).collect(),
    };
    let (both, of_first, of_second) = (samples(&[1, 4, 2, 3]), samples(&[0]), samples(&[4, 2]));
    for (first, second, width, heads) in [
        ((2, 5), (3, 2), 12, 3),
        ((2, 1), (3, 37), 6, 1),
        ((2, 66), (3, 17), 34, 2),
        ((2, 66), (3, 17), 128, 2),
    ] {
        let packing = Packing::two(first, second);
        for (name, middle, expanded, inner) in middles(width, heads) {
            check_stack(
                &format!("{name} {first:?} {second:?} of {width}"),
                &stack_inputs(random(1, &[packing.rows(), width]), width, expanded, inner),
                (middle, &[]),
                &[
                    None,
                    Some(&both),
                    Some(&of_first),
                    Some(&of_second),
                    Some(&samples(&[])),
                ],
                |x, branches, options| packed_residual_stack(x, packing, branches, options),
            );
        }
    }
}

/// What the stacks of other backbones have: queries and keys turned by the angles of each size of images, with heads whose halves are
/// moved at once and heads whose are not, and the other forms of GELU.
#[test]
#[ignore = "needs a C++ compiler"]
fn stacks_of_other_backbones_in_f32_and_bf16() {
    let samples = |kept: &[u32]| BranchSamples {
        kept: kept.to_vec(),
        factors: kept.iter().map(|&sample| 1. + sample as f32 / 4.).collect(),
    };
    let (both, of_second) = (samples(&[1, 4, 2, 3]), samples(&[4, 2]));
    // A class token, then grids of as many columns.
    for (rows, columns, width, heads) in [([2, 1], 2, 8, 2), ([8, 3], 5, 128, 2), ([3, 2], 3, 32, 2)] {
        let angles = rows.map(|rows| Rotary::new(100., width / heads, 1, (rows, columns)).unwrap());
        let [tokens, tokens_of_second] = rows.map(|rows| 1 + rows * columns);
        let packing = Packing::two((2, tokens), (3, tokens_of_second));
        let attention = (Middle::Attention { heads }, 3 * width, width, &angles[..]);
        let gelus = [GeluKind::GeluTanh, GeluKind::QuickGelu]
            .map(|kind| (Middle::Gelu(kind), 4 * width, 4 * width, &[][..]));
        for (middle, expanded, inner, angles) in [attention].into_iter().chain(gelus) {
            let what = format!("{middle:?} of {width}");
            check_stack(
                &format!("{what} packed"),
                &stack_inputs(random(1, &[packing.rows(), width]), width, expanded, inner),
                (middle, angles),
                &[None, Some(&both), Some(&of_second)],
                |x, branches, options| packed_residual_stack(x, packing, branches, options),
            );
            check_stack(
                &what,
                &stack_inputs(random(1, &[4, tokens, width]), width, expanded, inner),
                (middle, angles.get(..1).unwrap_or_default()),
                &[None, Some(&samples(&[3, 0]))],
                residual_stack,
            );
        }
    }
}

/// Weights of branches, one of which comes twice, and of a layer that is used twice.
#[test]
#[ignore = "needs a C++ compiler"]
fn gradients_of_weights_go_straight_to_the_store() {
    let (width, heads) = (12, 3);
    let (_, middle, expanded, inner) = middles(width, heads)[0];
    let mut inputs = stack_inputs(random(1, &[2, 5, width]), width, expanded, inner);
    inputs.extend([random(30, &[7, width]), random(31, &[7])]);
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(input).unwrap())
        .collect();
    let x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let all = [parameters(&x[1..8]), parameters(&x[8..15])];
    let forward = || -> Result<Tensor> {
        let branches = [0, 1, 0].map(|branch| StackedBranch {
            parameters: &all[branch],
            middle,
            samples: None,
            rotary: &[],
        });
        let options = StackOptions {
            eps: 1e-6,
            compute: DType::F32,
            checkpoint: false,
        };
        let y = residual_stack(&x[0], &branches, options)?;
        let once = linear(&y, &x[15], Some(&x[16]), DType::F32)?;
        let twice = linear(&y.sqr()?, &x[15], Some(&x[16]), DType::F32)?;
        ((once * random(40, &[2, 5, 7]))? + (twice * random(41, &[2, 5, 7]))?)?.sum_all()
    };
    emulated(launcher(), || {
        let through_graph = forward().unwrap();
        let expected = through_graph.backward().unwrap();
        let pass = DirectGradients::default();
        let direct = pass.forward(forward).unwrap();
        // Eleven ties and fourteen weights of the stack, against the one value that stands for them.
        let nodes = |loss: &Tensor| loss.sorted_nodes().len();
        assert_eq!(nodes(&through_graph) - nodes(&direct), 11 + 14 - 1);
        let found = pass.backward(&direct).unwrap();
        for (place, var) in vars.iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|store| values(store.get(var).unwrap()));
            assert_eq!(found, expected, "input {place}");
        }
    });
}
