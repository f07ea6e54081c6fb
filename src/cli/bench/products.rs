//! `macula bench products`.

use clap::Args;
use macula_eval::table::EvalResult;
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::super::args::{JsonArgs, MODEL, RunArgs, dtype, examples};
use crate::device::{Dtype, set_products};
use crate::train::config::COMPUTED;
use crate::train::product_rates::{GPU_SIZES, ProductRate, SIZES, product_rate};
use crate::{Error, Result};

/// Arguments of `macula bench products`.
#[derive(Debug, Args)]
#[command(next_help_heading = MODEL, after_help = examples(&[
    "macula bench products",
    "macula bench products --compute bf16 --threads 1",
]))]
pub struct ProductsBenchArgs {
    /// What factors are rounded to: f32 or bf16
    #[arg(long, value_parser = dtype(&COMPUTED), value_name = "TYPE", default_value = "f32")]
    compute: Dtype,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl ProductsBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let compute = self.compute.dtype();
        let device = self.run.device.candle()?;
        set_products(&device, compute).map_err(macula_models::Error::from)?;
        let large = GPU_SIZES.into_iter().filter(|_| !device.is_cpu());
        let rates: Vec<ProductRate> = SIZES
            .into_iter()
            .chain(large)
            .map(|size| product_rate(size, compute, &device))
            .collect::<candle_core::Result<_>>()
            .map_err(macula_models::Error::from)?;
        let settings = serde_json::json!({ "device": self.run.device.to_string(), "compute": self.compute });
        let failed = |error: PolarsError| Error::failed("bench products", error.to_string());
        let table = products_table(&rates).map_err(failed)?;
        let result = EvalResult::new("bench_products", settings, 0, 0, table)?;
        self.print.print(&result)
    }
}

fn products_table(rates: &[ProductRate]) -> PolarsResult<DataFrame> {
    let size = |index: usize| {
        rates
            .iter()
            .map(|rate| rate.size[index] as u64)
            .collect::<Vec<_>>()
    };
    let rate = |of: fn(&ProductRate) -> f64| rates.iter().map(of).collect::<Vec<_>>();
    df!(
        "rows" => size(0),
        "outputs" => size(1),
        "inputs" => size(2),
        "forward_gflops" => rate(|rate| rate.forward),
        "input_gradient_gflops" => rate(|rate| rate.input_gradient),
        "weight_gradient_gflops" => rate(|rate| rate.weight_gradient),
    )
}
