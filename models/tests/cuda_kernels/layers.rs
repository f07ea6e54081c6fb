//! Norms, activations and linear layers.

use candle_core::{DType, Device, Var};
use macula_models::ops::cuda::emulated;
use macula_models::ops::{GeluKind, gelu_of, l2_normalize, layer_norm, linear, swiglu, weight_norm};

use crate::cuda_emulation::launcher;
use crate::{SINGLE, SIZES, check, random, values};

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
            for kind in GeluKind::ALL {
                let what = what(&kind.to_string());
                check(&what, std::slice::from_ref(&x), (1, dtype), &|x| {
                    gelu_of(&x[0], kind)
                });
            }
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
    for kind in GeluKind::ALL {
        let y = emulated(launcher(), || gelu_of(&x, kind)).unwrap();
        let grads = emulated(launcher(), || y.sum_all().unwrap().backward()).unwrap();
        let (y, slope) = (
            y.to_vec1::<f32>().unwrap(),
            grads.get(&x).unwrap().to_vec1::<f32>().unwrap(),
        );
        assert!(
            y[0] == 1e30 && y[1].abs() < 1e-10 && y[2].is_nan() && y[3] == 0. && y[4] == f32::INFINITY,
            "{kind}: {y:?}"
        );
        assert!(
            slope[0] == 1.
                && slope[1].abs() < 1e-10
                && slope[2].is_nan()
                && slope[3] == 0.5
                && slope[4] == 1.,
            "{kind}: {slope:?}"
        );
    }
}
