//! Stacks against their plain composition.

use super::*;
use crate::ops::testing::{check, check_bf16, on_threads, random, values};
use crate::ops::{DirectGradients, composed};
use candle_core::backprop::GradStore;
use candle_core::{DType, Var};

const IN_F32: StackOptions = StackOptions {
    eps: 1e-3,
    compute: DType::F32,
    checkpoint: false,
};

fn parameters(x: &[Tensor]) -> BranchParameters {
    BranchParameters::from_list(std::array::from_fn(|place| x[1 + place].clone()))
}

/// `x` [batch, tokens, width] and parameters; weights small enough that no softmax saturates.
fn inputs(batch: usize, tokens: usize, width: usize, middle: Middle) -> Vec<Tensor> {
    let expanded = match middle {
        Middle::Attention { .. } => 3 * width,
        _ => 2 * width + 2,
    };
    let inner = middle.inner(expanded);
    let small = |seed, shape: &[usize]| (random(seed, shape) * 0.3).unwrap();
    vec![
        random(1, &[batch, tokens, width]),
        random(2, &[width]),
        random(3, &[width]),
        small(4, &[expanded, width]),
        small(5, &[expanded]),
        small(6, &[width, inner]),
        small(7, &[width]),
        random(8, &[width]),
    ]
}

/// A stack of one branch.
fn stack(
    x: &Tensor,
    parameters: &BranchParameters,
    middle: Middle,
    samples: Option<&BranchSamples>,
) -> Result<Tensor> {
    let branch = StackedBranch {
        parameters,
        middle,
        samples,
        rotary: &[],
    };
    residual_stack(x, &[branch], IN_F32)
}

/// The composition of one branch.
fn oracle(x: &[Tensor], middle: Middle, samples: Option<&BranchSamples>) -> Result<Tensor> {
    let branch = StackedBranch {
        parameters: &parameters(x),
        middle,
        samples,
        rotary: &[],
    };
    composed::residual_stack(&x[0], &[branch], IN_F32)
}

#[test]
fn bf16_follows_f32() {
    for middle in [Middle::GELU, Middle::SwiGlu, Middle::Attention { heads: 2 }] {
        check_bf16(&inputs(3, 9, 16, middle), &|x, compute| {
            let branch = StackedBranch {
                parameters: &parameters(x),
                middle,
                samples: None,
                rotary: &[],
            };
            residual_stack(&x[0], &[branch], StackOptions { compute, ..IN_F32 })
        });
    }
}

