//! Attention, with and without scores in memory.

use std::sync::{Arc, Mutex};

use candle_core::DType;
use macula_models::ops::attention;
use macula_models::ops::cuda::geometry::Launch;
use macula_models::ops::cuda::{Cell, Launcher, emulated};

use crate::cuda_emulation::launcher;
use crate::{check, outcome, random, values};

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
