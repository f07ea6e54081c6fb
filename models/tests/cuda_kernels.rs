//! The CUDA kernels, run on the processor, and the operations made of them: forward and gradients against the CPU's kernels and the
//! compositions of candle arithmetic. Needs a C++ compiler: `cargo test --release --workspace --test cuda_kernels -- --ignored`.
#![allow(clippy::unwrap_used)]

mod cuda_emulation;

use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use cuda_emulation::launcher;
use macula_models::ops::cuda::augment::{Change, Crop, CropTable, Weights, crops};
use macula_models::ops::cuda::geometry::Launch;
use macula_models::ops::cuda::optimizer::{AdamwUpdate, Clip, Moved, Tables, adamw, sums_of_squares};
use macula_models::ops::cuda::{Access, Buffer, Cell, Launcher, emulated};
use macula_models::ops::{
    BranchParameters, BranchSamples, DirectGradients, Middle, Packing, SpecialTokens, StackOptions,
    StackedBranch, assemble_tokens, attention, compare_operations, composed, gather_rows, gelu, l2_normalize,
    layer_norm, linear, packed_residual_stack, patch_rows, product_cross_entropy, residual_stack,
    soft_cross_entropy, swiglu, weight_norm,
};

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
fn norms_and_normalisations() {
    for (rows, width) in SIZES {
        let shape = [rows, width];
        let what = |name: &str| format!("{name} {shape:?}");
        let inputs = [random(1, &shape), random(2, &[width]), random(3, &[width])];
        // One column has no spread: eps alone keeps its norm finite.
        let eps = if width == 1 { 1e-2 } else { 1e-6 };
        check(&what("layer_norm"), &inputs, SINGLE, &|x| {
            layer_norm(&x[0], &x[1], &x[2], eps)
        });
        check(&what("l2_normalize"), &inputs[..1], SINGLE, &|x| {
            l2_normalize(&x[0], 1e-12)
        });
        // The last layer of a head in bf16 hands its rows over as they are.
        let half = (1, DType::BF16);
        check(&what("l2_normalize of bf16"), &inputs[..1], half, &|x| {
            l2_normalize(&x[0], 1e-12)
        });
        let inputs = [random(1, &shape), random(2, &[rows, 1])];
        check(&what("weight_norm"), &inputs, SINGLE, &|x| {
            weight_norm(&x[0], &x[1])
        });
    }
    let zeros = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let y = emulated(launcher(), || l2_normalize(&zeros, 1e-12)).unwrap();
    let grads = emulated(launcher(), || y.sum_all().unwrap().backward()).unwrap();
    assert!(
        values(grads.get(&zeros).unwrap())
            .iter()
            .all(|value| value.is_finite())
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn activations_and_linear_layers_in_f32_and_bf16() {
    for dtype in [DType::F32, DType::BF16] {
        for (rows, width) in SIZES {
            let what = |name: &str| format!("{name} [{rows}, {width}] {dtype:?}");
            let x = random(1, &[rows, width]);
            check(&what("gelu"), std::slice::from_ref(&x), (1, dtype), &|x| {
                gelu(&x[0])
            });
            let pair = random(2, &[rows, 2 * width]);
            check(&what("swiglu"), &[pair], (1, dtype), &|x| swiglu(&x[0]));
            // Not so wide that the sums of products outgrow what bf16 keeps of them.
            let inputs = width.min(33);
            let narrow = random(1, &[rows, inputs]);
            let arguments = [narrow, (random(3, &[5, inputs]) * 0.2).unwrap(), random(4, &[5])];
            check(&what("linear"), &arguments, (2, dtype), &|x| {
                linear(&x[0], &x[1], Some(&x[2]), x[0].dtype())
            });
            check(&what("linear without bias"), &arguments[..2], (2, dtype), &|x| {
                linear(&x[0], &x[1], None, x[0].dtype())
            });
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn far_out_and_broken_values_of_gelu() {
    let x = Var::new(&[1e30f32, -1e18, f32::NAN, 0., f32::INFINITY], &Device::Cpu).unwrap();
    let y = emulated(launcher(), || gelu(&x)).unwrap();
    let grads = emulated(launcher(), || y.sum_all().unwrap().backward()).unwrap();
    let (y, slope) = (
        y.to_vec1::<f32>().unwrap(),
        grads.get(&x).unwrap().to_vec1::<f32>().unwrap(),
    );
    assert!(
        y[0] == 1e30 && y[1] == 0. && y[2].is_nan() && y[3] == 0. && y[4] == f32::INFINITY,
        "{y:?}"
    );
    assert!(
        slope[0] == 1. && slope[1] == 0. && slope[2].is_nan() && slope[3] == 0.5 && slope[4] == 1.,
        "{slope:?}"
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn attention_in_f32_and_bf16() {
    for dtype in [DType::F32, DType::BF16] {
        for (batch, tokens, heads, head_dim) in [
            (1, 1, 1, 3),
            (2, 5, 3, 4),
            (1, 33, 2, 7),
            (3, 129, 1, 5),
            (9, 2, 3, 64),
        ] {
            let what = format!("attention [{batch}, {tokens}, 3, {heads}, {head_dim}] {dtype:?}");
            let qkv = random(1, &[batch, tokens, 3, heads, head_dim]);
            let scale = 1. / (head_dim as f64).sqrt();
            check(&what, &[qkv], (1, dtype), &|x| attention(&x[0], scale));
        }
    }
}

/// Heads of 64 values in bf16: rows that fill a warp, a tile, a block or not, one block a head and many.
#[test]
#[ignore = "needs a C++ compiler"]
fn attention_that_keeps_no_scores() {
    for (batch, tokens, heads) in [
        (1, 1, 1),
        (2, 5, 3),
        (3, 16, 1),
        (1, 17, 2),
        (2, 50, 3),
        (1, 63, 1),
        (1, 64, 2),
        (2, 65, 1),
        (1, 130, 2),
        (1, 257, 1),
    ] {
        // Scores as they come, and some that leave most tokens next to nothing.
        for size in [1., 4.] {
            let what = format!("attention [{batch}, {tokens}, 3, {heads}, 64] of size {size}");
            let qkv = (random(1, &[batch, tokens, 3, heads, 64]) * size).unwrap();
            check(&what, &[qkv], (1, DType::BF16), &|x| attention(&x[0], 0.125));
        }
    }
}

/// Notes what is launched.
struct Names(Mutex<Vec<String>>);

impl Launcher for Names {
    fn launch(&self, kernel: &str, launch: &Launch, cells: &[Cell]) -> std::result::Result<(), String> {
        self.0.lock().unwrap().push(kernel.to_owned());
        launcher().launch(kernel, launch, cells)
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn attention_takes_the_kernels_that_suit() {
    let launched = |dtype: DType, tokens: usize, head_dim: usize| {
        let names = Arc::new(Names(Mutex::new(Vec::new())));
        let qkv = random(1, &[1, tokens, 3, 2, head_dim]).to_dtype(dtype).unwrap();
        emulated(names.clone(), || outcome(&[qkv], &|x| attention(&x[0], 1.)));
        let names = names.0.lock().unwrap();
        names.join(" ")
    };
    let half = DType::BF16;
    assert_eq!(
        launched(half, 50, 64),
        "fused_attention_64 fused_attention_backward_64"
    );
    assert_eq!(
        launched(half, 65, 64),
        "fused_attention_64 fused_attention_dquery_64 fused_attention_dkey_dvalue_64"
    );
    let other = launched(half, 5, 32);
    assert!(
        other.starts_with("split_heads_bf16 softmax_forward_bf16 merge_heads_bf16"),
        "{other}"
    );
    assert!(launched(DType::F32, 5, 64).starts_with("split_heads_f32"));
}

#[test]
#[ignore = "needs a C++ compiler"]
fn large_scores_of_attention_do_not_overflow() {
    for tokens in [6, 50, 70] {
        let qkv = (random(2, &[1, tokens, 3, 2, 64]) * 100.).unwrap();
        for sign in [1., -1.] {
            let qkv = qkv.to_dtype(DType::BF16).unwrap();
            let (out, gradients) = emulated(launcher(), || outcome(&[qkv], &|x| attention(&x[0], sign)));
            // Means of values.
            assert!(values(&out).iter().all(|value| value.abs() <= 200.), "{tokens}");
            assert!(
                values(&gradients[0]).iter().all(|value| value.is_finite()),
                "{tokens}"
            );
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn cross_entropies_and_chosen_rows() {
    for (rows, classes) in [(1, 1), (1, 7), (3, 33), (5, 1000), (2, 5000), (70, 16)] {
        for temperature in [1., 0.25] {
            let inputs = [random(1, &[rows, classes])];
            let targets = random(2, &[rows, classes]).abs().unwrap();
            let what = format!("soft_cross_entropy [{rows}, {classes}]");
            check(&what, &inputs, SINGLE, &|x| {
                soft_cross_entropy(&x[0], &targets, None, temperature)
            });
        }
        let targets = random(3, &[2, classes]).abs().unwrap();
        let chosen: Vec<u32> = (0..rows as u32).map(|row| row % 2).collect();
        let inputs = [random(1, &[rows, 3]), random(2, &[classes, 3])];
        let what = format!("product_cross_entropy [{rows}, 3] x [{classes}, 3]");
        check(&what, &inputs, SINGLE, &|x| {
            product_cross_entropy(&x[0], &x[1], &targets, Some(&chosen), 0.5, DType::F32)
        });
    }
    for (rows, width) in SIZES {
        let chosen: Vec<u32> = (0..2 * rows as u32 + 1)
            .map(|i| i * 7919 % rows as u32 / 2)
            .collect();
        let what = format!("gather_rows [{rows}, {width}]");
        check(&what, &[random(1, &[rows, width])], SINGLE, &|x| {
            gather_rows(&x[0], &chosen)
        });
    }
    // No row at all is no launch.
    let none = emulated(launcher(), || gather_rows(&random(1, &[3, 4]), &[])).unwrap();
    assert_eq!(none.dims(), [0, 4]);
}

#[test]
#[ignore = "needs a C++ compiler"]
fn token_assembly() {
    for (batch, count, registers, width) in [(1, 1, 0, 1), (2, 5, 4, 7), (5, 9, 1, 130), (6, 70, 0, 33)] {
        let masks: Vec<u8> = (0..batch * count).map(|place| u8::from(place % 3 == 0)).collect();
        let masks = Tensor::from_vec(masks, (batch, count), &Device::Cpu).unwrap();
        for masks in [None, Some(&masks)] {
            let mut inputs = vec![
                random(1, &[batch, count, width]),
                random(2, &[1, 1 + count, width]),
                random(3, &[1, 1, width]),
            ];
            inputs.extend((registers > 0).then(|| random(4, &[1, registers, width])));
            inputs.extend(masks.map(|_| random(5, &[1, width])));
            let what = format!(
                "[{batch}, 1 + {registers} + {count}, {width}], masks {}",
                masks.is_some()
            );
            check(&what, &inputs, SINGLE, &|x| {
                let special = SpecialTokens {
                    cls: &x[2],
                    registers: (registers > 0).then(|| &x[3]),
                    mask: masks.map(|_| &x[x.len() - 1]),
                };
                assemble_tokens(&x[0], &x[1], special, masks)
            });
        }
    }
}

/// The products' gradient takes the place of the logits, which a second backward pass must compute anew.
/// To the bit, with zeros behind the values of a patch; and the embedding made of them.
#[test]
#[ignore = "needs a C++ compiler"]
fn patches_as_rows() {
    for (batch, channels, patch, rows, columns) in [
        (1, 1, 1, 1, 1),
        (2, 3, 14, 2, 3),
        (3, 3, 4, 5, 1),
        (1, 2, 5, 3, 4),
        (2, 1, 16, 1, 2),
    ] {
        let pixels = random(1, &[batch, channels, patch * rows, patch * columns]);
        let depth = channels * patch * patch;
        let padded = depth.next_multiple_of(8);
        let weight = random(2, &[7, depth]);
        for dtype in [DType::F32, DType::BF16] {
            let expected = composed(|| patch_rows(&pixels, patch, dtype)).unwrap();
            assert_eq!(expected.dims(), [batch, rows * columns, depth]);
            let found = emulated(launcher(), || patch_rows(&pixels, patch, dtype)).unwrap();
            assert_eq!(
                (found.dims(), found.dtype()),
                (&[batch, rows * columns, padded][..], dtype)
            );
            let own = found.narrow(2, 0, depth).unwrap();
            assert_eq!(values(&own), values(&expected.to_dtype(dtype).unwrap()));
            let beyond = found.narrow(2, depth, padded - depth).unwrap();
            assert!(values(&beyond).iter().all(|&value| value == 0.));
        }
        check("patches and their weights", &[weight], SINGLE, &|x| {
            let patches = patch_rows(&pixels, patch, DType::F32)?;
            let weight = x[0].pad_with_zeros(1, 0, patches.dim(2)? - depth)?;
            linear(&patches.to_dtype(x[0].dtype())?, &weight, None, x[0].dtype())
        });
    }
    let tracked = Var::from_tensor(&random(1, &[1, 1, 4, 4])).unwrap();
    let found = emulated(launcher(), || patch_rows(&tracked, 3, DType::F32));
    assert!(
        found
            .unwrap_err()
            .to_string()
            .contains("multiples of 3, found 4 x 4")
    );
    let found = emulated(launcher(), || patch_rows(&tracked, 2, DType::BF16)).unwrap();
    assert_eq!((found.dims(), found.dtype()), (&[1, 4, 4][..], DType::F32));
}

#[test]
#[ignore = "needs a C++ compiler"]
fn two_backward_passes_agree() {
    let points = Var::from_tensor(&random(1, &[4, 3])).unwrap();
    let (prototypes, targets) = (random(2, &[6, 3]), random(3, &[4, 6]));
    emulated(launcher(), || {
        let loss = product_cross_entropy(&points, &prototypes, &targets, None, 0.5, DType::F32).unwrap();
        let [first, second] = [(); 2].map(|()| {
            let grads = loss.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&prototypes).is_none());
            values(grads.get(&points).unwrap())
        });
        assert_eq!(first, second);
    });
}

fn parameters(x: &[Tensor]) -> BranchParameters {
    BranchParameters {
        norm_weight: x[0].clone(),
        norm_bias: x[1].clone(),
        expand_weight: x[2].clone(),
        expand_bias: x[3].clone(),
        contract_weight: x[4].clone(),
        contract_bias: x[5].clone(),
        gamma: x[6].clone(),
    }
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
    middle: Middle,
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
                    rotary: None,
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
                middle,
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
                middle,
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
            rotary: None,
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

#[test]
#[ignore = "needs a C++ compiler"]
fn adamw_moves_all_weights_and_their_followers() {
    // Less than a warp, a piece exactly, more than one, one without a gradient, one without a follower.
    let counts = [3, 4096, 10_007, 50, 33];
    let make = |seed: u64| -> Vec<Tensor> {
        counts
            .iter()
            .zip(seed..)
            .map(|(&count, seed)| random(seed, &[count]))
            .collect()
    };
    let (weights, first, gradients, teacher) = (make(10), make(20), make(40), make(50));
    let second: Vec<Tensor> = make(30).iter().map(|tensor| tensor.abs().unwrap()).collect();
    let factors = |place: usize| [0.5, 0.1, 0.999, 0.001, 0.99, 0.01 * (place + 1) as f32, 0.2, 1e-8];
    let mut expected = Vec::new();
    for place in 0..counts.len() {
        let [scale, towards, keep, add, shrink, size, root, eps] = factors(place).map(f64::from);
        let [mut w, mut m, mut v, g, mut t] =
            [&weights, &first, &second, &gradients, &teacher].map(|all| values(&all[place]));
        for i in 0..w.len() {
            if place != 3 {
                let g = g[i] * scale;
                m[i] += (g - m[i]) * towards;
                v[i] = v[i] * keep + g * g * add;
                w[i] = w[i] * shrink - size * m[i] / (v[i].sqrt() / root + eps);
            }
            if place != 4 {
                t[i] = t[i] * 0.75 + w[i] * 0.25;
            }
        }
        expected.push([w, m, v, t]);
    }
    let updates: Vec<AdamwUpdate> = (0..counts.len())
        .map(|place| AdamwUpdate {
            weights: &weights[place],
            moved: (place != 3).then(|| Moved {
                first: &first[place],
                second: &second[place],
                gradient: &gradients[place],
                factors: factors(place),
            }),
            average: (place != 4).then(|| (&teacher[place], [0.75, 0.25])),
            group: 0,
        })
        .collect();
    emulated(launcher(), || adamw(&mut Tables::default(), &updates, None)).unwrap();
    for (place, expected) in expected.iter().enumerate() {
        for (all, expected) in [&weights, &first, &second, &teacher].into_iter().zip(expected) {
            assert_close(&format!("tensor {place}"), &values(&all[place]), expected, 1e-5);
        }
    }
    let wrong = AdamwUpdate {
        weights: &weights[0],
        moved: None,
        average: Some((&teacher[1], [0.; 2])),
        group: 0,
    };
    let error = emulated(launcher(), || adamw(&mut Tables::default(), &[wrong], None))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("expected [3] of f32, found [4096] of F32"),
        "{error}"
    );
    assert!(
        adamw(&mut Tables::default(), &updates, None)
            .unwrap_err()
            .to_string()
            .contains("expected a GPU")
    );
}

/// Two groups, one clipped and one short enough, against factors that are clipped beforehand, to the bit; nothing moves where a number
/// is not finite.
#[test]
#[ignore = "needs a C++ compiler"]
fn adamw_clips_by_norms_that_stay_on_the_gpu() {
    let counts = [5, 4100, 64];
    let make = |seed: u64| -> Vec<Tensor> {
        let tensors = counts.iter().zip(seed..);
        tensors
            .map(|(&count, seed)| random(seed, &[count]).abs().unwrap())
            .collect()
    };
    let gradients = make(40);
    let (groups, max_norm) = ([1, 0, 1], 20.3);
    let step = |clip: &dyn Fn(u32) -> f32, on_gpu: Option<&[f64]>| {
        let all = [make(10), make(20), make(30), make(50)];
        let updates: Vec<AdamwUpdate> = (0..counts.len())
            .map(|place| AdamwUpdate {
                weights: &all[0][place],
                moved: Some(Moved {
                    first: &all[1][place],
                    second: &all[2][place],
                    gradient: &gradients[place],
                    factors: [clip(groups[place]), 0.1, 0.999, 0.001, 0.99, 0.01, 0.2, 1e-8],
                }),
                average: Some((&all[3][place], [0.75, 0.25])),
                group: groups[place],
            })
            .collect();
        emulated(launcher(), || {
            let checked = on_gpu.map(|checked| Tensor::new(checked, &Device::Cpu).unwrap());
            let squares = sums_of_squares(
                &mut Tables::default(),
                &[vec![&gradients[1]], vec![&gradients[0], &gradients[2]]],
                &Device::Cpu,
            );
            let squares = squares.unwrap();
            let clip = checked.as_ref().map(|checked| Clip {
                squares: &squares,
                max_norm,
                checked,
            });
            adamw(&mut Tables::default(), &updates, clip.as_ref()).unwrap();
            let moved: Vec<Vec<f64>> = all.iter().flatten().map(values).collect();
            (moved, squares.to_vec1::<f64>().unwrap())
        })
    };
    let (unclipped, squares) = step(&|_| 1., None);
    let scales: Vec<f32> = squares
        .iter()
        .map(|square| (max_norm / (square.sqrt() + 1e-6)).min(1.) as f32)
        .collect();
    assert!(scales[0] < 1. && scales[1] == 1., "{scales:?}");
    let (expected, _) = step(&|group| scales[group as usize], None);
    assert_ne!(expected, unclipped);
    assert_eq!(step(&|_| 1., Some(&[0.5, -3.])).0, expected);
    let before: Vec<Vec<f64>> = [make(10), make(20), make(30), make(50)]
        .iter()
        .flatten()
        .map(values)
        .collect();
    for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(step(&|_| 1., Some(&[0.5, broken, 1.])).0, before);
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn sums_of_squares_by_group() {
    let tensors: Vec<Tensor> = [1, 31, 4096, 4097, 100_003]
        .iter()
        .zip(1..)
        .map(|(&count, seed)| random(seed, &[count]))
        .collect();
    let (views, whole): (Vec<&Tensor>, _) = (tensors.iter().collect(), &tensors[4]);
    let part = whole.narrow(0, 17, 5000).unwrap();
    let groups = vec![views[..2].to_vec(), vec![], views[2..].to_vec(), vec![&part]];
    // The same tables throughout: those of other tensors are not used again.
    let mut tables = Tables::default();
    let mut sums = |groups: &[Vec<&Tensor>]| {
        let sums = emulated(launcher(), || sums_of_squares(&mut tables, groups, &Device::Cpu)).unwrap();
        sums.to_vec1::<f64>().unwrap()
    };
    let found = sums(&groups);
    let expected: Vec<f64> = groups
        .iter()
        .map(|group| {
            group
                .iter()
                .flat_map(|tensor| values(tensor))
                .map(|value| value * value)
                .sum()
        })
        .collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (found - expected).abs() <= 1e-6 * expected,
            "{found}, expected {expected}"
        );
    }
    assert_eq!(sums(&[vec![]]), [0.]);
    assert_eq!(sums(&groups), found);
    // As many tensors in as many groups, of other sizes; the same tensors in other groups.
    let other = vec![views[1..3].to_vec(), vec![], views[2..].to_vec(), vec![&part]];
    assert_eq!(sums(&other)[2..], found[2..]);
    let joined = sums(&[views[..2].to_vec(), views[2..].to_vec(), vec![], vec![&part]]);
    assert_eq!(joined, [found[0], found[2], 0., found[3]]);
}

/// What stays from step to step is copied to the GPU in the first one only, and nothing is copied at once that the host would wait for.
#[test]
fn the_tables_of_an_optimizer_stay_on_the_gpu() {
    #[derive(Default)]
    struct Copies(Mutex<Vec<usize>>);
    impl Launcher for Copies {
        fn launch(&self, _: &str, _: &Launch, _: &[Cell]) -> std::result::Result<(), String> {
            Ok(())
        }
        fn copied(&self, bytes: usize) {
            self.0.lock().unwrap().push(bytes);
        }
    }
    // 44 million values would make 11,000 pieces: as many here, of tensors that are small.
    let tensors: Vec<Tensor> = (0..11_000).map(|_| random(1, &[3])).collect();
    let views: Vec<&Tensor> = tensors.iter().collect();
    let copies = Arc::new(Copies::default());
    let (mut of_adamw, mut of_squares) = (Tables::default(), Tables::default());
    let mut step = || {
        emulated(copies.clone(), || {
            let squares =
                sums_of_squares(&mut of_squares, std::slice::from_ref(&views), &Device::Cpu).unwrap();
            let updates: Vec<AdamwUpdate> = views
                .iter()
                .map(|&weights| AdamwUpdate {
                    weights,
                    moved: None,
                    average: None,
                    group: 0,
                })
                .collect();
            let clip = Clip {
                squares: &squares,
                max_norm: 3.,
                checked: &squares,
            };
            adamw(&mut of_adamw, &updates, Some(&clip)).unwrap();
        });
        std::mem::take(&mut *copies.0.lock().unwrap())
    };
    let (first, second) = (step(), step());
    assert!(first.iter().chain(&second).all(|&bytes| bytes <= 64 << 10));
    // Sizes and pieces twice, groups and bounds.
    let tables = 2 * (11_000 * 4 + 11_000 * 8) + 11_000 * 4 + 2 * 4 + 8;
    let factors = 11_000 * 40;
    assert_eq!(first.iter().sum::<usize>(), tables + factors);
    assert_eq!(second.iter().sum::<usize>(), factors);
}

/// Two windows of a small image whose levels are written by hand. That crops are the processor's, however they are made, `macula`'s own
/// tests show.
#[test]
#[ignore = "needs a C++ compiler"]
fn crops_of_a_small_image() {
    // [3, 4], red its place, green 100 more, blue 10 times its place.
    let pixels: Vec<u8> = (0..12)
        .flat_map(|place| [place, 100 + place, 10 * place])
        .collect();
    let pixels = Tensor::from_vec(pixels, 36, &Device::Cpu).unwrap();
    // Rows of words that take the first and the second sample, and one that takes the mean of two.
    let one = 1 << 22;
    let words: Vec<u32> = vec![0, 1, one, 0, 1, 1, one, 0, 0, 2, one / 2, one / 2, 1, 1, one, 0];
    let words = Tensor::new(words, &Device::Cpu).unwrap();
    let taken = Weights { start: 0, words: 4 };
    let crop = Crop {
        start: 1,
        stride: 4,
        width: 2,
        height: 2,
        vertical_first: false,
        columns: taken,
        rows: taken,
        mirrored: false,
        changes: [None; 4],
        grey: false,
        blur: None,
        threshold: None,
    };
    let mut table = CropTable::new(2);
    table.push(&crop).unwrap();
    let other = Crop {
        start: 6,
        vertical_first: true,
        rows: Weights { start: 8, words: 4 },
        mirrored: true,
        changes: [None, Some(Change::Brightness(0.5)), None, None],
        threshold: Some(50),
        ..crop
    };
    table.push(&other).unwrap();
    let levels: Vec<f32> = (0..3 * 256).map(|entry| entry as f32).collect();
    let levels = Tensor::new(levels, &Device::Cpu).unwrap();
    let own = Tensor::new(table.words(), &Device::Cpu).unwrap();
    let shape = table.shape();
    let found = emulated(launcher(), || crops(&pixels, &own, &words, &levels, shape)).unwrap();
    assert_eq!(found.dims(), [2, 3, 2, 2]);
    let found = values(&found);
    assert_eq!(found[..4], [1., 2., 5., 6.]);
    assert_eq!(found[4..8], [101., 102., 105., 106.].map(|level| 256. + level));
    assert_eq!(found[8..12], [10., 20., 50., 60.].map(|level| 512. + level));
    // Rows 6 and 10 are halved to 8, as are 7 and 11 to 9; then half of it, mirrored. From 50 on levels are inverted.
    assert_eq!(found[12..16], [4., 4., 5., 5.]);
    assert_eq!(
        found[16..20],
        [255. - 54., 255. - 54., 255. - 55., 255. - 55.].map(|level| 256. + level)
    );
    assert_eq!(
        found[20..24],
        [45., 40., 255. - 55., 255. - 50.].map(|level| 512. + level)
    );
    let error = emulated(launcher(), || crops(&levels, &own, &words, &levels, shape)).unwrap_err();
    assert!(
        error.to_string().contains("pixels of U8, found [768] of F32"),
        "{error}"
    );
    let error = emulated(launcher(), || crops(&pixels, &words, &words, &levels, shape)).unwrap_err();
    assert!(
        error.to_string().contains("expected 56 words of U32, found [16]"),
        "{error}"
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
