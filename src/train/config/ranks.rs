//! How ranks share a run, and what a run on many of them asks of its settings.

use serde::{Deserialize, Serialize};

use super::{COMPUTED, TrainConfig};
use crate::device::Dtype;
use crate::{Error, Result};

/// How the ranks of a run share its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RanksConfig {
    /// What gradients are sent in: f32, or bf16, which is half the bytes and rounds each value to 8 bits where it leaves its rank and
    /// once more where the sum does; sums are of f32 either way. Copies of one process lend each other f32 and ignore it. Default f32.
    pub wire: Dtype,
    /// How tensors of GPUs are summed over ranks: auto, by NCCL where all ranks have it and else by way of the host's memory; or host,
    /// by way of the host's memory wherever they are. Default auto.
    pub device_exchange: DeviceExchange,
    /// Whether each rank keeps the optimizer's state of its own share of the weights alone, moves these and tells the others (ZeRO stage
    /// 1): 1 / ranks of that memory for one more exchange of all weights a step, the same bytes. Not with `optimizer.lora_rank`. Default
    /// false.
    pub shard_optimizer: bool,
}

/// How tensors of GPUs are summed over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceExchange {
    /// By NCCL where all ranks have it, else by way of the host's memory.
    #[default]
    Auto,
    /// By way of the host's memory.
    Host,
}

impl Default for RanksConfig {
    fn default() -> Self {
        Self {
            wire: Dtype::F32,
            device_exchange: DeviceExchange::Auto,
            shard_optimizer: false,
        }
    }
}

impl RanksConfig {
    /// Whether it is what a run of one process has: such settings are not written.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks each field by itself.
    ///
    /// # Errors
    /// Names the field.
    pub(super) fn validate(&self) -> Result<()> {
        self.wire.check("ranks.wire", &COMPUTED)
    }
}

impl TrainConfig {
    /// Checks that what ranks share goes with the rest.
    ///
    /// # Errors
    /// Names the setting.
    pub(super) fn validate_ranks(&self) -> Result<()> {
        self.ranks.validate()?;
        let rank = self.optimizer.lora_rank;
        if self.ranks.shard_optimizer && rank > 0 {
            let reason =
                format!("expected false with optimizer.lora_rank={rank}, whose state is small, found true");
            return Err(Error::input("ranks.shard_optimizer", reason));
        }
        Ok(())
    }

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
    fn gradients_are_sent_in_f32_or_bf16() {
        let written = |settings: &[&str]| toml::to_string(&config("dino", settings)).unwrap();
        assert!(!written(&[]).contains("ranks"));
        assert!(written(&["ranks.wire=bf16"]).contains("[ranks]\nwire = \"bf16\""));
        let host = written(&["ranks.device_exchange=host"]);
        assert!(host.contains("device_exchange = \"host\""), "{host}");
        let mut wrong = config("dino", &[]);
        wrong.ranks.wire = crate::device::Dtype::F16;
        let message = wrong.validate().unwrap_err().to_string();
        assert!(message.starts_with("ranks.wire: expected "), "{message}");
    }

    #[test]
    fn the_state_of_adapters_is_not_sharded() {
        let mut adapted = config("dino", &["ranks.shard_optimizer=true"]);
        assert!(adapted.ranks.shard_optimizer && adapted.validate().is_ok());
        adapted.optimizer.lora_rank = 2;
        assert_eq!(
            adapted.validate().unwrap_err().to_string(),
            "ranks.shard_optimizer: expected false with optimizer.lora_rank=2, whose state is small, found true"
        );
    }

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
