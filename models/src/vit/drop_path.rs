//! Stochastic depth: which images of a batch run through which residual branch, drawn before the forward pass.
//!
//! The plan is data, so the network itself holds no random state: the same plan gives the same result on any number of
//! threads, and a resumed run draws the same plans from the same generator.

use rand::Rng;

use crate::ops::BranchSamples;
use crate::{Error, Result};

/// How the rate follows the depth (DINOv2 `drop_path_uniform`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropPathSchedule {
    /// The same rate in every block.
    Uniform,
    /// From 0 in the first block to the rate in the last.
    Linear,
}

/// What is left out (DINOv2 `layers/block.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropPathMode {
    /// A branch runs on `max(floor(b (1 - rate)), 1)` images of a random permutation and is weighted by `b` over their
    /// number: the mode of DINOv2 training at any rate above 0, and of single batches at rates above 0.1.
    BatchSubset,
    /// Every image keeps a branch with probability `1 - rate`, weighted by `1 / (1 - rate)`; here, too, images that drop a
    /// branch are not computed.
    PerSample,
}

/// Which images each branch of each block runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct DropPathPlan {
    batch: usize,
    /// For each block, attention and feed-forward; `None` is the whole batch at weight 1.
    branches: Vec<[Option<BranchSamples>; 2]>,
}

impl DropPathPlan {
    /// Draws a plan for `batch` images and `depth` blocks. Attention and feed-forward draw independently.
    ///
    /// # Errors
    /// A rate outside of [0, 1), or an empty batch.
    pub fn draw(
        rate: f64,
        schedule: DropPathSchedule,
        mode: DropPathMode,
        depth: usize,
        batch: usize,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        if !(0. ..1.).contains(&rate) {
            return Err(Error::config(
                "drop_path_rate",
                format!("expected at least 0 and below 1, found {rate}"),
            ));
        }
        if batch == 0 || u32::try_from(batch).is_err() {
            return Err(Error::config(
                "batch",
                format!("expected 1 to {}, found {batch}", u32::MAX),
            ));
        }
        let branches = (0..depth)
            .map(|block| {
                let rate = match schedule {
                    DropPathSchedule::Uniform => rate,
                    DropPathSchedule::Linear => rate * block as f64 / (depth - 1).max(1) as f64,
                };
                [(); 2].map(|()| draw_branch(rate, mode, batch, rng))
            })
            .collect();
        Ok(Self { batch, branches })
    }

    /// One plan for the images of two passes that are packed: those of the first, then those of the second, each with its own plan
    /// or, with none, all of them. Plans are for these numbers of images and blocks.
    pub(super) fn joined(plans: [Option<&Self>; 2], images: [usize; 2], depth: usize) -> Option<Self> {
        if plans == [None, None] {
            return None;
        }
        let [first, second] = images;
        let branch = |block: usize, branch: usize| {
            let [one, other] = plans.map(|plan| plan.and_then(|plan| plan.block(block)[branch]));
            match (one, other) {
                (None, None) => None,
                _ => Some(BranchSamples::joined(
                    one.unwrap_or(&BranchSamples::all(first)),
                    first,
                    other.unwrap_or(&BranchSamples::all(second)),
                )),
            }
        };
        Some(Self {
            batch: first + second,
            branches: (0..depth)
                .map(|block| [0, 1].map(|of_two| branch(block, of_two)))
                .collect(),
        })
    }

    /// Number of images the plan is for.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Number of blocks the plan is for.
    pub fn depth(&self) -> usize {
        self.branches.len()
    }

    /// Attention's and the feed-forward network's images in block `block`; whole batches beyond the last block.
    pub(super) fn block(&self, block: usize) -> [Option<&BranchSamples>; 2] {
        self.branches
            .get(block)
            .map_or([None; 2], |[attention, feed_forward]| {
                [attention.as_ref(), feed_forward.as_ref()]
            })
    }
}

