//! The whole chain on the bundled sample: a network is trained without labels, exported to ONNX, its features extracted and
//! evaluated by two protocols, in one table beside the same network untrained and raw pixels.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use macula_eval::protocols::{knn, linear_probe};
use macula_eval::table::EvalResult;
use macula_eval::{Split, TrainTest};
use macula_models::onnx::ImageShape;
use macula_models::weights::{self, Checkpoint, LoadOptions};
use polars::prelude::{Column, DataFrame};
use serde_json::json;

use crate::data::{self, DecodeOptions};
use crate::device::{Device, Dtype};
use crate::evaluate::Folders;
use crate::export::{ExportRequest, export, untrained};
use crate::extract::model::{self, ModelOptions, OutputChoice, PreprocessOverrides};
use crate::extract::{BatchSize, ErrorPolicy, ExtractOptions, Layout, extract};
use crate::lock::FolderLock;
use crate::runtime::RuntimeOptions;
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::train::replicas;
use crate::train::run::{self as training, TrainRequest};
use crate::train::start::Start;
use crate::{Error, Result, rng};

/// Marks a folder as a demo's, which a later demo may replace.
const MARKER: &str = "demo.json";
/// Neighbours of the k-NN column.
const K: usize = 20;

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Folder for the model, the features and the table.
    pub out: PathBuf,
    /// Seed of the weights, splits and intervals.
    pub seed: u64,
    /// Where to run.
    pub device: Device,
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Training steps; the demo's own number without.
    pub steps: Option<u64>,
    /// ONNX Runtime library named by the user.
    pub ort_lib: Option<PathBuf>,
}

/// One line of the table.
struct Entry {
    name: &'static str,
    folders: Folders,
    column: &'static str,
}

/// Runs the chain and returns the table.
///
/// # Errors
/// An output folder that is not a demo's, or whatever a step says.
pub fn run(options: &DemoOptions) -> Result<EvalResult> {
    let _lock = start_folder(&options.out)?;
    let step = |text: &str| tracing::info!("{text}");

    step("1/5 train: a ViT on 6,000 images without their labels");
    let run = options.out.join("run");
    train(options, &run)?;
    let trained = weights::load(&run, &LoadOptions::default())?;
    step("2/5 export: the teacher, and the same network untrained, checked against candle");
    let spread = training::saved_config(&run)?.backbone.initial_weights;
    let initial = Checkpoint {
        preprocess: trained.preprocess.clone(),
        ..untrained(trained.config.clone(), spread, options.seed)?
    };
    let trained = export_network(options, &trained, "trained.onnx")?;
    let initial = export_network(options, &initial, "untrained.onnx")?;
    step("3/5 extract: 6,000 train and 1,000 test images through ONNX Runtime");
    let outputs = &["cls", "patch_mean"];
    let pixels = extract_both(options, "pixels", &[], "pixels")?;
    let initial = extract_both(options, &initial.to_string_lossy(), outputs, "untrained")?;
    let trained = extract_both(options, &trained.to_string_lossy(), outputs, "trained")?;
    let entries = [
        ("trained ViT, CLS", &trained, "cls"),
        ("trained ViT, mean patch", &trained, "patch_mean"),
        ("raw pixels", &pixels, "pixels"),
        ("untrained ViT, CLS", &initial, "cls"),
        ("untrained ViT, mean patch", &initial, "patch_mean"),
    ]
    .map(|(name, folders, column)| Entry {
        name,
        folders: folders.clone(),
        column,
    });
    step("4/5 evaluate: k-NN and linear probe, chosen on a split of train, tested once");
    let result = evaluate(options, &entries)?;
    step("5/5 report");
    result.save(&options.out.join("result"))?;
    Ok(result)
}

/// Makes `out` a fresh demo folder; an older demo is replaced, anything else is left alone.
fn start_folder(out: &Path) -> Result<FolderLock> {
    let lock = FolderLock::acquire(out)?;
    if !out.join(MARKER).is_file() && !FolderLock::is_alone_in(out) {
        return Err(Error::input(
            out.display().to_string(),
            "exists and was not made by the demo; choose another folder with --out",
        ));
    }
    crate::files::empty_folder(out, FolderLock::is_lock)?;
    crate::files::write_json(
        &out.join(MARKER),
        &json!({ "tool_version": env!("CARGO_PKG_VERSION") }),
    )?;
    Ok(lock)
}

/// Training steps that two cores take in about two minutes.
pub const STEPS: u64 = 600;

fn train(options: &DemoOptions, run: &Path) -> Result<()> {
    const SOURCE: &str = "sample:train";
    let source = data::open(SOURCE)?;
    let facts = DataFacts {
        images: source.len(),
        side: 28,
        grey: true,
        framed: true,
    };
    let mut overrides = Overrides::default();
    overrides.set(&format!("steps={}", options.steps.unwrap_or(STEPS)))?;
    let mut config = recipes::recipe(recipes::DEFAULT, SOURCE, &facts)?;
    config.seed = options.seed;
    let request = TrainRequest {
        config: overrides.apply(config, facts.images)?,
        source: Arc::from(source),
        out: run.to_owned(),
        replace: false,
        start: Start::Fresh,
        teacher: None,
        device: options.device.candle()?,
        threads: rayon::current_num_threads(),
        until: None,
        stop: Default::default(),
    };
    let copies = replicas::automatic(&request.config, request.threads, &request.device)?;
    let summary = replicas::run(request, copies)?;
    tracing::info!(
        "    {} steps, {:.0} images/s, {:.1} % of the time waiting for data; curves in {}",
        summary.step,
        summary.images_per_second,
        100. * summary.data_wait,
        run.join("curves.png").display()
    );
    Ok(())
}

