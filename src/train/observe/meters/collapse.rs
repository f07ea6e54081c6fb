//! From the meters to a sentence: whether a run is collapsing, how, and what to try.

/// Below this [`feature_std`](super::feature_std) all features count as alike: the mean cosine between two images is then
/// above 0.997.
pub const ALIKE_STD: f64 = 0.05;
/// Below this share of the rank that is possible, features count as collapsed onto a few dimensions. Healthy DINO
/// features use a tenth or more; features of a small run pass through some per cent early.
pub const LOW_RANK_SHARE: f64 = 0.02;
/// Below this effective rank they do so too, however few dimensions there are.
pub const LOW_RANK: f64 = 1.5;
/// With fewer rows or dimensions than this the effective rank is not judged: small numbers are low by nature.
pub const JUDGED_RANK: usize = 16;
/// Above this share of ln K the teacher's targets count as uniform.
pub const UNIFORM_SHARE: f64 = 0.99;
/// Below this number of prototypes that the mean target uses (usage times K), the teacher counts as having chosen one or
/// two prototypes for everything. Not a share of K: a batch can use only as many as it has kinds of images.
pub const FEW_PROTOTYPES: f64 = 2.0;
/// With fewer rows or prototypes than this the use of prototypes is not judged.
pub const JUDGED_PROTOTYPES: usize = 16;

/// What the meters read at one step; what was not measured is `None` and not judged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Readings {
    /// [`feature_std`](super::feature_std).
    pub feature_std: Option<f64>,
    /// [`effective_rank`](super::effective_rank), with the smaller of the rows and the width it was measured on.
    pub effective_rank: Option<(f64, usize)>,
    /// The teacher's targets.
    pub targets: Option<TargetReadings>,
}

/// What the meters of the teacher's targets `[m, k]` read.
#[derive(Debug, Clone, Copy)]
pub struct TargetReadings {
    /// `share` of [`entropy`](super::entropy).
    pub entropy_share: f64,
    /// `usage` of [`prototype_usage`](super::prototype_usage).
    pub usage: f64,
    /// Number of rows m.
    pub m: usize,
    /// Number of prototypes k.
    pub k: usize,
}

/// The judge of one run.
#[derive(Debug, Clone, Copy)]
pub struct Collapse {
    quiet_steps: u64,
}

impl Collapse {
    /// A judge that says nothing in the first `quiet_steps` steps: a network just initialised gives features nearly alike
    /// and targets nearly uniform, and that is no collapse. The end of the learning rate's warm-up is a good choice.
    pub fn after(quiet_steps: u64) -> Self {
        Self { quiet_steps }
    }

    /// What is collapsing at `step`, and what to try, in one sentence; `None` when nothing is. Of several troubles the one
    /// that explains the others is named. Readings that are not finite are always named.
    pub fn judge(&self, step: u64, readings: &Readings) -> Option<String> {
        if let Some(meter) = not_finite(readings) {
            return Some(format!(
                "{meter} is not a finite number, so the weights or the loss are broken: go back to the last checkpoint and \
                 lower the learning rate or clip gradients harder"
            ));
        }
        if step <= self.quiet_steps {
            return None;
        }
        let targets = readings.targets.as_ref();
        alike(readings.feature_std)
            .or_else(|| targets.and_then(uniform))
            .or_else(|| targets.and_then(few_prototypes))
            .or_else(|| low_rank(readings.effective_rank))
    }
}

/// The first meter whose reading is no number.
fn not_finite(readings: &Readings) -> Option<&'static str> {
    let rank = readings.effective_rank.map(|(rank, _)| rank);
    let targets = readings.targets.as_ref();
    [
        ("feature_std", readings.feature_std),
        ("effective_rank", rank),
        ("teacher_entropy", targets.map(|targets| targets.entropy_share)),
        ("prototype_usage", targets.map(|targets| targets.usage)),
    ]
    .into_iter()
    .find_map(|(name, reading)| reading.filter(|value| !value.is_finite()).map(|_| name))
}

fn alike(feature_std: Option<f64>) -> Option<String> {
    let spread = feature_std.filter(|&spread| spread < ALIKE_STD)?;
    Some(format!(
        "complete collapse: all images have nearly the same features (feature_std {spread:.4}, below {ALIKE_STD}); try a \
         lower teacher temperature with centring or Sinkhorn-Knopp on, a lower learning rate or a longer warm-up"
    ))
}

fn uniform(targets: &TargetReadings) -> Option<String> {
    let share = targets.entropy_share;
    (share > UNIFORM_SHARE).then(|| {
        format!(
            "the teacher's targets are uniform and teach nothing (entropy {:.1} % of ln K, above {:.0} %); try a lower \
             teacher temperature, or a slower moving average of the centre",
            100.0 * share,
            100.0 * UNIFORM_SHARE
        )
    })
}

