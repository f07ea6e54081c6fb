//! `macula bench ops`.

use candle_core::DType;
use clap::Args;
use macula_eval::table::EvalResult;
use macula_models::ops::{OpComparison, compare_operations};
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::super::args::RunArgs;
use super::super::output;
use crate::train::losses::targets::target_cases;
use crate::{Error, Result};

/// Arguments of `macula bench ops`.
#[derive(Debug, Args)]
pub struct OpsBenchArgs {
    /// Numbers that the device computes products in: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    compute: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// Largest difference that rounding explains, with products in f32 and in bf16.
const MOST: [f64; 2] = [1e-4, 0.1];

impl OpsBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let compute = super::compute(&self.compute)?;
        let most = match compute {
            DType::F32 => MOST[0],
            _ => MOST[1],
        };
        let device = self.run.device.candle()?;
        let found =
            compare_operations(&device, compute, &target_cases()).map_err(macula_models::Error::from)?;
        let failed = |error: PolarsError| Error::failed("bench ops", error.to_string());
        let settings = serde_json::json!({ "device": self.run.device.to_string(), "compute": self.compute });
        let table = ops_table(&found).map_err(failed)?;
        output::print_result(
            &EvalResult::new("bench_ops", settings, 0, 0, table)?,
            self.json,
            None,
        )?;
        let worst = found
            .iter()
            .map(|op| (op.output_error.max(op.gradient_error), op))
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        match worst {
            Some((error, op)) if error > most => Err(Error::failed(
                op.name.clone(),
                format!("expected a difference of at most {most} from the CPU, found {error}"),
            )),
            _ => Ok(()),
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
        "gradient_error" => error(|op| op.gradient_error),
        "cpu_ms" => column(|op| op.cpu_ms),
        "device_ms" => column(|op| op.device_ms),
    )
}
