//! `macula bench ops`.

use clap::Args;
use macula_eval::table::EvalResult;
use macula_models::ops::{OpComparison, compare_operations};
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::super::args::{JsonArgs, MODEL, RunArgs, dtype, examples};
use crate::device::{Dtype, set_products};
use crate::train::config::COMPUTED;
use crate::train::losses::targets::target_cases;
use crate::{Error, Result};

/// Arguments of `macula bench ops`.
#[derive(Debug, Args)]
#[command(next_help_heading = MODEL, after_help = examples(&[
    "macula bench ops",
    "macula bench ops --device cuda --compute bf16",
]))]
pub struct OpsBenchArgs {
    /// Numbers that the device computes products in: f32 or bf16
    #[arg(long, value_parser = dtype(&COMPUTED), value_name = "TYPE", default_value = "f32")]
    compute: Dtype,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl OpsBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let compute = self.compute.dtype();
        let device = self.run.device.candle()?;
        set_products(&device, compute).map_err(macula_models::Error::from)?;
        let found =
            compare_operations(&device, compute, &target_cases()).map_err(macula_models::Error::from)?;
        let failed = |error: PolarsError| Error::failed("bench ops", error.to_string());
        let settings = serde_json::json!({ "device": self.run.device.to_string(), "compute": self.compute });
        let table = ops_table(&found).map_err(failed)?;
        self.print
            .print(&EvalResult::new("bench_ops", settings, 0, 0, table)?)?;
        match found.iter().find(|op| !op.is_within()) {
            Some(op) => Err(Error::failed(
                op.name.clone(),
                format!(
                    "expected a difference from the CPU of at most {:.1e} ({:.1e} in gradients), found {:.1e} and {:.1e}",
                    op.allowed[0], op.allowed[1], op.output_error, op.gradient_error
                ),
            )),
            None => Ok(()),
        }
    }
}

fn ops_table(found: &[OpComparison]) -> PolarsResult<DataFrame> {
    let column = |of: fn(&OpComparison) -> f64| found.iter().map(of).collect::<Vec<f64>>();
    // Written out: four decimals would show no rounding.
    let error = |of: fn(&OpComparison) -> f64| -> Vec<String> {
        found.iter().map(|op| format!("{:.1e}", of(op))).collect()
    };
    df!(
        "operation" => found.iter().map(|op| op.name.as_str()).collect::<Vec<_>>(),
        "output_error" => error(|op| op.output_error),
        "allowed" => error(|op| op.allowed[0]),
        "gradient_error" => error(|op| op.gradient_error),
        "gradients_allowed" => error(|op| op.allowed[1]),
        "cpu_ms" => column(|op| op.cpu_ms),
        "device_ms" => column(|op| op.device_ms),
    )
}
