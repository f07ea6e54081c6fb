//! `macula bench exchange`.

use clap::Args;
use macula_eval::table::EvalResult;
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::super::args::{JsonArgs, MODEL, RunArgs, examples};
use crate::cluster::{self, ExchangeRate};
use crate::{Error, Result};

/// Values of a mebibyte.
const VALUES: usize = 1 << 18;

/// Arguments of `macula bench exchange`, which a launcher starts as often as there are to be processes.
#[derive(Debug, Args)]
#[command(next_help_heading = MODEL, after_help = examples(&[
    "macula bench exchange",
    "macula bench exchange --device cuda --megabytes 100",
]))]
pub struct ExchangeBenchArgs {
    /// Mebibytes of f32 that every process brings to a sum, 1 to 4096; gradients are sent in parts of 25
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=4096))]
    megabytes: u32,
    /// Sums of each kind, of which the fastest counts, up to 1000
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl ExchangeBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        let ranks = cluster::join()?;
        self.run.threads.start()?;
        let device = self.run.device_of_process();
        let device_of_candle = device.candle()?;
        let ranks = cluster::connect_devices(ranks, &device_of_candle)?;
        let (count, repetitions) = (self.megabytes as usize * VALUES, self.repetitions as usize);
        let rates = cluster::exchange_rates(ranks.as_ref(), &device_of_candle, count, repetitions)?;
        if ranks.rank() == 0 {
            let settings = serde_json::json!({
                "ranks": ranks.size(),
                "library": ranks.library(),
                "device": device.to_string(),
                "megabytes": self.megabytes,
            });
            let failed = |error: PolarsError| Error::failed("bench exchange", error.to_string());
            let table = rates_table(&rates).map_err(failed)?;
            let result = EvalResult::new("bench_exchange", settings, 0, 0, table)?;
            self.print.print(&result)?;
        }
        match rates.iter().find(|rate| !rate.is_within()) {
            Some(rate) => Err(Error::failed(
                format!("sums by way of {} in {:?}", rate.way, rate.dtype),
                format!(
                    "expected a difference from the exact sum of at most {:.1e}, found {:.1e}",
                    rate.allowed, rate.difference
                ),
            )),
            None => Ok(()),
        }
    }
}

fn rates_table(rates: &[ExchangeRate]) -> PolarsResult<DataFrame> {
    let number = |of: fn(&ExchangeRate) -> f64| rates.iter().map(of).collect::<Vec<_>>();
    df!(
        "way" => rates.iter().map(|rate| rate.way).collect::<Vec<_>>(),
        "sent_in" => rates.iter().map(|rate| format!("{:?}", rate.dtype).to_lowercase()).collect::<Vec<_>>(),
        "bytes" => rates.iter().map(|rate| rate.bytes as u64).collect::<Vec<_>>(),
        "seconds" => number(|rate| rate.seconds),
        "gigabytes_per_second" => number(|rate| rate.bytes as f64 / rate.seconds / 1e9),
        "difference" => number(|rate| rate.difference),
        "allowed" => number(|rate| rate.allowed),
    )
}
