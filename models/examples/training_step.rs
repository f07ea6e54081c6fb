//! Times the network's part of a training step of DINOv2 on the CPU: teacher on global crops, student on masked global
//! crops and on local ones, heads, cross-entropies, backward pass. `cargo run --release -p macula-models --example training_step -- small|large [batch] [repetitions]`.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use macula_models::heads::{DinoHead, DinoHeadConfig};
use macula_models::ops::soft_cross_entropy;
use macula_models::vit::{FeedForwardKind, PositionRule, VisionTransformer, VitConfig};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let large = arguments.get(1).is_some_and(|name| name == "large");
    let number = |i: usize, default| arguments.get(i).map_or(default, |n| n.parse().unwrap());
    let (batch, repetitions): (usize, usize) = (number(2, 64), number(3, 3));
    let (width, depth, heads, patch, global, local, prototypes) = if large {
        (384, 12, 6, 14, 56, 28, 65_536)
    } else {
        (192, 6, 3, 4, 28, 16, 4_096)
    };
    let config = VitConfig {
        embed_dim: width,
        depth,
        num_heads: heads,
        patch_size: patch,
        image_size: global,
        in_channels: 3,
        num_registers: 0,
        feed_forward: FeedForwardKind::Mlp,
        ffn_hidden: 4 * width,
        layer_scale: Some(1e-5),
        mask_token: true,
        layer_norm_eps: 1e-6,
        position_rule: PositionRule::Official,
    };
    let head = DinoHeadConfig {
        prototypes,
        ..DinoHeadConfig::new(width)
    };
    let device = Device::Cpu;
    let network = |map: &VarMap, frozen: bool| {
        let vb = VarBuilder::from_varmap(map, DType::F32, &device);
        VisionTransformer::new(&config, vb.pp("backbone")).unwrap();
        DinoHead::new(&head, vb.pp("head")).unwrap();
        let vb = if frozen {
            let data = map.data().lock().unwrap();
            let tensors = data
                .iter()
                .map(|(name, var)| (name.clone(), var.as_detached_tensor()));
            VarBuilder::from_tensors(tensors.collect(), DType::F32, &device)
        } else {
            VarBuilder::from_varmap(map, DType::F32, &device)
        };
        (
            VisionTransformer::new(&config, vb.pp("backbone")).unwrap(),
            DinoHead::new(&head, vb.pp("head")).unwrap(),
        )
    };
    let map = VarMap::new();
    let (teacher, teacher_head) = network(&map, true);
    let (student, student_head) = network(&map, false);
    for var in map.all_vars() {
        var.set(&Tensor::randn(0f32, 0.02, var.shape(), &device).unwrap())
            .unwrap();
    }
    let patches = (global / patch) * (global / patch);
    let pixels =
        |side: usize, count: usize| Tensor::randn(0f32, 1., (count, 3, side, side), &device).unwrap();
    let (globals, locals) = (pixels(global, 2 * batch), pixels(local, 6 * batch));
    // Half of the crops have 30 % of their patches masked.
    let masked = (patches as f64 * 0.3) as usize;
    let mask: Vec<u8> = (0..2 * batch * patches)
        .map(|i| u8::from(i / patches % 2 == 0 && i % patches < masked))
        .collect();
    let mask = Tensor::from_vec(mask, (2 * batch, patches), &device).unwrap();
    let rows: Vec<u32> = (0..2 * batch)
        .step_by(2)
        .flat_map(|crop| (0..masked).map(move |p| (crop * (1 + patches) + 1 + p) as u32))
        .collect();
    let cls_rows =
        |crops: usize, tokens: usize| -> Vec<u32> { (0..crops).map(|crop| (crop * tokens) as u32).collect() };
    let on_globals = cls_rows(2 * batch, 1 + patches);
    let on_locals = cls_rows(6 * batch, 1 + (local / patch) * (local / patch));
    let softmax = |logits: &Tensor| candle_nn::ops::softmax_last_dim(&logits.detach()).unwrap();
    for _ in 0..repetitions {
        let start = Instant::now();
        let sees = teacher.forward_tokens(&globals, None, None).unwrap();
        let backbone = start.elapsed();
        let cls_targets = softmax(
            &teacher_head
                .forward(&teacher.norm_rows(&sees, &on_globals).unwrap())
                .unwrap(),
        );
        let patch_targets = softmax(
            &teacher_head
                .forward(&teacher.norm_rows(&sees, &rows).unwrap())
                .unwrap(),
        );
        let teacher_time = start.elapsed();
        let on_global = student.forward_tokens(&globals, Some(&mask), None).unwrap();
        let on_local = student.forward_tokens(&locals, None, None).unwrap();
        let student_backbone = start.elapsed();
        let cls = [(&on_global, &on_globals), (&on_local, &on_locals)]
            .map(|(x, rows)| student.norm_rows(x, rows).unwrap());
        let both = Tensor::cat(&cls, 0).unwrap();
        let cls = student_head.forward(&both).unwrap();
        let patch = student_head
            .forward(&student.norm_rows(&on_global, &rows).unwrap())
            .unwrap();
        let student_time = start.elapsed();
        let targets = cls_targets.repeat((4, 1)).unwrap();
        let loss = |logits: &Tensor, targets: &Tensor| {
            soft_cross_entropy(logits, targets, None, 0.1)
                .unwrap()
                .mean_all()
                .unwrap()
        };
        let loss = (loss(&cls, &targets) + loss(&patch, &patch_targets)).unwrap();
        let forward = start.elapsed();
        let grads = loss.backward().unwrap();
        let all = start.elapsed();
        println!(
            "teacher {:.3} (backbone {:.3})  student {:.3} (backbone {:.3})  loss {:.3}  backward {:.3}  all {:.3}  ({} gradients)  minor faults {}",
            teacher_time.as_secs_f64(),
            backbone.as_secs_f64(),
            (student_time - teacher_time).as_secs_f64(),
            (student_backbone - teacher_time).as_secs_f64(),
            (forward - student_time).as_secs_f64(),
            (all - forward).as_secs_f64(),
            all.as_secs_f64(),
            grads.get_ids().count(),
            faults(),
        );
    }
}

fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    stat.split(' ')
        .nth(9)
        .and_then(|field| field.parse().ok())
        .unwrap_or(0)
}
