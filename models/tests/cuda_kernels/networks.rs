//! Whole networks: crops of two sizes in one sequence on the kernels of an emulated GPU, against one size after the other on the
//! processor's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use macula_models::ops::GeluKind;
use macula_models::ops::cuda::emulated;
use macula_models::vit::{
    DropPathMode, DropPathPlan, DropPathSchedule, ImageRows, RopeConfig, VisionTransformer, VitConfig,
    initialise,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cuda_emulation::launcher;
use crate::{assert_close, random, values};

const CROPS: [usize; 2] = [2, 3];

/// Networks like DINOv2's, DINOv3's and CLIP's.
fn configs() -> [(&'static str, VitConfig); 3] {
    let plain = VitConfig {
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        num_registers: 2,
        ffn_hidden: 48,
        layer_scale: Some(0.5),
        ..VitConfig::named("vit-tiny/4", 16).unwrap()
    };
    let rotary = VitConfig {
        rope: Some(RopeConfig::dinov3()),
        ..plain.clone()
    };
    let clip = VitConfig {
        pre_norm: true,
        activation: GeluKind::QuickGelu,
        layer_scale: None,
        num_registers: 0,
        ..plain.clone()
    };
    [("plain", plain), ("rotary", rotary), ("CLIP", clip)]
}

/// The tokens that a step asks for of global crops, some of whose patches are hidden, and of local ones, and the gradients of all
/// weights.
fn outcome(config: &VitConfig, packing: bool, compute: DType) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let weights = initialise(config, &mut rng).unwrap();
    let vars: BTreeMap<String, Var> = (10..)
        .zip(&weights)
        .map(|(seed, (name, tensor))| {
            // So that nothing is zero for an initial value's sake.
            let noise = (random(seed, tensor.dims()) * 0.05).unwrap();
            (
                name.clone(),
                Var::from_tensor(&(tensor + noise).unwrap()).unwrap(),
            )
        })
        .collect();
    let tensors = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let vit = VisionTransformer::from_tensors(config, &tensors, &Device::Cpu).unwrap();
    let vit = vit.with_sequence_packing(packing).with_compute(compute);
    let [global, local] =
        [(CROPS[0], 16), (CROPS[1], 8)].map(|(crops, side)| random(1, &[crops, 3, side, side]));
    let hidden: Vec<u8> = (0..CROPS[0] * 16).map(|place| u8::from(place % 3 == 0)).collect();
    let hidden = Tensor::from_vec(hidden, (CROPS[0], 16), &Device::Cpu).unwrap();
    let plans = CROPS.map(|crops| {
        let (schedule, mode) = (DropPathSchedule::Uniform, DropPathMode::BatchSubset);
        DropPathPlan::draw(0.4, schedule, mode, config.depth, crops, &mut rng).unwrap()
    });
    let prefix = config.prefix() as u32;
    let tokens = [prefix + 16, prefix + 4];
    let rows = [
        vec![0, tokens[0], prefix, prefix + 9, tokens[0] + prefix + 3],
        vec![0, tokens[1], 2 * tokens[1]],
    ];
    let sets = [
        ImageRows {
            pixels: &global,
            masks: Some(&hidden),
            drop_path: Some(&plans[0]),
            rows: &rows[0],
        },
        ImageRows {
            pixels: &local,
            masks: None,
            drop_path: Some(&plans[1]),
            rows: &rows[1],
        },
    ];
    let both = Tensor::cat(&vit.forward_rows_of_two(sets).unwrap(), 0).unwrap();
    let loss = (&both * random(2, both.dims()))
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap();
    let store = loss.backward().unwrap();
    let gradient = |(name, var): (&String, &Var)| {
        let gradient = store.get(var).unwrap_or_else(|| panic!("{name}: no gradient"));
        (name.clone(), values(gradient))
    };
    (values(&both), vars.iter().map(gradient).collect())
}

#[test]
#[ignore = "needs a C++ compiler"]
fn packed_crops_are_those_of_two_passes() {
    for (name, config) in configs() {
        let (expected, expected_gradients) = outcome(&config, false, DType::F32);
        for (compute, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 4e-2)] {
            for packing in [true, false] {
                let what = format!("{name} {compute:?} packed {packing}");
                let (found, gradients) = emulated(launcher(), || outcome(&config, packing, compute));
                assert_close(&what, &found, &expected, tolerance);
                for (weight, expected) in &expected_gradients {
                    assert_close(
                        &format!("{what}: {weight}"),
                        &gradients[weight],
                        expected,
                        tolerance,
                    );
                }
            }
        }
    }
}