/// Queries and keys turned by places, and each kind of GELU, on some samples of the batch too.
#[test]
fn rotary_positions_and_kinds_of_gelu_agree_with_the_composition() {
    use crate::ops::GeluKind;
    // Angles of a third of a turn: of a half of one the sines would be 0.
    let rotary = [Rotary::new(100., 4, 1, (3, 1)).unwrap()];
    let samples = BranchSamples {
        kept: vec![2, 0],
        factors: vec![1.5, 0.5],
    };
    let attention = (Middle::Attention { heads: 2 }, &rotary[..]);
    let gelu = |kind| (Middle::Gelu(kind), &[][..]);
    for (middle, rotary) in [attention, gelu(GeluKind::GeluTanh), gelu(GeluKind::QuickGelu)] {
        for samples in [None, Some(&samples)] {
            let of = |x: &[Tensor], composed: bool| {
                let branch = [StackedBranch {
                    parameters: &parameters(x),
                    middle,
                    samples,
                    rotary,
                }];
                match composed {
                    true => composed::residual_stack(&x[0], &branch, IN_F32),
                    false => residual_stack(&x[0], &branch, IN_F32),
                }
            };
            check(&inputs(3, 4, 8, middle), &|x| of(x, false), &|x| of(x, true));
        }
        let inputs = inputs(3, 4, 8, middle);
        check_bf16(&inputs, &|x, compute| {
            let branch = StackedBranch {
                parameters: &parameters(x),
                middle,
                samples: None,
                rotary,
            };
            residual_stack(&x[0], &[branch], StackOptions { compute, ..IN_F32 })
        });
    }
    // The table matters, and belongs to attention on images of its size.
    let x = inputs(3, 4, 8, attention.0);
    let with = |rotary: &[Rotary], tokens: usize| {
        let branch = StackedBranch {
            parameters: &parameters(&x),
            middle: attention.0,
            samples: None,
            rotary,
        };
        residual_stack(&x[0].narrow(1, 0, tokens)?, &[branch], IN_F32)
    };
    let (some, none) = (with(&rotary, 4), with(&[], 4));
    assert_ne!(values(&some.unwrap()), values(&none.unwrap()));
    let twice = [rotary[0].clone(), rotary[0].clone()];
    for (rotary, tokens, message) in [
        (&rotary[..], 3, "expected a table of 3 tokens"),
        (
            &twice[..],
            4,
            "expected angles for images of 1 sizes, found those of 2",
        ),
    ] {
        let error = with(rotary, tokens).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let x = inputs(3, 4, 8, Middle::GELU);
    let branch = StackedBranch {
        parameters: &parameters(&x),
        middle: Middle::GELU,
        samples: None,
        rotary: &rotary,
    };
    let error = residual_stack(&x[0], &[branch], IN_F32).unwrap_err().to_string();
    assert!(error.contains("with attention alone"), "{error}");
}

/// Images of two sizes have the angles of their own grids, on some images of both too.
#[test]
fn packed_images_turn_by_the_angles_of_their_own_sizes() {
    let middle = Middle::Attention { heads: 2 };
    let angles = [(3, 1), (2, 3)].map(|grid| Rotary::new(100., 4, 1, grid).unwrap());
    let packing = Packing::two((2, 4), (3, 7));
    let x = inputs(1, packing.rows(), 8, middle);
    let some = BranchSamples {
        kept: vec![1, 4, 2],
        factors: vec![1.5, 0.5, 2.],
    };
    let of_each = [(vec![1], vec![1.5]), (vec![2, 0], vec![0.5, 2.])];
    let of_each = of_each.map(|(kept, factors)| BranchSamples { kept, factors });
    let parameters = parameters(&x);
    let run =
        |x: &Tensor, rotary: &[Rotary], samples: [Option<&BranchSamples>; 2], packing: Option<Packing>| {
            let branches = samples.map(|samples| StackedBranch {
                parameters: &parameters,
                middle,
                samples,
                rotary,
            });
            match packing {
                Some(packing) => packed_residual_stack(x, packing, &branches, IN_F32),
                None => residual_stack(x, &branches, IN_F32),
            }
        };
    let rows = x[0].squeeze(0).unwrap();
    let packed = run(&rows, &angles, [None, Some(&some)], Some(packing)).unwrap();
    for (size, images, tokens, range) in packing.sizes() {
        let own = rows.narrow(0, range.start, range.len()).unwrap();
        let own = own.reshape((images, tokens, 8)).unwrap();
        let rotary = std::slice::from_ref(&angles[size]);
        let alone = run(&own, rotary, [None, Some(&of_each[size])], None).unwrap();
        let together = packed.narrow(0, range.start, range.len()).unwrap();
        assert_eq!(values(&together), values(&alone), "size {size}");
    }
    let error = run(&rows, &angles[..1], [None; 2], Some(packing))
        .unwrap_err()
        .to_string();
    assert!(error.contains("images of 2 sizes, found those of 1"), "{error}");
}

#[test]
fn agrees_with_the_composition() {
    for (batch, tokens, width, middle) in [
        (1, 1, 2, Middle::GELU),
        (2, 3, 5, Middle::GELU),
        (3, 11, 3, Middle::SwiGlu),
        (1, 1, 4, Middle::Attention { heads: 1 }),
        (2, 4, 6, Middle::Attention { heads: 3 }),
    ] {
        check(
            &inputs(batch, tokens, width, middle),
            &|x| stack(&x[0], &parameters(x), middle, None),
            &|x| oracle(x, middle, None),
        );
    }
}

#[test]
fn a_subset_agrees_with_gather_and_scatter() {
    let samples = BranchSamples {
        kept: vec![3, 0],
        factors: vec![2.5, 0.5],
    };
    for middle in [Middle::GELU, Middle::Attention { heads: 2 }] {
        check(
            &inputs(4, 3, 4, middle),
            &|x| stack(&x[0], &parameters(x), middle, Some(&samples)),
            &|x| oracle(x, middle, Some(&samples)),
        );
    }
}

#[test]
fn layers_follow_each_other_and_one_on_no_sample_is_passed_by() {
    let (first, second) = (Middle::Attention { heads: 2 }, Middle::SwiGlu);
    let mut all = inputs(3, 2, 4, first);
    all.extend(inputs(3, 2, 4, second).into_iter().skip(1));
    let split = |x: &[Tensor]| {
        let mut later = vec![x[0].clone()];
        later.extend_from_slice(&x[8..]);
        later
    };
    let one = BranchSamples {
        kept: vec![1],
        factors: vec![1.],
    };
    let run = |x: &[Tensor], samples: [Option<&BranchSamples>; 2]| {
        let (a, b) = (parameters(x), parameters(&split(x)));
        let branch = |parameters, middle, samples| StackedBranch {
            parameters,
            middle,
            samples,
            rotary: &[],
        };
        let branches = [branch(&a, first, samples[0]), branch(&b, second, samples[1])];
        residual_stack(&x[0], &branches, IN_F32)
    };
    check(&all, &|x| run(x, [None; 2]), &|x| {
        let mut later = split(x);
        later[0] = oracle(x, first, None)?;
        oracle(&later, second, None)
    });
    // The second branch's input is the first's sum, of which one sample has changed.
    check(&all, &|x| run(x, [Some(&one), None]), &|x| {
        let changed = oracle(x, first, None)?.narrow(0, 1, 1)?;
        let mut later = split(x);
        later[0] = Tensor::cat(&[&x[0].narrow(0, 0, 1)?, &changed, &x[0].narrow(0, 2, 1)?], 0)?;
        oracle(&later, second, None)
    });
    let none = BranchSamples {
        kept: Vec::new(),
        factors: Vec::new(),
    };
    let vars: Vec<Var> = all.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = run(&x, [Some(&none), None]).unwrap();
    assert_eq!(
        values(&out),
        values(&stack(&x[0], &parameters(&split(&x)), second, None).unwrap())
    );
    let store = out.sum_all().unwrap().backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        assert_eq!(store.get(var).is_some(), i == 0 || i > 7, "input {i}");
    }
    let out = run(&x, [Some(&none); 2]).unwrap();
    assert_eq!(values(&out), values(&x[0]));
}

