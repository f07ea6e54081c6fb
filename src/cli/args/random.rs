//! What is drawn at random.

use clap::Args;
use macula_eval::stats::BootstrapConfig;

use super::RANDOMNESS;

/// The seed of a verb; each of its draws is a stream of its own.
#[derive(Debug, Args)]
#[command(next_help_heading = RANDOMNESS)]
pub struct SeedArgs {
    /// Seed of whatever is drawn at random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// The seed of an evaluation, and how its intervals are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = RANDOMNESS)]
pub struct BootstrapArgs {
    #[command(flatten)]
    pub seed: SeedArgs,
    /// Bootstrap resamples of the 95 % intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = BootstrapConfig::default().resamples)]
    pub bootstrap_resamples: usize,
}

impl SeedArgs {
    /// The seed of the stream `name`.
    pub fn derived(&self, name: &str) -> u64 {
        crate::rng::derived_seed(self.seed, name)
    }
}

impl BootstrapArgs {
    /// The seed of the stream `name`.
    pub fn derived(&self, name: &str) -> u64 {
        self.seed.derived(name)
    }

    /// Intervals drawn from the stream `name`.
    pub fn config(&self, name: &str) -> BootstrapConfig {
        BootstrapConfig {
            resamples: self.bootstrap_resamples,
            seed: self.derived(name),
            ..BootstrapConfig::default()
        }
    }
}
