//! Training reaches every parameter, and stochastic depth does to a batch what the reference does.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use macula_models::heads::{DinoHead, DinoHeadConfig};
use macula_models::ops::GeluKind;
use macula_models::vit::{
    DropPathMode, DropPathPlan, DropPathSchedule, FeedForwardKind, PositionRule, RopeConfig,
    VisionTransformer, VitConfig, initialise,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn config(num_registers: usize, feed_forward: FeedForwardKind) -> VitConfig {
    VitConfig {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        patch_size: 4,
        image_size: 16,
        in_channels: 3,
        num_registers,
        feed_forward,
        ffn_hidden: 40,
        layer_scale: Some(0.5),
        mask_token: true,
        layer_norm_eps: 1e-6,
        position_rule: PositionRule::Official,
        ..VitConfig::named("vit-tiny/4", 16).unwrap()
    }
}

/// As [`config`], of DINOv3's parts: heads of a multiple of 4 with rotary positions; and of CLIP's, with another GELU.
fn rotary_config(num_registers: usize, feed_forward: FeedForwardKind) -> VitConfig {
    VitConfig {
        num_heads: 2,
        rope: Some(RopeConfig::dinov3()),
        activation: GeluKind::QuickGelu,
        pre_norm: true,
        ..config(num_registers, feed_forward)
    }
}

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| rng.random_range(-1f32..1.))
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// `tensors` with noise, so that no gradient is zero for an initial value's sake.
fn perturbed(tensors: BTreeMap<String, Tensor>, rng: &mut ChaCha8Rng) -> BTreeMap<String, Tensor> {
    let noisy = |tensor: Tensor| (&tensor + (random(rng, tensor.dims()) * 0.2).unwrap()).unwrap();
    let (names, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    names.into_iter().zip(tensors.into_iter().map(noisy)).collect()
}

fn into_varmap(prefix: &str, tensors: &BTreeMap<String, Tensor>, map: &VarMap) {
    let mut data = map.data().lock().unwrap();
    for (name, tensor) in tensors {
        data.insert(format!("{prefix}.{name}"), Var::from_tensor(tensor).unwrap());
    }
}

/// A loss that no output can leave without changing it.
fn loss_of(parts: &[&Tensor], rng: &mut ChaCha8Rng) -> Tensor {
    let terms: Vec<Tensor> = parts
        .iter()
        .map(|part| {
            (*part * random(rng, part.dims()))
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
        })
        .collect();
    Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()
}

#[test]
fn network_every_parameter_gets_a_gradient() {
    let head_config = DinoHeadConfig {
        input: 24,
        hidden: 20,
        bottleneck: 8,
        prototypes: 11,
        train_gain: true,
    };
    for config in [
        config(0, FeedForwardKind::Mlp),
        config(4, FeedForwardKind::Swiglu),
        rotary_config(4, FeedForwardKind::Mlp),
        rotary_config(0, FeedForwardKind::Swiglu),
    ] {
        // The native grid, and one that interpolates the position table.
        for (height, width) in [(16, 16), (12, 20)] {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let map = VarMap::new();
            let backbone = initialise(&config, &mut rng).unwrap();
            into_varmap("backbone", &perturbed(backbone, &mut rng), &map);
            let head = head_config.initialise(&mut rng).unwrap();
            into_varmap("dino_head", &perturbed(head, &mut rng), &map);
            let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
            let vit = VisionTransformer::new(&config, vb.pp("backbone")).unwrap();
            let head = DinoHead::new(&head_config, vb.pp("dino_head")).unwrap();

            let pixels = random(&mut rng, &[3, 3, height, width]);
            let patches = height * width / 16;
            let mask: Vec<u8> = (0..3 * patches).map(|i| u8::from(i % 3 == 0)).collect();
            let mask = Tensor::from_vec(mask, (3, patches), &Device::Cpu).unwrap();
            let out = vit.forward(&pixels, Some(&mask)).unwrap();
            let mut parts = vec![&out.cls, &out.patch, &out.prenorm];
            if config.num_registers > 0 {
                parts.push(&out.reg);
            }
            let logits = head.forward(&out.cls).unwrap();
            parts.push(&logits);
            let grads = loss_of(&parts, &mut rng).backward().unwrap();

            let data = map.data().lock().unwrap();
            let expected = config.parameters().len() + head_config.parameters().len();
            assert_eq!(data.len(), expected);
            for (name, var) in data.iter().collect::<BTreeMap<_, _>>() {
                let grad = grads.get(var).unwrap_or_else(|| panic!("{name} got no gradient"));
                assert_eq!(grad.dims(), var.dims(), "{name}");
                let grad = grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(grad.iter().all(|value| value.is_finite()), "{name} is not finite");
                // A bias common to all keys moves every score of a query alike: softmax does not see it, its gradient is 0. Turned
                // with its key it does not move them alike.
                let no_effect = |i: usize| {
                    config.rope.is_none() && name.ends_with("attn.qkv.bias") && (24..48).contains(&i)
                };
                let zeros = (0..grad.len())
                    .filter(|&i| grad[i] == 0. && !no_effect(i))
                    .count();
                assert_eq!(zeros, 0, "{name}: {zeros} of {} gradients are zero", grad.len());
            }
        }
    }
}

/// Every value of every gradient against automatic differentiation in f64 (`fixtures/make_network_gradients.py`): both kinds of
/// feed-forward network, registers, masked patches, an interpolated position table, the projection head.
#[test]
fn network_gradients_are_those_of_double_precision() {
    let head_config = DinoHeadConfig {
        input: 24,
        hidden: 20,
        bottleneck: 8,
        prototypes: 11,
        train_gain: true,
    };
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, feed_forward) in [("mlp", FeedForwardKind::Mlp), ("swiglu", FeedForwardKind::Swiglu)] {
        let path = format!(
            "{}/tests/fixtures/network_gradients.{name}.safetensors",
            env!("CARGO_MANIFEST_DIR")
        );
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let map = VarMap::new();
        let of = |prefix: &str| -> BTreeMap<String, Tensor> {
            let own = golden
                .iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
            own.map(|(name, tensor)| (name.to_owned(), tensor.clone()))
                .collect()
        };
        into_varmap("backbone", &of("backbone."), &map);
        into_varmap("dino_head", &of("dino_head."), &map);
        let config = config(2, feed_forward);
        let expected = config.parameters().len() + head_config.parameters().len();
        assert_eq!(map.data().lock().unwrap().len(), expected);
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let vit = VisionTransformer::new(&config, vb.pp("backbone")).unwrap();
        let head = DinoHead::new(&head_config, vb.pp("dino_head")).unwrap();

        let out = vit.forward(&golden["pixels"], Some(&golden["mask"])).unwrap();
        let logits = head.forward(&out.cls).unwrap();
        let outputs = [
            ("cls", &out.cls),
            ("reg", &out.reg),
            ("patch", &out.patch),
            ("prenorm", &out.prenorm),
            ("logits", &logits),
        ];
        let terms = outputs.map(|(output, values)| {
            let weighted = (values * &golden[&format!("weight.{output}")]).unwrap();
            weighted.sqr().unwrap().sum_all().unwrap()
        });
        let loss = Tensor::stack(&terms, 0).unwrap().sum_all().unwrap();
        let (found, expected) = (loss.to_scalar::<f32>().unwrap(), flat(&golden["loss"])[0]);
        assert!(
            (found - expected).abs() < 2e-6 * expected,
            "{name}: {found}, expected {expected}"
        );

        let grads = loss.backward().unwrap();
        let data = map.data().lock().unwrap();
        for (of, var) in data.iter().collect::<BTreeMap<_, _>>() {
            let expected = flat(&golden[&format!("grad.{of}")]);
            let largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
            let found = flat(
                grads
                    .get(var)
                    .unwrap_or_else(|| panic!("{name}: {of}: no gradient")),
            );
            assert_eq!(found.len(), expected.len(), "{name}: {of}");
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (a - b).abs() <= 1e-5 * largest,
                    "{name}: {of}[{i}]: {a}, expected {b}, of at most {largest}"
                );
            }
        }
    }
}

