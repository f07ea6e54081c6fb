//! Operations of which some arguments are trained and others are not: each gets the gradient that it has where all are trained, and
//! what is at the edge of what they accept.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor, Var};
use macula_models::ops::{
    BranchParameters, Middle, SpecialTokens, StackOptions, StackedBranch, assemble_tokens, l2_normalize,
    layer_norm, linear, product_cross_entropy, residual_stack, vectors, weight_norm,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Gradients of the weighted sum of the result for those of `inputs` that are `trained`.
fn gradients(operation: &Operation, inputs: &[Tensor], trained: &[bool]) -> Vec<Option<Vec<f32>>> {
    let inputs: Vec<Tensor> = inputs
        .iter()
        .zip(trained)
        .map(|(input, &trained)| match trained {
            true => Var::from_tensor(input).unwrap().into_inner(),
            false => input.clone(),
        })
        .collect();
    let result = operation(&inputs).unwrap();
    let loss = (&result * noise(99, result.dims())).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    let values = |input: &Tensor| {
        let gradient = store.get(input)?;
        Some(gradient.flatten_all().unwrap().to_vec1().unwrap())
    };
    inputs.iter().map(values).collect()
}

fn branches() -> [(Middle, Vec<Vec<usize>>); 2] {
    [
        (
            Middle::Attention { heads: 2 },
            BranchParameters::shapes(8, 24, 8).to_vec(),
        ),
        (Middle::GELU, BranchParameters::shapes(8, 12, 12).to_vec()),
    ]
}

fn operations() -> Vec<(&'static str, Vec<Vec<usize>>, Operation)> {
    let mut all: Vec<(&str, Vec<Vec<usize>>, Operation)> = vec![
        (
            "layer_norm",
            vec![vec![5, 8], vec![8], vec![8]],
            Box::new(|x| layer_norm(&x[0], &x[1], &x[2], 1e-6)),
        ),
        (
            "linear",
            vec![vec![5, 8], vec![6, 8], vec![6]],
            Box::new(|x| linear(&x[0], &x[1], Some(&x[2]), DType::F32)),
        ),
        (
            "weight_norm",
            vec![vec![6, 8], vec![6, 1]],
            Box::new(|x| weight_norm(&x[0], &x[1])),
        ),
        (
            "product_cross_entropy",
            vec![vec![5, 8], vec![6, 8]],
            Box::new(|x| {
                let targets = candle_nn::ops::softmax(&noise(98, &[5, 6]), 1)?;
                product_cross_entropy(&x[0], &x[1], &targets, None, 0.3, DType::F32)
            }),
        ),
        (
            "assemble_tokens",
            vec![vec![2, 4, 8], vec![5, 8], vec![8], vec![3, 8], vec![8]],
            Box::new(|x| {
                let special = SpecialTokens {
                    cls: &x[2],
                    registers: Some(&x[3]),
                    mask: Some(&x[4]),
                };
                let masks = Tensor::new(&[[0u8, 1, 0, 1], [1, 0, 0, 0]], &Device::Cpu)?;
                assemble_tokens(&x[0], &x[1], special, Some(&masks))
            }),
        ),
    ];
    for (middle, shapes) in branches() {
        let shapes = [vec![vec![2, 3, 8]], shapes].concat();
        all.push((
            "residual_stack",
            shapes,
            Box::new(move |x| {
                let parameters =
                    BranchParameters::from_list(std::array::from_fn(|place| x[1 + place].clone()));
                let branch = StackedBranch {
                    parameters: &parameters,
                    middle,
                    samples: None,
                    rotary: &[],
                };
                let options = StackOptions {
                    eps: 1e-6,
                    compute: DType::F32,
                    checkpoint: false,
                };
                residual_stack(&x[0], &[branch], options)
            }),
        ));
    }
    all
}

#[test]
fn each_argument_alone_has_the_gradient_that_it_has_among_others() {
    for (name, shapes, operation) in operations() {
        let inputs: Vec<Tensor> = (0..)
            .zip(&shapes)
            .map(|(seed, shape)| noise(seed, shape))
            .collect();
        let expected = gradients(&operation, &inputs, &vec![true; inputs.len()]);
        for alone in 0..inputs.len() {
            let trained: Vec<bool> = (0..inputs.len()).map(|i| i == alone).collect();
            let found = gradients(&operation, &inputs, &trained);
            assert!(expected[alone].is_some(), "{name}, argument {alone}");
            assert_eq!(found[alone], expected[alone], "{name}, argument {alone}");
        }
    }
}

/// Below epsilon the length of a row is a constant: its gradient is divided by epsilon and nothing is taken off.
#[test]
fn rows_shorter_than_epsilon_have_a_gradient_that_is_not_projected() {
    const EPS: f64 = 0.5;
    let operation: Operation = Box::new(|x| l2_normalize(&x[0], EPS));
    let x = noise(1, &[3, 8]).affine(0.05, 0.0).unwrap();
    let expected: Vec<f32> = noise(99, &[3, 8])
        .affine(1. / EPS, 0.0)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert_eq!(gradients(&operation, &[x], &[true]), [Some(expected)]);
}

#[test]
fn a_norm_refuses_a_weight_or_a_bias_of_another_width() {
    let x = noise(1, &[2, 8]);
    let (fits, short) = (noise(2, &[8]), noise(3, &[4]));
    for (weight, bias) in [(&short, &fits), (&fits, &short)] {
        let error = layer_norm(&x, weight, bias, 1e-6).unwrap_err().to_string();
        assert!(error.contains("weight and bias of shape [8]"), "{error}");
    }
}

#[test]
fn nothing_is_filled_with_nothing() {
    assert!(vectors::filled::<f32>(0, 0, |_, _| ()).is_empty());
}