fn draw_branch(rate: f64, mode: DropPathMode, batch: usize, rng: &mut impl Rng) -> Option<BranchSamples> {
    if rate == 0. {
        return None;
    }
    let mut order: Vec<u32> = (0..batch as u32).collect();
    let (kept, factor) = match mode {
        DropPathMode::BatchSubset => {
            let kept = ((batch as f64 * (1. - rate)) as usize).max(1);
            // The first `kept` places of a Fisher-Yates shuffle.
            for place in 0..kept {
                order.swap(place, rng.random_range(place as u32..batch as u32) as usize);
            }
            order.truncate(kept);
            (order, batch as f64 / kept as f64)
        }
        DropPathMode::PerSample => {
            order.retain(|_| rng.random::<f64>() >= rate);
            (order, 1. / (1. - rate))
        }
    };
    let factors = vec![factor as f32; kept.len()];
    Some(BranchSamples { kept, factors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn plan(rate: f64, schedule: DropPathSchedule, mode: DropPathMode, batch: usize) -> DropPathPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        DropPathPlan::draw(rate, schedule, mode, 5, batch, &mut rng).unwrap()
    }

    #[test]
    fn a_subset_has_the_reference_size_and_weight() {
        for (rate, batch, kept) in [
            (0.3, 10, 7),
            (0.4, 64, 38),
            (0.9, 4, 1),
            (0.5, 1, 1),
            (0.05, 8, 7),
        ] {
            let plan = plan(rate, DropPathSchedule::Uniform, DropPathMode::BatchSubset, batch);
            for samples in plan.branches.iter().flatten() {
                let samples = samples.as_ref().unwrap();
                assert_eq!(samples.kept.len(), kept);
                assert!(
                    samples
                        .factors
                        .iter()
                        .all(|&factor| factor == (batch as f64 / kept as f64) as f32)
                );
                let mut sorted = samples.kept.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert!(sorted.len() == kept && sorted.iter().all(|&index| (index as usize) < batch));
            }
        }
    }

    #[test]
    fn branches_draw_independently_and_repeatably() {
        let draw = || plan(0.5, DropPathSchedule::Uniform, DropPathMode::BatchSubset, 64);
        let plan = draw();
        assert_eq!(plan, draw());
        let [attention, feed_forward] = plan.block(0);
        assert_ne!(attention, feed_forward);
        assert_ne!(plan.block(0), plan.block(1));
    }

    #[test]
    fn every_image_is_kept_about_equally_often() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for mode in [DropPathMode::BatchSubset, DropPathMode::PerSample] {
            let mut counts = [0; 8];
            for _ in 0..500 {
                let plan = DropPathPlan::draw(0.25, DropPathSchedule::Uniform, mode, 4, 8, &mut rng).unwrap();
                for samples in plan.branches.iter().flatten().flatten() {
                    samples.kept.iter().for_each(|&index| counts[index as usize] += 1);
                }
            }
            // 4000 draws at probability 3/4: standard deviation 27.
            assert!(
                counts.iter().all(|&count: &i32| (count - 3000).abs() < 140),
                "{mode:?}: {counts:?}"
            );
        }
    }

    #[test]
    fn the_linear_schedule_grows_from_nothing() {
        let plan = plan(0.4, DropPathSchedule::Linear, DropPathMode::BatchSubset, 100);
        let sizes: Vec<usize> = (0..5)
            .map(|i| plan.block(i)[0].map_or(100, |samples| samples.kept.len()))
            .collect();
        assert_eq!(sizes, [100, 90, 80, 70, 60]);
    }

    #[test]
    fn rates_and_batches_out_of_range_are_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (rate, batch) in [(1., 4), (-0.1, 4), (f64::NAN, 4), (0.1, 0)] {
            let (schedule, mode) = (DropPathSchedule::Uniform, DropPathMode::PerSample);
            assert!(DropPathPlan::draw(rate, schedule, mode, 2, batch, &mut rng).is_err());
        }
    }
}
