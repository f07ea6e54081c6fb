//! `macula bench train`.

use std::sync::Arc;

use clap::Args;

use super::super::args::{ColumnArgs, INPUT, JsonArgs, ReplicaArgs, RunArgs, examples};
use super::super::output;
use super::super::run_folder::look_at;
use crate::data::{self, DecodeOptions};
use crate::train::bench::{StepBench, bench};
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::{Error, Result};

/// Arguments of `macula bench train`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training", after_help = examples(&[
    "macula bench train",
    "macula bench train --geometry b --steps 5 --set compute=bf16",
]))]
pub struct TrainBenchArgs {
    /// Recipe whose step is timed; dinov2-small with the paper's terms
    #[arg(long, value_name = "NAME", default_value = recipes::DEFAULT)]
    recipe: String,
    /// a: ViT d 192, 6 layers, patch 4 at 28 px, 6 locals of 16 px, K 4096, batch 64. b: ViT-S/14 at 56 px, 6 locals of
    /// 28 px, K 65536, batch 64. c: ViT-S/14 at 224 px, 8 locals of 98 px, K 65536, batch 64. d: ViT-B/14, the rest as c
    #[arg(long, value_name = "a, b, c or d", default_value = "a")]
    geometry: String,
    /// Change a field, as in `macula train` [default: none]
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: usize,
    /// Images to train on, as in `macula train`: decoding and crops then run beside the steps [default: none, crops are noise]
    #[arg(long, value_name = "SRC", help_heading = INPUT)]
    data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    replicas: ReplicaArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The geometries by which trainers are compared, beside what [`COMMON`] says of all.
const GEOMETRIES: [(&str, &[&str]); 4] = [
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
        ],
    ),
    (
        "b",
        &[
            "arch=vit-small/14",
            "image_size=56",
            "local_size=28",
            "crops.local.count=6",
            PUBLISHED_HEAD,
        ],
    ),
    (
        "c",
        &[
            "arch=vit-small/14",
            "image_size=224",
            "local_size=98",
            "crops.local.count=8",
            PUBLISHED_HEAD,
        ],
    ),
    (
        "d",
        &[
            "arch=vit-base/14",
            "image_size=224",
            "local_size=98",
            "crops.local.count=8",
            PUBLISHED_HEAD,
        ],
    ),
];

const PUBLISHED_HEAD: &str = "loss.head={hidden=2048, bottleneck=256, prototypes=65536, train_gain=true}";

const COMMON: [&str; 3] = [
    "masks.ratio=[0.3, 0.3]",
    "backbone.layer_scale=1e-5",
    "batch_size=64",
];

/// DINOv2's own terms, which trainers are compared by: `dinov2-small` has others for small grey images.
const PAPER_TERMS: [&str; 4] = [
    "loss.ibot_weight=1",
    "loss.pixel_weight=0",
    "loss.hog_weight=0",
    "backbone.patch_drop_rate=0",
];

/// MoCo v2's projection and queue, whatever the images: two crops, so the geometries' local crops are not its own.
const MOCO_TERMS: [&str; 5] = [
    "crops.local.count=0",
    "backbone.layer_scale=0",
    "loss.info_nce.hidden=2048",
    "loss.info_nce.batch_norm=false",
    "loss.info_nce.queue=65536",
];

impl TrainBenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let (_, settings) = GEOMETRIES
            .iter()
            .find(|(name, _)| *name == self.geometry)
            .ok_or_else(|| {
                let reason = format!("expected a, b, c or d, found `{}`", self.geometry);
                Error::input("--geometry", reason)
            })?;
        let terms = match self.recipe.as_str() {
            recipes::DEFAULT => &PAPER_TERMS[..],
            "moco" => &MOCO_TERMS[..],
            _ => &[],
        };
        let own = settings.iter().chain(&COMMON).chain(terms).copied();
        let overrides = Overrides::of(own.chain(self.set.iter().map(String::as_str)))?;
        let spec = match &self.data {
            Some(data) => self.columns.apply_to(data)?,
            None => "noise".to_owned(),
        };
        let source = match &self.data {
            Some(_) => Some(data::open_shuffled(&spec)?),
            None => None,
        };
        let facts = match &source {
            Some(source) => look_at(source.as_ref(), &DecodeOptions::default())?,
            None => DataFacts {
                images: 60_000,
                side: 28,
                grey: true,
                framed: true,
            },
        };
        let mut base = recipes::recipe(&self.recipe, &spec, &facts)?;
        base.batch_warmup_steps = 0;
        let config = overrides.apply(base, facts.images)?;
        let device = self.run.device.candle()?;
        let copies = self
            .replicas
            .count(&config, rayon::current_num_threads(), &device)?;
        let result = bench(&config, source.map(Arc::from), &device, self.steps, copies)?;
        if self.print.json {
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
                "{:.3} s, {} images, {:.1} images/s, {} threads, copies of the network: {}",
                bench.step_seconds, bench.batch_size, bench.images_per_second, bench.threads, bench.replicas
            ),
        ),
        (
            "waiting for images",
            bench
                .data_wait
                .map_or_else(|| "none: crops of noise".into(), percent),
        ),
        ("teacher forward, targets", percent(bench.teacher)),
        ("student forward, losses", percent(bench.student)),
        ("gradients", percent(bench.backward)),
        ("clip, update, average", percent(bench.update)),
        ("between copies", percent(bench.exchange)),
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
            match bench.cuda_peak_bytes {
                Some(bytes) => format!("{:.0} MB of the GPU's at most, ", bytes as f64 / 1e6),
                None => String::new(),
            } + &format!(
                "{:.0} MB at most, {} trained weights",
                bench.peak_rss_bytes as f64 / 1e6,
                bench.parameters
            ),
        ),
    ]
    .map(|(what, value)| format!("{what:<25} {value}"))
    .join("\n")
}
