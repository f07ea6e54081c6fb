//! Every operation on a device against the CPU's kernels: that both give the same numbers, and how long each takes. And every
//! operation of a backend against its composition.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::backend::{BackendKind, backend_kind, composed};
use super::cuda::with_cpu_kernels;
use super::{
    BranchParameters, BranchSamples, Middle, Packing, SpecialTokens, StackOptions, StackedBranch,
    assemble_tokens, attention, gather_rows, gelu, l2_normalize, layer_norm, linear, packed_residual_stack,
    product_cross_entropy, residual_stack, soft_cross_entropy, swiglu, weight_norm,
};

/// One operation on two devices, or as two backends compute it.
#[derive(Debug, Clone, PartialEq)]
pub struct OpComparison {
    /// The operation, with its sizes.
    pub name: String,
    /// Largest difference of the output from the CPU kernels', as a share of their largest value.
    pub output_error: f64,
    /// The same of the gradients, the largest of all inputs.
    pub gradient_error: f64,
    /// What rounding explains of either, [output, gradients].
    pub allowed: [f64; 2],
    /// Milliseconds of one pass forward and back with the CPU's kernels.
    pub cpu_ms: f64,
    /// The same on the device.
    pub device_ms: f64,
}

impl OpComparison {
    /// Whether the device rounds as it should.
    pub fn is_within(&self) -> bool {
        self.output_error <= self.allowed[0] && self.gradient_error <= self.allowed[1]
    }
}

/// Errors that rounding explains, as shares of the largest value, [output, gradients], with products in f32 and in bf16.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    f32: [f64; 2],
    bf16: [f64; 2],
}

impl Allowed {
    /// Of most operations: the f32 sums of a few hundred terms in another order; bf16 values between the steps of an operation.
    const USUAL: Self = Self {
        f32: [2e-5; 2],
        bf16: [3e-2; 2],
    };

    fn for_compute(self, compute: DType) -> [f64; 2] {
        match compute {
            DType::BF16 => self.bf16,
            _ => self.f32,
        }
    }
}

type Function = Box<dyn Fn(&[Tensor], DType) -> Result<Tensor>>;

/// An operation to compare, with the inputs it is given.
pub struct OpCase {
    name: String,
    shapes: Vec<Vec<usize>>,
    function: Function,
    allowed: Allowed,
}

/// Compares all operations and `more`, with matrix products in `compute` on the device and in f32 on the CPU. Where `device` is the
/// CPU (and no GPU is emulated), its side is composed of candle arithmetic, as on a device without kernels.
///
/// # Errors
/// An operation that fails on either side.
pub fn compare_operations(device: &Device, compute: DType, more: &[OpCase]) -> Result<Vec<OpComparison>> {
    let cases = cases();
    let cases = cases.iter().chain(more);
    cases.map(|case| case.compare(device, compute)).collect()
}

/// Compares all operations and `more` as this thread's backend for the CPU computes them, with products in `compute`, with their
/// compositions in f32, whose time then stands in the place of the CPU's.
///
/// # Errors
/// An operation that fails on either side.
pub fn compare_with_composition(compute: DType, more: &[OpCase]) -> Result<Vec<OpComparison>> {
    let cases = cases();
    let cases = cases.iter().chain(more);
    let compare = |case: &OpCase| {
        let expected = composed(|| case.run(&Device::Cpu, DType::F32))?;
        let found = case.run(&Device::Cpu, compute)?;
        Ok(case.comparison(&found, &expected, compute))
    };
    cases.map(compare).collect()
}

/// What one side gave.
struct Outcome {
    output: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    ms: f64,
}

