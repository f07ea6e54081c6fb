//! What a run on many ranks asks of its settings.

use super::TrainConfig;
use crate::{Error, Result};

impl TrainConfig {
    /// Checks that a step's images can be shared among `ranks` processes.
    ///
    /// # Errors
    /// Names the setting, with both numbers.
    pub fn check_ranks(&self, ranks: usize) -> Result<()> {
        if ranks == 1 {
            return Ok(());
        }
        let parts = ranks * self.accumulate;
        if !self.batch_size.is_multiple_of(parts) {
            let accumulated = match self.accumulate {
                1 => String::new(),
                parts => format!(" times accumulate {parts}"),
            };
            let reason = format!(
                "expected a multiple of the {ranks} ranks{accumulated}, found {}",
                self.batch_size
            );
            return Err(Error::input("batch_size", reason));
        }
        let (field, smallest) = match self.batch_warmup_steps {
            0 => ("batch_size", self.batch_size / parts),
            _ => ("batch_warmup_start", self.batch_warmup_start / ranks),
        };
        if smallest < 1 {
            let reason = format!("expected an image a micro-batch for each of {ranks} ranks, found fewer");
            return Err(Error::input(field, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::train::trainer::tests::config;

    #[test]
    fn a_batch_that_ranks_cannot_share_is_refused_with_both_numbers() {
        let small = |settings: &[&str]| config("dinov2-small", settings);
        let eight = small(&["batch_size=8", "accumulate=2"]);
        assert!(eight.check_ranks(1).is_ok() && eight.check_ranks(2).is_ok());
        let message = |config: &crate::train::config::TrainConfig, ranks| {
            config.check_ranks(ranks).unwrap_err().to_string()
        };
        assert_eq!(
            message(&eight, 3),
            "batch_size: expected a multiple of the 3 ranks times accumulate 2, found 8"
        );
        assert_eq!(
            message(&small(&["batch_size=8"]), 3),
            "batch_size: expected a multiple of the 3 ranks, found 8"
        );
        assert_eq!(
            message(
                &small(&["batch_size=8", "batch_warmup_steps=2", "batch_warmup_start=3"]),
                4
            ),
            "batch_warmup_start: expected an image a micro-batch for each of 4 ranks, found fewer"
        );
    }
}