fn few_prototypes(targets: &TargetReadings) -> Option<String> {
    let used = targets.usage * targets.k as f64;
    let judged = targets.m.min(targets.k) >= JUDGED_PROTOTYPES;
    (judged && used < FEW_PROTOTYPES).then(|| {
        format!(
            "the teacher gives nearly every image the same target ({used:.1} of {} prototypes in use, fewer than \
             {FEW_PROTOTYPES:.0}); try Sinkhorn-Knopp or a faster moving average of the centre, or a higher teacher temperature",
            targets.k
        )
    })
}

fn low_rank(effective_rank: Option<(f64, usize)>) -> Option<String> {
    let (rank, possible) = effective_rank?;
    let min = LOW_RANK.max(LOW_RANK_SHARE * possible as f64);
    (possible >= JUDGED_RANK && rank < min).then(|| {
        format!(
            "dimensional collapse: the features use about {rank:.1} of {possible} directions (below {min:.1}); try KoLeo \
             with more weight, a larger batch, stronger augmentation or a lower weight decay"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::observe::meters::{effective_rank, entropy, feature_std, prototype_usage};

    const JUDGE: Collapse = Collapse { quiet_steps: 100 };

    fn healthy() -> Readings {
        Readings {
            feature_std: Some(0.8),
            effective_rank: Some((60.0, 384)),
            targets: Some(TargetReadings {
                entropy_share: 0.5,
                usage: 0.1,
                m: 128,
                k: 4096,
            }),
        }
    }

    fn with_targets(change: impl Fn(&mut TargetReadings)) -> Readings {
        let mut readings = healthy();
        readings.targets.iter_mut().for_each(change);
        readings
    }

    #[test]
    fn a_healthy_run_is_left_alone() {
        assert_eq!(JUDGE.judge(5_000, &healthy()), None);
        assert_eq!(JUDGE.judge(5_000, &Readings::default()), None);
    }

    #[test]
    fn each_collapse_is_named_but_not_in_the_first_steps() {
        let low = Readings {
            effective_rank: Some((5.0, 384)),
            ..healthy()
        };
        let alike = Readings {
            feature_std: Some(0.01),
            ..low
        };
        for (readings, word) in [
            (alike, "complete collapse"),
            (low, "dimensional collapse"),
            (with_targets(|targets| targets.entropy_share = 0.999), "uniform"),
            (
                with_targets(|targets| targets.usage = 1.2 / 4096.0),
                "1.2 of 4096 prototypes",
            ),
        ] {
            let said = JUDGE.judge(101, &readings).expect("judged");
            assert!(said.contains(word), "{said}");
            assert!(said.contains("try ") && !said.contains('\n'), "{said}");
            assert_eq!(JUDGE.judge(100, &readings), None);
        }
    }

    #[test]
    fn what_is_too_small_to_judge_is_not_judged() {
        let few = Readings {
            effective_rank: Some((1.2, 8)),
            ..healthy()
        };
        assert_eq!(JUDGE.judge(5_000, &few), None);
        let few = with_targets(|targets| (targets.usage, targets.m) = (1.0 / 4096.0, 8));
        assert_eq!(JUDGE.judge(5_000, &few), None);
    }

    #[test]
    fn a_reading_that_is_no_number_is_named_at_once() {
        let broken = Readings {
            feature_std: Some(f64::NAN),
            ..healthy()
        };
        let said = JUDGE.judge(1, &broken).expect("judged");
        assert!(said.starts_with("feature_std is not a finite number"), "{said}");
    }

    #[test]
    fn a_constructed_collapse_goes_from_arrays_to_the_sentence() {
        let (n, d, k) = (64, 32, 128);
        let features: Vec<f32> = (0..n * d).map(|i| 1.0 + 0.001 * (i as f32 * 0.7).sin()).collect();
        let targets: Vec<f32> = (0..n * k).map(|i| if i % k == 5 { 1.0 } else { 0.0 }).collect();
        let read = TargetReadings {
            entropy_share: entropy(&targets, n, k).share,
            usage: prototype_usage(&targets, n, k).usage,
            m: n,
            k,
        };
        let mut readings = Readings {
            feature_std: Some(feature_std(&features, n, d)),
            effective_rank: Some((effective_rank(&features, n, d), d)),
            targets: Some(read),
        };
        let said = JUDGE.judge(200, &readings).expect("judged");
        assert!(said.contains("complete collapse"), "{said}");
        readings.feature_std = None;
        let said = JUDGE.judge(200, &readings).expect("judged");
        assert!(said.contains("1.0 of 128 prototypes"), "{said}");
        readings.targets = None;
        let said = JUDGE.judge(200, &readings).expect("judged");
        assert!(said.contains("dimensional collapse"), "{said}");
    }
}