impl OpCase {
    /// `function` of inputs of these shapes, filled with numbers between -1 and 1, and of the type of its products.
    pub fn new(
        name: impl Into<String>,
        shapes: &[&[usize]],
        function: impl Fn(&[Tensor], DType) -> Result<Tensor> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
            function: Box::new(function),
            allowed: Allowed::USUAL,
        }
    }

    /// Expects errors of at most so much.
    fn within(self, allowed: Allowed) -> Self {
        Self { allowed, ..self }
    }

    fn compare(&self, device: &Device, compute: DType) -> Result<OpComparison> {
        let cpu = with_cpu_kernels(|| self.run(&Device::Cpu, DType::F32))?;
        let on_device = match backend_kind(device) {
            BackendKind::Cpu => composed(|| self.run(device, compute))?,
            BackendKind::Composed | BackendKind::Cuda => self.run(device, compute)?,
        };
        Ok(self.comparison(&on_device, &cpu, compute))
    }

    fn comparison(&self, found: &Outcome, expected: &Outcome, compute: DType) -> OpComparison {
        let gradients = found.gradients.iter().zip(&expected.gradients);
        OpComparison {
            name: self.name.clone(),
            output_error: difference(&found.output, &expected.output),
            gradient_error: gradients
                .map(|(found, expected)| difference(found, expected))
                .fold(0., f64::max),
            allowed: self.allowed.for_compute(compute),
            cpu_ms: expected.ms,
            device_ms: found.ms,
        }
    }

    /// One pass to warm up, whose numbers are kept, and one that is timed.
    fn run(&self, device: &Device, compute: DType) -> Result<Outcome> {
        let vars: Vec<Var> = (1u64..)
            .zip(&self.shapes)
            .map(|(seed, shape)| Var::from_tensor(&noise(seed, shape)?.to_device(device)?))
            .collect::<Result<_>>()?;
        let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let pass = || {
            let output = (self.function)(&inputs, compute)?.to_dtype(DType::F32)?;
            let weights = noise(99, output.dims())?.to_device(device)?;
            let gradients = (&output * weights)?.sum_all()?.backward()?;
            Ok::<_, candle_core::Error>((output, gradients))
        };
        let (output, gradients) = pass()?;
        device.synchronize()?;
        let start = Instant::now();
        pass()?;
        device.synchronize()?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let gradients = vars.iter().map(|var| match gradients.get(var) {
            Some(gradient) => values(gradient),
            None => Ok(Vec::new()),
        });
        Ok(Outcome {
            output: values(&output)?,
            gradients: gradients.collect::<Result<_>>()?,
            ms,
        })
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// The largest difference as a share of the largest expected value; infinite where the counts differ or a value is no number.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() || found.iter().any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    let largest = expected
        .iter()
        .fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    f64::from(worst) / f64::from(largest)
}

/// Values between -1 and 1 that look random: SplitMix64 (Steele et al. 2014) of seed and place.
fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let value = |place: usize| {
        let mut z = (seed << 40).wrapping_add((place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.
    };
    Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu)
}

/// Places in 0..`below` that jump about.
fn places(count: usize, below: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 % below) as u32).collect()
}

/// The operations at the sizes of a small training step.
fn cases() -> Vec<OpCase> {
    let (batch, tokens, width, heads, classes) = (8, 50, 192, 3, 1024);
    // More than a tile of fused attention, and as many as global crops have.
    let (more, long) = (65, 257);
    let rows = batch * tokens;
    let mut cases = vec![
        exact_product(),
        long_sum(),
        OpCase::new(
            format!("linear [{rows}, {width}] x [{}, {width}]", 4 * width),
            &[&[rows, width], &[4 * width, width], &[4 * width]],
            |x, compute| linear(&x[0], &x[1], Some(&x[2]), compute),
        ),
        OpCase::new(
            format!("layer_norm [{rows}, {width}]"),
            &[&[rows, width], &[width], &[width]],
            |x, _| layer_norm(&x[0], &x[1], &x[2], 1e-6),
        ),
        OpCase::new(
            format!("gelu [{rows}, {}]", 4 * width),
            &[&[rows, 4 * width]],
            |x, compute| gelu(&x[0].to_dtype(compute)?),
        ),
        OpCase::new(
            format!("swiglu [{rows}, {}]", 4 * width),
            &[&[rows, 4 * width]],
            |x, compute| swiglu(&x[0].to_dtype(compute)?),
        ),
        OpCase::new(
            format!("attention [{batch}, {tokens}, 3, {heads}, {}]", width / heads),
            &[&[batch, tokens, 3, heads, width / heads]],
            |x, compute| attention(&x[0].to_dtype(compute)?, 0.125),
        ),
        OpCase::new(
            format!("attention [2, {long}, 3, {heads}, {}]", width / heads),
            &[&[2, long, 3, heads, width / heads]],
            |x, compute| attention(&x[0].to_dtype(compute)?, 0.125),
        ),
        OpCase::new(
            format!("l2_normalize [{rows}, {width}]"),
            &[&[rows, width]],
            |x, _| l2_normalize(&x[0], 1e-12),
        ),
        OpCase::new(
            format!("weight_norm [{classes}, {width}]"),
            &[&[classes, width], &[classes, 1]],
            |x, _| weight_norm(&x[0], &x[1]),
        ),
        OpCase::new(format!("gather_rows [{rows}, {width}]"), &[&[rows, width]], {
            let chosen = places(rows / 2, rows);
            move |x, _| gather_rows(&x[0], &chosen)
        }),
        OpCase::new(
            format!("soft_cross_entropy [{rows}, {classes}]"),
            &[&[rows, classes], &[rows, classes]],
            |x, _| soft_cross_entropy(&x[0], &x[1].abs()?, None, 0.1),
        ),
        OpCase::new(
            format!("product_cross_entropy [{rows}, {width}] x [{classes}, {width}]"),
            &[&[rows, width], &[classes, width], &[batch, classes]],
            {
                let targets = places(rows, batch);
                move |x, compute| {
                    product_cross_entropy(&x[0], &x[1], &x[2].abs()?, Some(&targets), 1., compute)
                }
            },
        ),
        OpCase::new(
            format!("assemble_tokens [{batch}, {tokens}, {width}]"),
            &[
                &[batch, tokens, width],
                &[1, 1 + tokens, width],
                &[1, 1, width],
                &[1, 4, width],
                &[1, width],
            ],
            move |x, _| {
                let bits: Vec<u8> = (0..batch * tokens).map(|i| u8::from(i % 3 == 0)).collect();
                let masks = Tensor::from_vec(bits, (batch, tokens), x[0].device())?;
                let special = SpecialTokens {
                    cls: &x[2],
                    registers: Some(&x[3]),
                    mask: Some(&x[4]),
                };
                assemble_tokens(&x[0], &x[1], special, Some(&masks))
            },
        ),
    ];
    for (name, middle, expanded) in [
        ("attention", Middle::Attention { heads }, 3 * width),
        ("GELU", Middle::GELU, 4 * width),
        ("SwiGLU", Middle::SwiGlu, 4 * width),
    ] {
        cases.push(branch_case(
            format!("residual_stack, {name} [{batch}, {tokens}, {width}]"),
            &[batch, tokens, width],
            (expanded, middle),
            residual_stack,
        ));
        let packing = Packing::two((2, more), (6, tokens));
        cases.push(branch_case(
            format!("packed_residual_stack, {name} [2 x {more} + 6 x {tokens}, {width}]"),
            &[packing.rows(), width],
            (expanded, middle),
            move |x, branches, options| packed_residual_stack(x, packing, branches, options),
        ));
    }
    cases
}