#[test]
fn checkpointing_changes_no_bit() {
    let samples = BranchSamples {
        kept: vec![2, 0],
        factors: vec![1.5, 0.5],
    };
    for middle in [Middle::GELU, Middle::SwiGlu, Middle::Attention { heads: 2 }] {
        let inputs = inputs(3, 5, 8, middle);
        for compute in [DType::F32, DType::BF16] {
            let run = |checkpoint: bool| {
                let vars: Vec<Var> = inputs
                    .iter()
                    .map(|input| Var::from_tensor(input).unwrap())
                    .collect();
                let x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
                let all = parameters(&x);
                let branches = [None, Some(&samples), None].map(|samples| StackedBranch {
                    parameters: &all,
                    middle,
                    samples,
                    rotary: &[],
                });
                let options = StackOptions {
                    compute,
                    checkpoint,
                    ..IN_F32
                };
                let out = residual_stack(&x[0], &branches, options).unwrap();
                let store = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let gradients: Vec<Vec<f64>> =
                    vars.iter().map(|var| values(store.get(var).unwrap())).collect();
                (values(&out), gradients)
            };
            assert_eq!(run(true), run(false), "{middle:?} {compute:?}");
        }
    }
}

#[test]
fn wrong_samples_are_refused() {
    let x = inputs(3, 1, 2, Middle::GELU);
    for (kept, factors, message) in [
        (vec![0, 3], vec![1.; 2], "expected a sample below 3"),
        (vec![1, 1], vec![1.; 2], "named twice"),
        (vec![1, 2], vec![1.], "expected 2 factors, found 1"),
    ] {
        let samples = BranchSamples { kept, factors };
        let result = stack(&x[0], &parameters(&x), Middle::GELU, Some(&samples));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn threads_change_nothing_and_a_second_backward_pass_is_like_the_first() {
    let run = |frozen: bool| {
        let vars: Vec<Var> = inputs(5, 9, 8, Middle::GELU)
            .iter()
            .map(|input| Var::from_tensor(input).unwrap())
            .collect();
        let mut x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        if frozen {
            x[4] = x[4].detach();
        }
        let out = stack(&x[0], &parameters(&x), Middle::GELU, None).unwrap();
        let loss = (&out * random(9, &[5, 9, 8])).unwrap().sum_all().unwrap();
        let grads = [loss.backward().unwrap(), loss.backward().unwrap()];
        let [first, second] = grads.map(|store| {
            let of = |var: &Var| store.get(var).map(values);
            vars.iter().map(of).collect::<Vec<_>>()
        });
        assert_eq!(first, second);
        (values(&out), first)
    };
    let (out, grads) = on_threads(1, || run(false));
    assert_eq!((out, grads.clone()), on_threads(3, || run(false)));
    let (_, frozen) = run(true);
    for (i, (frozen, grad)) in frozen.iter().zip(&grads).enumerate() {
        assert_eq!(frozen.as_ref(), grad.as_ref().filter(|_| i != 4), "parameter {i}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let message = |x: &[Tensor], middle| {
        let result = stack(&x[0], &parameters(x), middle, None);
        result.unwrap_err().to_string()
    };
    let mut x = inputs(1, 2, 4, Middle::GELU);
    let found = message(&x, Middle::Attention { heads: 2 });
    assert!(
        found.contains("expected a parameter of shape [4, 3], found [4, 10]"),
        "{found}"
    );
    x[7] = random(1, &[3]);
    let found = message(&x, Middle::GELU);
    assert!(
        found.contains("expected a parameter of shape [4], found [3]"),
        "{found}"
    );
    let x = inputs(1, 2, 4, Middle::Attention { heads: 2 });
    let found = message(&x, Middle::Attention { heads: 3 });
    assert!(
        found.contains("expected 4 to be a multiple of 3 heads"),
        "{found}"
    );
}

/// Two layers that share weights, one of them frozen, as two sizes of crops have them.
#[test]
fn gradients_of_weights_go_straight_to_the_store() {
    let middle = Middle::GELU;
    for are_leaves in [true, false] {
        let vars: Vec<Var> = inputs(3, 5, 8, middle)
            .iter()
            .map(|input| Var::from_tensor(input).unwrap())
            .collect();
        let forward = || {
            let mut x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            x[4] = x[4].detach();
            if !are_leaves {
                x[5] = (&x[5] * 0.5).unwrap();
            }
            let parameters = parameters(&x);
            let first = stack(&x[0], &parameters, middle, None).unwrap();
            let out = stack(&first, &parameters, middle, None).unwrap();
            (out * random(9, &[3, 5, 8])).unwrap().sum_all().unwrap()
        };
        let of_all = |store: &GradStore| -> Vec<Option<Vec<f64>>> {
            vars.iter().map(|var| store.get(var).map(values)).collect()
        };
        let through_graph = forward();
        let expected = of_all(&through_graph.backward().unwrap());
        assert!(expected[4].is_none() && expected.iter().flatten().count() == 7);
        let pass = DirectGradients::default();
        let direct = pass.forward(forward);
        let nodes = |loss: &Tensor| loss.sorted_nodes().len();
        // Of each layer four ties and what they end in, against the one that stands for them; six weights.
        let fewer = nodes(&through_graph) - nodes(&direct);
        assert_eq!(fewer, if are_leaves { 2 * 4 + 6 - 2 } else { 0 });
        if are_leaves {
            let error = direct.backward().unwrap_err().to_string();
            assert!(error.contains("found another one"), "{error}");
        }
        assert_eq!(of_all(&pass.backward(&direct).unwrap()), expected);
        // Told one by one, once both layers have left theirs.
        let pass = DirectGradients::default();
        let direct = pass.forward(forward);
        let early = pass.early();
        assert_eq!(early.is_empty(), !are_leaves);
        let (tell, told) = std::sync::mpsc::channel();
        let mut store = pass.backward_telling(&direct, tell).unwrap();
        for (weight, gradient) in told {
            assert!(early.iter().any(|other| other.id() == weight.id()) && store.get(&weight).is_none());
            store.insert(&weight, gradient);
        }
        assert_eq!(of_all(&store), expected);
        // Behind the pass all is as before it.
        assert_eq!(of_all(&forward().backward().unwrap()), expected);
    }
}
