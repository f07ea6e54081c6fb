//! Distillations on several ranks, threads in the place of processes, beside those of one.

use std::path::Path;
use std::sync::Arc;

use super::helpers::*;
use crate::cluster::simulated::{Network, on_ranks};
use crate::cluster::{OneRank, Ranks};

/// Losses of the steps, and everything that the trainer holds before and after them.
struct Distilled {
    losses: Vec<f64>,
    first: Vec<(String, Vec<f64>)>,
    last: Vec<(String, Vec<f64>)>,
}

fn distilled(ranks: &Arc<dyn Ranks>, recipe: &str, teacher: &Path, settings: &[&str]) -> Distilled {
    let (config, teacher) = settled(recipe, teacher, settings).unwrap();
    let mut trainer = trainer(&config, teacher);
    trainer.share_with(ranks).unwrap();
    let first = contents(&trainer);
    let steps = batches_of(&config, ranks.as_ref(), 0, 4);
    let losses = steps
        .iter()
        .map(|parts| trainer.advance(parts).unwrap().loss)
        .collect();
    Distilled {
        losses,
        first,
        last: contents(&trainer),
    }
}

/// Squares of how far two sets of values are apart.
fn apart(a: &[(String, Vec<f64>)], b: &[(String, Vec<f64>)]) -> f64 {
    let values = |set: &[(String, Vec<f64>)]| -> Vec<f64> {
        // The moments of gradients are far smaller than weights, and the memory does not count as moved.
        let weights = set.iter().filter(|(name, _)| name.starts_with("backbone"));
        weights.flat_map(|(_, values)| values.clone()).collect()
    };
    let (a, b) = (values(a), values(b));
    assert!(!a.is_empty() && a.len() == b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[test]
fn a_distillation_does_not_depend_on_how_many_ranks_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = teacher_run(folder.path(), "dinov2-small");
    let cache = format!("distill.cache={}", folder.path().join("cache").display());
    // The tenth image has no label, so that some ranks have fewer to learn from than others.
    let labelled = [
        "distill.label_weight=0.5",
        "distill.cache_epochs=1",
        cache.as_str(),
    ];
    for (recipe, own) in [
        (
            "distill-dinov2",
            &["distill.ibot_tokens=subset", "masks.probability=0.1"][..],
        ),
        ("distill-features", &["distill.relation_weight=1.0"]),
        ("distill-features", &labelled),
        ("distill-logits", &[]),
    ] {
        let alike = [
            "backbone.drop_path_rate=0.0",
            "loss.koleo_weight=0.0",
            "distill.relation_queue=20",
        ];
        let settings = [&alike[..], own].concat();
        let one: Arc<dyn Ranks> = Arc::new(OneRank);
        let expected = distilled(&one, recipe, &run, &settings);
        let moved = apart(&expected.last, &expected.first);
        assert!(moved > 0., "{recipe}");
        for size in [2, 4] {
            let found = on_ranks(size, Network::default(), |ranks| {
                distilled(&ranks, recipe, &run, &settings)
            });
            for (rank, found) in found.iter().enumerate() {
                let what = format!("{recipe} {own:?} on {size} ranks, rank {rank}");
                for (step, (a, b)) in found.losses.iter().zip(&expected.losses).enumerate() {
                    let tolerance = if step == 0 { 1e-6 } else { 1e-4 };
                    assert!(
                        (a - b).abs() <= tolerance * b.abs(),
                        "{what}, step {step}: {a}, expected {b}"
                    );
                }
                assert!(found.first == expected.first, "{what}");
                let apart = apart(&found.last, &expected.last);
                assert!(
                    apart <= 1e-4 * moved,
                    "{what}: {apart} apart of {moved} moved, both squared"
                );
            }
            assert!(
                found.iter().all(|other| other.last == found[0].last),
                "{recipe} on {size} ranks"
            );
        }
    }
}