/// Exports `checkpoint` as `name` at its own size.
fn export_network(options: &DemoOptions, checkpoint: &Checkpoint, name: &str) -> Result<PathBuf> {
    let path = options.out.join(name);
    let side = checkpoint.config.image_size;
    let summary = export(
        checkpoint,
        &ExportRequest {
            image: ImageShape::Fixed {
                height: side,
                width: side,
            },
            outputs: Vec::new(),
            preprocess: match &checkpoint.preprocess {
                // Nobody says what an untrained network needs.
                None => model::imagenet(side as u32, side as u32),
                Some(_) => model::of_checkpoint(
                    Path::new(name),
                    (checkpoint, None),
                    model::Size::Given(side as u32, side as u32),
                    &PreprocessOverrides::default(),
                )?,
            },
            dtype: Dtype::F32,
            quantize: None,
            tolerance: 1e-4,
            seed: options.seed,
            force: false,
            external_data_over: None,
            runtime: RuntimeOptions {
                ort_lib: options.ort_lib.clone(),
                ..RuntimeOptions::default()
            },
            threads: options.threads,
        },
        &path,
    )?;
    let worst = summary.comparisons.iter().map(|c| c.max_rel).fold(0.0, f64::max);
    tracing::info!(
        "    {name}: {} parameters; largest deviation from candle {worst:.1e}",
        summary.parameters
    );
    Ok(path)
}

fn extract_both(options: &DemoOptions, spec: &str, outputs: &[&str], name: &str) -> Result<Folders> {
    let model_options = ModelOptions {
        outputs: OutputChoice::named(outputs),
        preprocess: PreprocessOverrides::default(),
        device: options.device,
        compute: Dtype::F32,
        threads: options.threads,
        ort_lib: options.ort_lib.clone(),
        checkpoint: Default::default(),
    };
    let extract_options = ExtractOptions {
        batch_size: BatchSize::Fixed(64),
        on_error: ErrorPolicy::Fail,
        shard: None,
        force: false,
        resume: false,
        layout: Layout::Parquet,
        dtype: Dtype::F32,
        decode: DecodeOptions::default(),
        fast_decode: false,
    };
    let base = options.out.join("features").join(name);
    for split in ["train", "test"] {
        let source = data::open(&format!("sample:{split}"))?;
        let mut opened = model::open(spec, source.as_ref(), &model_options)?;
        extract(
            source.as_ref(),
            opened.model.as_mut(),
            &opened.preprocess,
            &extract_options,
            &base.join(split),
        )?;
    }
    Ok(Folders {
        train: base.join("train"),
        test: base.join("test"),
    })
}

fn evaluate(options: &DemoOptions, entries: &[Entry]) -> Result<EvalResult> {
    let knn_config = knn::KnnConfig {
        ks: vec![K],
        seed: rng::derived_seed(options.seed, "knn"),
        ..knn::KnnConfig::default()
    };
    let probe_config = linear_probe::LinearProbeConfig {
        seed: rng::derived_seed(options.seed, "linear-probe"),
        ..linear_probe::LinearProbeConfig::default()
    };
    let (mut n_train, mut n_test) = (0, 0);
    let mut numbers: Vec<[f64; 6]> = Vec::new();
    for entry in entries {
        let pair = entry.folders.open()?.labelled(entry.column, false)?;
        (n_train, n_test) = (pair.train_labels.len(), pair.test_labels.len());
        let neighbours = knn::evaluate(&pair.data(), &knn_config)?;
        let [train, test] = [pair.train, pair.test].map(|matrix| linear_probe::ProbeFeatures {
            cls_blocks: vec![matrix],
            patch_mean: None,
        });
        let data = TrainTest {
            train: Split::new(&train, &pair.train_labels),
            test: Split::new(&test, &pair.test_labels),
            n_classes: pair.n_classes,
        };
        let probe = linear_probe::evaluate(&data, &probe_config)?;
        let knn = &neighbours.rows[0];
        let probe = probe.rows[0]
            .test
            .ok_or_else(|| Error::failed("linear probe", "the chosen head has no test score"))?;
        numbers.push([
            knn.top1,
            knn.top1_low,
            knn.top1_high,
            probe.top1,
            probe.top1_low,
            probe.top1_high,
        ]);
    }
    let column = |name: &str, index: usize| {
        Column::new(
            name.into(),
            numbers.iter().map(|row| row[index]).collect::<Vec<f64>>(),
        )
    };
    let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
    let table = DataFrame::new(
        entries.len(),
        vec![
            Column::new("features".into(), names),
            column("knn_top1", 0),
            column("knn_low", 1),
            column("knn_high", 2),
            column("probe_top1", 3),
            column("probe_low", 4),
            column("probe_high", 5),
        ],
    )
    .map_err(|e| Error::failed("table", e.to_string()))?;
    let settings = json!({ "k": K, "seed": options.seed, "data": "sample (Fashion-MNIST)" });
    Ok(EvalResult::new("demo", settings, n_train, n_test, table)?)
}