/// The directional derivative of a loss through the whole network, with branches left out, against central differences of fourth
/// order.
#[test]
fn network_gradient_is_the_slope_of_the_loss() {
    is_the_slope_of_the_loss(&config(2, FeedForwardKind::Mlp));
}

#[test]
fn network_gradient_through_rotary_positions_is_the_slope_of_the_loss() {
    is_the_slope_of_the_loss(&rotary_config(2, FeedForwardKind::Mlp));
}

fn is_the_slope_of_the_loss(config: &VitConfig) {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let weights = perturbed(initialise(config, &mut rng).unwrap(), &mut rng);
    let pixels = random(&mut rng, &[2, 3, 12, 20]);
    let plan = DropPathPlan::draw(
        0.4,
        DropPathSchedule::Uniform,
        DropPathMode::BatchSubset,
        2,
        2,
        &mut rng,
    )
    .unwrap();
    let loss = |weights: &BTreeMap<String, Tensor>| {
        let vit = VisionTransformer::from_tensors(config, weights, &Device::Cpu).unwrap();
        let out = vit.forward_with(&pixels, None, Some(&plan)).unwrap();
        loss_of(
            &[&out.cls, &out.patch, &out.reg],
            &mut ChaCha8Rng::seed_from_u64(2),
        )
    };
    let vars: BTreeMap<String, Var> = weights
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let tensors = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let store = loss(&tensors).backward().unwrap();
    for (name, var) in &vars {
        if name == "mask_token" {
            assert!(store.get(var).is_none(), "nothing was masked");
            continue;
        }
        let grad = store.get(var).unwrap();
        let norm = grad
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .sqrt()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        let value = |step: f64| {
            let mut moved = weights.clone();
            let shifted = (&weights[name] + (grad * (step / f64::from(norm))).unwrap()).unwrap();
            moved.insert(name.clone(), shifted);
            f64::from(loss(&moved).to_scalar::<f32>().unwrap())
        };
        let of_step = |step: f64| (value(step) - value(-step)) / (2. * step);
        let slope = (4. * of_step(1e-2) - of_step(2e-2)) / 3.;
        let error = (slope - f64::from(norm)).abs() / f64::from(norm);
        assert!(error < 4e-3, "{name}: slope {slope}, gradient {norm}");
    }
}