/// Products whose factors need all 24 bits of f32: a device that takes 11 of them (TF32, f16) is wrong by 2e-4 to 1e-3 where it is
/// asked for f32.
fn exact_product() -> OpCase {
    let (rows, inner, columns) = (128, 256, 128);
    let name = format!("exact product [{rows}, {inner}] x [{columns}, {inner}]");
    let case = OpCase::new(name, &[&[rows, inner], &[columns, inner]], |x, compute| {
        linear(&x[0], &x[1], None, compute)
    });
    case.within(Allowed {
        f32: [4e-6; 2],
        ..Allowed::USUAL
    })
}

/// Sums so long that a device cuts them into parts, of factors that bf16 holds: of the output only the last rounding to bf16 is left, which
/// makes 2.3e-3 of these numbers; where the parts are rounded as well it is 2.7e-3 or more.
fn long_sum() -> OpCase {
    let (rows, inner) = (48, 32_768);
    let name = format!("long sum [{rows}, {inner}] x [{rows}, {inner}]");
    let held = |tensor: &Tensor| tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let case = OpCase::new(name, &[&[rows, inner], &[rows, inner]], move |x, compute| {
        linear(&held(&x[0])?, &held(&x[1])?, None, compute)
    });
    case.within(Allowed {
        f32: [2e-5; 2],
        bf16: [2.5e-3, 3e-2],
    })
}

/// A branch on an input of shape `x` [.., D], as `stack` runs it.
fn branch_case(
    name: String,
    x: &[usize],
    (expanded, middle): (usize, Middle),
    stack: impl Fn(&Tensor, &[StackedBranch], StackOptions) -> Result<Tensor> + 'static,
) -> OpCase {
    let width = x[x.len() - 1];
    let parameters = BranchParameters::shapes(width, expanded, middle.inner(expanded));
    let shapes: Vec<&[usize]> = [x]
        .into_iter()
        .chain(parameters.iter().map(Vec::as_slice))
        .collect();
    OpCase::new(name, &shapes, move |x, compute| {
        branch(x, middle, compute, &stack)
    })
}

