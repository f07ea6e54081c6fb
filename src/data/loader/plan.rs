//! How many images each step takes. Pure arithmetic, so that a resumed run needs the number of its step and nothing else.

use std::ops::Range;

use crate::{Error, Result};

/// The largest batch.
const MAX_SIZE: usize = 1 << 20;

/// The batch size of every step: constant, or growing linearly over the first steps (the batch warm-up of the MoCo
/// recipe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    start: usize,
    full: usize,
    warmup_steps: u64,
    rank: usize,
    ranks: usize,
}

impl BatchPlan {
    /// `size` images a step.
    pub fn constant(size: usize) -> Self {
        Self::warmup(size, size, 0)
    }

    /// `start` images in step 0, `full` from step `warmup_steps` on, and between them a straight line, rounded down.
    pub fn warmup(start: usize, full: usize, warmup_steps: u64) -> Self {
        Self {
            start,
            full,
            warmup_steps,
            rank: 0,
            ranks: 1,
        }
    }

    /// The same batches, of which this process makes the share of rank `rank` of `ranks`: consecutive images, as many on each where the
    /// size is a multiple of the ranks, else one more on some.
    pub fn of_rank(self, rank: usize, ranks: usize) -> Self {
        Self { rank, ranks, ..self }
    }

    /// Which images of `step`, of the [`BatchPlan::size`] that all ranks have, this process makes.
    pub fn share(&self, step: u64) -> Range<usize> {
        let whole = self.size(step);
        self.rank * whole / self.ranks..(self.rank + 1) * whole / self.ranks
    }

    /// Images of `step` on all ranks, counted from 0.
    pub fn size(&self, step: u64) -> usize {
        if step >= self.warmup_steps {
            return self.full;
        }
        let grown = self.growth() * u128::from(step) / u128::from(self.warmup_steps);
        self.start + usize::try_from(grown).expect("less than the whole growth, which came from a usize")
    }

    /// Images of all steps before `step`; `u64::MAX` where there are more.
    pub fn images_before(&self, step: u64) -> u64 {
        let growing = step.min(self.warmup_steps);
        let constant = u128::from(step - growing) * self.full as u128;
        let sum = (u128::from(growing) * self.start as u128)
            .saturating_add(floor_sum(
                u128::from(growing),
                u128::from(self.warmup_steps),
                self.growth(),
            ))
            .saturating_add(constant);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// Checks that sizes lie in 1..=1048576 and do not shrink.
    ///
    /// # Errors
    /// Names the size that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (name, size) in [("batch size", self.full), ("first batch size", self.start)] {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(Error::input(
                    name,
                    format!("expected 1 to {MAX_SIZE} images, found {size}"),
                ));
            }
        }
        if self.start > self.full {
            return Err(Error::input(
                "first batch size",
                format!(
                    "expected at most {}, the full one, found {}",
                    self.full, self.start
                ),
            ));
        }
        Ok(())
    }

    fn growth(&self) -> u128 {
        self.full.saturating_sub(self.start) as u128
    }
}

/// The sum of `floor(factor * k / divisor)` over k from 0 to `count - 1`, by Euclid's algorithm on the lattice points under
/// the line (as `floor_sum` of the AtCoder library). `count` is at most `divisor`, all below 2^64.
fn floor_sum(mut count: u128, mut divisor: u128, mut factor: u128) -> u128 {
    let (mut total, mut offset) = (0, 0);
    while count > 0 {
        total += count * (count - 1) / 2 * (factor / divisor) + count * (offset / divisor);
        (factor, offset) = (factor % divisor, offset % divisor);
        let highest = factor * count + offset;
        // Seen from the other axis.
        (count, offset) = (highest / divisor, highest % divisor);
        (divisor, factor) = (factor, divisor);
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn images_before_a_step_are_the_sizes_of_the_steps(
            start in 1_usize..300, growth in 0_usize..5000, warmup_steps in 0_u64..200, steps in 0_u64..400,
        ) {
            let plan = BatchPlan::warmup(start, start + growth, warmup_steps);
            plan.validate().unwrap();
            let sum: u64 = (0..steps).map(|step| plan.size(step) as u64).sum();
            prop_assert_eq!(plan.images_before(steps), sum);
            let sizes: Vec<usize> = (0..steps).map(|step| plan.size(step)).collect();
            prop_assert!(sizes.is_sorted());
            prop_assert!(sizes.iter().all(|size| (start..=start + growth).contains(size)));
        }
    }

    #[test]
    fn the_ends_are_as_requested() {
        let plan = BatchPlan::warmup(64, 256, 4);
        let sizes: Vec<usize> = (0..6).map(|step| plan.size(step)).collect();
        assert_eq!(sizes, [64, 112, 160, 208, 256, 256]);
        assert_eq!(BatchPlan::constant(32).images_before(1 << 40), 1 << 45);
        let endless = BatchPlan::warmup(1, 1 << 20, u64::MAX);
        assert_eq!(endless.images_before(u64::MAX), u64::MAX);
        assert_eq!(endless.size(u64::MAX - 1), (1 << 20) - 1);
    }

    proptest! {
        #[test]
        fn ranks_share_every_step_without_gaps(
            start in 1_usize..90, growth in 0_usize..90, warmup_steps in 0_u64..20, ranks in 1_usize..9, step in 0_u64..30,
        ) {
            let plan = BatchPlan::warmup(start, start + growth, warmup_steps);
            let images: Vec<usize> = (0..ranks).flat_map(|rank| plan.of_rank(rank, ranks).share(step)).collect();
            prop_assert_eq!(images, (0..plan.size(step)).collect::<Vec<_>>());
            let sizes: Vec<usize> = (0..ranks).map(|rank| plan.of_rank(rank, ranks).share(step).len()).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        for (plan, name) in [
            (BatchPlan::constant(0), "batch size: "),
            (BatchPlan::constant(1 << 21), "batch size: "),
            (BatchPlan::warmup(0, 8, 10), "first batch size: "),
            (BatchPlan::warmup(9, 8, 10), "first batch size: "),
        ] {
            let error = plan.validate().unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
