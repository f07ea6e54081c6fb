//! `macula bench`: how fast this machine is at macula's work.

use candle_core::DType;
use clap::{Args, Subcommand};
use macula_eval::table::EvalResult;
use macula_models::ops::{OpComparison, compare_operations};
use polars::prelude::{DataFrame, PolarsError, PolarsResult, df};

use super::args::RunArgs;
use super::output;
use crate::train::bench::{StepBench, bench};
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::{Error, Result};

/// Arguments of `macula bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Images a second of whole training steps, and where their time goes.
    Train(TrainBenchArgs),
    /// Every operation of training on the device against the CPU's kernels: differences and times.
    Ops(OpsBenchArgs),
}

/// Arguments of `macula bench train`.
#[derive(Debug, Args)]
pub struct TrainBenchArgs {
    /// Recipe whose step is timed
    #[arg(long, value_name = "NAME", default_value = recipes::DEFAULT)]
    recipe: String,
    /// a: ViT d 192, 6 layers, patch 4 at 28 px, 6 locals of 16 px, K 4096, batch 64. b: ViT-S/14 at 56 px, 6 locals of
    /// 28 px, K 65536, batch 64
    #[arg(long, value_name = "a or b", default_value = "a")]
    geometry: String,
    /// Change a field, as in `macula train`
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Steps that are timed
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

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

/// The geometries by which trainers are compared.
const GEOMETRIES: [(&str, &[&str]); 2] = [
    (
        "a",
        &[
            "backbone.embed_dim=192",
            "backbone.depth=6",
            "backbone.num_heads=3",
            "backbone.patch_size=4",
            "image_size=28",
            "local_size=16",
            "crops.local.count=6",
            "loss.head={hidden=2048, bottleneck=256, prototypes=4096, train_gain=true}",
            "masks.ratio=[0.3, 0.3]",
            "backbone.layer_scale=1e-5",
            "batch_size=64",
        ],
    ),
    (
        "b",
        &[
            "arch=vit-small/14",
            "image_size=56",
            "local_size=28",
            "crops.local.count=6",
            "loss.head={hidden=2048, bottleneck=256, prototypes=65536, train_gain=true}",
            "masks.ratio=[0.3, 0.3]",
            "backbone.layer_scale=1e-5",
            "batch_size=64",
        ],
    ),
];

impl BenchArgs {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Train(args) => args.run(),
            What::Ops(args) => args.run(),
        }
    }
}

/// Largest difference that rounding explains, with products in f32 and in bf16.
const MOST: [f64; 2] = [1e-4, 0.1];

impl OpsBenchArgs {
    fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let (compute, most) = match self.compute.as_str() {
            "f32" => (DType::F32, MOST[0]),
            "bf16" => (DType::BF16, MOST[1]),
            other => {
                let reason = format!("expected f32 or bf16, found `{other}`");
                return Err(Error::input("--compute", reason));
            }
        };
        let device = self.run.device.candle()?;
        let found = compare_operations(&device, compute).map_err(macula_models::Error::from)?;
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

impl TrainBenchArgs {
    fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let (_, settings) = GEOMETRIES
            .iter()
            .find(|(name, _)| *name == self.geometry)
            .ok_or_else(|| {
                let reason = format!("expected a or b, found `{}`", self.geometry);
                Error::input("--geometry", reason)
            })?;
        let mut overrides = Overrides::default();
        for setting in settings
            .iter()
            .copied()
            .chain(self.set.iter().map(String::as_str))
        {
            overrides.set(setting)?;
        }
        let facts = DataFacts {
            images: 60_000,
            side: 28,
            grey: true,
        };
        let mut base = recipes::recipe(&self.recipe, "noise", &facts)?;
        if self.recipe == "moco" {
            // Two crops and a queue: the geometry's local crops are not its own.
            overrides.set("crops.local.count=0")?;
        }
        base.batch_warmup_steps = 0;
        let config = overrides.apply(base, facts.images)?;
        let result = bench(&config, &self.run.device.candle()?, self.steps)?;
        if self.json {
            output::print_json(&result)
        } else {
            output::print(&text(&result))
        }
    }
}

fn text(bench: &StepBench) -> String {
    let percent = |share: f64| format!("{:.1} %", 100. * share);
    [
        (
            "step",
            format!(
                "{:.3} s, {} images, {:.1} images/s, {} threads",
                bench.step_seconds, bench.batch_size, bench.images_per_second, bench.threads
            ),
        ),
        ("teacher forward, targets", percent(bench.teacher)),
        ("student forward, losses", percent(bench.student)),
        ("gradients", percent(bench.backward)),
        ("clip, update, average", percent(bench.update)),
        (
            "matrix products",
            format!(
                "{:.1} GFLOP a step, {:.1} GFLOP/s of {:.1} GFLOP/s for one large product: {} of the floor",
                bench.step_gflop,
                bench.gflop_per_second,
                bench.gemm_gflop_per_second,
                percent(bench.share_of_floor)
            ),
        ),
        (
            "memory",
            format!(
                "{:.0} MB at most, {} trained weights",
                bench.peak_rss_bytes as f64 / 1e6,
                bench.parameters
            ),
        ),
    ]
    .map(|(what, value)| format!("{what:<25} {value}"))
    .join("\n")
}