#[test]
fn network_drop_path_weights_the_kept_images_and_passes_the_others() {
    // One block whose feed-forward network adds nothing, so that only attention's plan shows.
    let config = VitConfig {
        depth: 1,
        ..config(1, FeedForwardKind::Mlp)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut weights = perturbed(initialise(&config, &mut rng).unwrap(), &mut rng);
    weights.insert(
        "blocks.0.ls2.gamma".into(),
        Tensor::zeros(24, DType::F32, &Device::Cpu).unwrap(),
    );
    let vit = VisionTransformer::from_tensors(&config, &weights, &Device::Cpu).unwrap();
    let pixels = random(&mut rng, &[8, 3, 16, 16]);
    let embedded = vit.embed(&pixels, None).unwrap();
    let branch = (vit.forward(&pixels, None).unwrap().prenorm - &embedded).unwrap();
    let flat = |tensor: &Tensor, image: usize| -> Vec<f32> {
        tensor
            .get(image)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    for (mode, weight) in [
        (DropPathMode::BatchSubset, 8. / 6.),
        (DropPathMode::PerSample, 1. / 0.75),
    ] {
        let plan = DropPathPlan::draw(0.25, DropPathSchedule::Uniform, mode, 1, 8, &mut rng).unwrap();
        let out = vit.forward_with(&pixels, None, Some(&plan)).unwrap().prenorm;
        let mut kept = 0;
        for image in 0..8 {
            let (before, after) = (flat(&embedded, image), flat(&out, image));
            if before == after {
                continue;
            }
            kept += 1;
            for ((after, before), branch) in after.iter().zip(&before).zip(flat(&branch, image)) {
                assert!(
                    (after - before - weight * branch).abs() < 1e-4,
                    "{mode:?}, image {image}"
                );
            }
        }
        match mode {
            DropPathMode::BatchSubset => assert_eq!(kept, 6),
            DropPathMode::PerSample => assert!((1..8).contains(&kept), "{kept} images kept"),
        }
    }
    let plan = DropPathPlan::draw(
        0.2,
        DropPathSchedule::Uniform,
        DropPathMode::PerSample,
        1,
        4,
        &mut rng,
    )
    .unwrap();
    let error = vit
        .forward_with(&pixels, None, Some(&plan))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "drop_path: expected a plan for (batch, depth) = (8, 1), found (4, 1)"
    );
}

#[test]
fn network_fixed_gains_get_no_gradient() {
    let config = DinoHeadConfig {
        input: 6,
        hidden: 5,
        bottleneck: 4,
        prototypes: 3,
        train_gain: false,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let map = VarMap::new();
    into_varmap("head", &config.initialise(&mut rng).unwrap(), &map);
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let head = DinoHead::new(&config, vb.pp("head")).unwrap();
    let logits = head.forward(&random(&mut rng, &[4, 6])).unwrap();
    let largest = logits
        .abs()
        .unwrap()
        .max_all()
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!(largest <= 1. + 1e-6, "cosines, found {largest}");
    let grads = loss_of(&[&logits], &mut rng).backward().unwrap();
    let data = map.data().lock().unwrap();
    assert!(grads.get(&data["head.last_layer.weight_g"]).is_none());
    assert!(grads.get(&data["head.last_layer.weight_v"]).is_some());
}

/// DINO v1 networks have neither LayerScale nor a mask token.
#[test]
fn network_without_layer_scale_trains() {
    let config = VitConfig {
        layer_scale: None,
        mask_token: false,
        ..config(0, FeedForwardKind::Mlp)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let weights = perturbed(initialise(&config, &mut rng).unwrap(), &mut rng);
    let vars: BTreeMap<String, Var> = weights
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let tensors = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let vit = VisionTransformer::from_tensors(&config, &tensors, &Device::Cpu).unwrap();
    let out = vit.forward(&random(&mut rng, &[1, 3, 16, 16]), None).unwrap();
    let grads = loss_of(&[&out.cls, &out.patch], &mut rng).backward().unwrap();
    assert_eq!(vars.len(), config.parameters().len());
    for (name, var) in &vars {
        assert!(grads.get(var).is_some(), "{name}");
    }
}

/// The same values on one thread and on several, to the bit.
#[test]
fn network_results_do_not_depend_on_the_threads() {
    let config = VitConfig {
        embed_dim: 96,
        ffn_hidden: 384,
        ..config(1, FeedForwardKind::Mlp)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let weights = perturbed(initialise(&config, &mut rng).unwrap(), &mut rng);
    let pixels = random(&mut rng, &[6, 3, 32, 32]);
    let step = || {
        let vars: BTreeMap<String, Var> = weights
            .iter()
            .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
            .collect();
        let tensors = vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let vit = VisionTransformer::from_tensors(&config, &tensors, &Device::Cpu).unwrap();
        let out = vit.forward(&pixels, None).unwrap();
        let store = loss_of(&[&out.cls, &out.patch], &mut ChaCha8Rng::seed_from_u64(2))
            .backward()
            .unwrap();
        let bits = |tensor: &Tensor| -> Vec<u32> {
            tensor
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .map(f32::to_bits)
                .collect()
        };
        let mut all: BTreeMap<String, Vec<u32>> = vars
            .iter()
            .filter_map(|(name, var)| Some((name.clone(), bits(store.get(var)?))))
            .collect();
        all.insert("patch".into(), bits(&out.patch));
        all
    };
    let on = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(step)
    };
    let alone = on(1);
    for threads in [2, 3, 7] {
        for (name, found) in on(threads) {
            assert!(found == alone[&name], "{name} differs on {threads} threads");
        }
    }
}

/// Rows computed alone are those of the whole output, and so is what they give to every weight; with and without branches
/// that run on some images only.
#[test]
fn network_chosen_rows_are_those_of_the_output() {
    let config = config(1, FeedForwardKind::Swiglu);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let map = VarMap::new();
    let weights = perturbed(initialise(&config, &mut rng).unwrap(), &mut rng);
    into_varmap("backbone", &weights, &map);
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let vit = VisionTransformer::new(&config, vb.pp("backbone")).unwrap();
    let pixels = random(&mut rng, &[2, 3, 16, 16]);
    let (schedule, mode) = (DropPathSchedule::Uniform, DropPathMode::BatchSubset);
    let plan = DropPathPlan::draw(0.5, schedule, mode, config.depth, 2, &mut rng).unwrap();
    for plan in [None, Some(&plan)] {
        // Class tokens, and patch 5 of the second image, of 1 + 1 + 16 tokens each.
        let rows = vit
            .forward_rows(&pixels, None, plan, &[0, 18, 18 + 2 + 5])
            .unwrap();
        let whole = vit.forward_with(&pixels, None, plan).unwrap();
        let patch = whole.patch.narrow(0, 1, 1).unwrap().narrow(1, 5, 1).unwrap();
        let whole = Tensor::cat(&[&whole.cls, &patch.squeeze(1).unwrap()], 0).unwrap();
        let [rows, whole] = [rows, whole].map(|output| {
            let loss = loss_of(&[&output], &mut ChaCha8Rng::seed_from_u64(6));
            let grads = loss.backward().unwrap();
            let data = map.data().lock().unwrap();
            let names: BTreeMap<&String, &Var> = data.iter().collect();
            let grads = names.values().filter_map(|var| grads.get(var));
            let grads = grads.map(|grad| grad.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let grads: Vec<f32> = grads.flatten().collect();
            (output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), grads)
        });
        assert_eq!(rows.1.len(), whole.1.len());
        let [found, expected] = [rows, whole].map(|(output, grads)| output.into_iter().chain(grads));
        for (found, expected) in found.zip(expected) {
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1.),
                "{found}, {expected}"
            );
        }
    }
}

/// Patches that are not seen have no part in the class token, and all of them seen is the whole pass.
#[test]
fn network_seen_in_part() {
    let config = config(2, FeedForwardKind::Mlp);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let weights = perturbed(initialise(&config, &mut rng).unwrap(), &mut rng);
    let vit = VisionTransformer::from_tensors(&config, &weights, &Device::Cpu).unwrap();
    let pixels = random(&mut rng, &[2, 3, 16, 16]);
    let cls = |pixels: &Tensor, visible: &[u32]| {
        let cls = vit.forward_visible(pixels, None, visible).unwrap();
        cls.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let near = |found: &[f32], expected: &[f32]| {
        let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5 * b.abs().max(1.);
        !found.iter().zip(expected).any(far)
    };
    let all: Vec<u32> = (0..32).collect();
    let whole = vit.forward(&pixels, None).unwrap().cls;
    let whole = whole.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(near(&cls(&pixels, &all), &whole));

    // The last patch of the second image is the only one of either that is not seen here.
    let visible: Vec<u32> = (0..15).chain(16..31).collect();
    let ones = Tensor::ones((1, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let changed = pixels.slice_assign(&[1..2, 0..3, 12..16, 12..16], &ones).unwrap();
    assert_eq!(cls(&changed, &visible), cls(&pixels, &visible));
    assert!(!near(&cls(&changed, &all), &whole) && !near(&cls(&pixels, &visible), &whole));

    for wrong in [&[0, 1, 16][..], &[0, 1, 2, 16], &[16, 0], &[0, 32]] {
        let error = vit.forward_visible(&pixels, None, wrong).unwrap_err().to_string();
        assert!(error.contains("visible"), "{wrong:?}: {error}");
    }
}
