//! What training does to all weights at once: AdamW, clipping, sums of squares.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use macula_models::ops::cuda::geometry::Launch;
use macula_models::ops::cuda::optimizer::{
    AdamwFactors, AdamwUpdate, AveragedWeight, Clip, Moved, Tables, adamw, sums_of_squares,
};
use macula_models::ops::cuda::{Cell, Launcher, emulated};

use crate::cuda_emulation::launcher;
use crate::{assert_close, random, values};

const FACTORS: AdamwFactors = AdamwFactors {
    scale: 1.,
    towards: 0.1,
    keep: 0.999,
    add: 0.001,
    shrink: 0.99,
    size: 0.01,
    root: 0.2,
    eps: 1e-8,
};

fn averaging(weights: &Tensor) -> AveragedWeight<'_> {
    AveragedWeight {
        weights,
        keep: 0.75,
        take: 0.25,
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn adamw_moves_all_weights_and_their_followers() {
    // Less than a warp, a piece exactly, more than one, one without a gradient, one without an average.
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
    let factors = |place: usize| AdamwFactors {
        scale: 0.5,
        size: 0.01 * (place + 1) as f32,
        ..FACTORS
    };
    let mut expected = Vec::new();
    for place in 0..counts.len() {
        let AdamwFactors {
            scale,
            towards,
            keep,
            add,
            shrink,
            size,
            root,
            eps,
        } = factors(place);
        let [scale, towards, keep, add, shrink, size, root, eps] =
            [scale, towards, keep, add, shrink, size, root, eps].map(f64::from);
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
            average: (place != 4).then(|| averaging(&teacher[place])),
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
        average: Some(averaging(&teacher[1])),
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
                    factors: AdamwFactors {
                        scale: clip(groups[place]),
                        ..FACTORS
                    },
                }),
                average: Some(averaging(&all[3][place])),
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