/// A residual branch on five of eight samples.
fn branch(
    x: &[Tensor],
    middle: Middle,
    compute: DType,
    stack: impl Fn(&Tensor, &[StackedBranch], StackOptions) -> Result<Tensor>,
) -> Result<Tensor> {
    let samples = BranchSamples {
        kept: vec![1, 6, 3, 7, 2],
        factors: vec![1.6; 5],
    };
    // Weights as small as those of a network, or attention is all on one token.
    let small = |tensor: &Tensor| tensor * 0.1;
    let parameters = BranchParameters {
        norm_weight: x[1].clone(),
        norm_bias: x[2].clone(),
        expand_weight: small(&x[3])?,
        expand_bias: x[4].clone(),
        contract_weight: small(&x[5])?,
        contract_bias: x[6].clone(),
        gamma: x[7].clone(),
    };
    let branch = StackedBranch {
        parameters: &parameters,
        middle,
        samples: Some(&samples),
        rotary: &[],
    };
    let options = StackOptions {
        eps: 1e-6,
        compute,
        checkpoint: false,
    };
    stack(&x[0], &[branch], options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_composition_is_within_rounding_of_the_kernels() {
        let found = compare_operations(&Device::Cpu, DType::F32, &[]).unwrap();
        assert_eq!(found.len(), 20);
        for op in found {
            assert!(op.is_within(), "{op:?}");
            assert!(op.cpu_ms > 0. && op.device_ms > 0., "{op:?}");
        }
    }

    /// Output and gradients one by one.
    #[test]
    fn the_composition_in_bf16_is_within_its_own_rounding() {
        for case in cases() {
            let whole = with_cpu_kernels(|| case.run(&Device::Cpu, DType::F32)).unwrap();
            let short = composed(|| case.run(&Device::Cpu, DType::BF16)).unwrap();
            let error = difference(&short.output, &whole.output);
            assert!(error < 1e-2, "{}: {error}", case.name);
            let gradients = short.gradients.iter().zip(&whole.gradients);
            for ((found, expected), shape) in gradients.zip(&case.shapes) {
                let error = difference(found, expected);
                // A bias's and a gain's are sums over rows, which are rounded to bf16 on their way.
                let max = if shape.len() == 1 { 0.08 } else { 0.02 };
                assert!(error < max, "{}, gradient of {shape:?}: {error}", case.name);
            }
        }
    }

    /// What cuBLAS may do to products where it is not told otherwise: factors of 11 bits, and parts of a sum rounded to bf16.
    #[test]
    fn products_of_fewer_bits_are_seen() {
        let short = |tensor: &Tensor| {
            let bits = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let cut = |value: f32| f32::from_bits((value.to_bits() + 0x1000) & !0x1fff);
            Tensor::from_vec(bits.into_iter().map(cut).collect(), tensor.dims(), &Device::Cpu)
        };
        let on = |case: &OpCase, broken: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>, compute: DType| {
            let inputs: Vec<Tensor> = (1u64..)
                .zip(&case.shapes)
                .map(|(seed, shape)| noise(seed, shape).unwrap())
                .collect();
            let expected = (case.function)(&inputs, DType::F32).unwrap();
            let found = broken(&inputs[0], &inputs[1]).unwrap();
            let error = difference(&values(&found).unwrap(), &values(&expected).unwrap());
            (error, case.allowed.for_compute(compute)[0])
        };
        let exact = |a: &Tensor, b: &Tensor| short(a)?.matmul(&short(b)?.t()?);
        let (error, allowed) = on(&exact_product(), &exact, DType::F32);
        assert!(error > 20. * allowed, "{error} {allowed}");
        let sum_of = |parts: usize, rounded: bool| {
            move |a: &Tensor, b: &Tensor| {
                let round = |tensor: Tensor| tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32);
                let (a, b) = (round(a.clone())?, round(b.clone())?);
                let length = a.dim(1)? / parts;
                let mut sum = Tensor::zeros((a.dim(0)?, b.dim(0)?), DType::F32, &Device::Cpu)?;
                for part in 0..parts {
                    let cut = |tensor: &Tensor| tensor.narrow(1, part * length, length)?.contiguous();
                    let product = cut(&a)?.matmul(&cut(&b)?.t()?)?;
                    sum = (sum + if rounded { round(product)? } else { product })?;
                }
                round(sum)
            }
        };
        for parts in [2, 4, 8, 16] {
            let (error, allowed) = on(&long_sum(), &sum_of(parts, true), DType::BF16);
            assert!(error > 1.05 * allowed, "{parts}: {error} {allowed}");
            let (error, allowed) = on(&long_sum(), &sum_of(parts, false), DType::BF16);
            assert!(error < 0.95 * allowed, "{parts}: {error} {allowed}");
        }
    }

    #[test]
    fn differences_are_seen() {
        assert_eq!(difference(&[1., 2.], &[1., 4.]), 0.5);
        assert_eq!(difference(&[1.], &[1., 4.]), f64::INFINITY);
        assert_eq!(difference(&[1., f32::NAN], &[1., 4.]), f64::INFINITY);
    }
}
