//! The kinds of input that macula reads: how each is read through the library, and the commands that read it as a user would.

use std::path::Path;

use macula::data::samples::read_samples;
use macula::data::{DecodeOptions, Source};
use macula::evaluate::text::TextOf;
use macula::extract::FeatureFolder;
use macula::index::OpenIndex;
use macula::report::{Report, ReportOptions};
use macula::train::checkpoint::Checkpoints;
use macula::train::distillation::cache::TeacherCache;
use macula::train::recipes::{DataFacts, Overrides};
use macula::{curate, data, evaluate, results, tables, train};
use macula_eval::stats::BootstrapConfig;
use macula_models::weights::LoadOptions;
use macula_models::{onnx, weights};

use super::tree::{self, Files};

/// What reading gave: nothing wrong, or one line.
pub type Answer = Result<(), String>;

/// A kind of input.
pub struct Kind {
    /// Its name, and that of the folder of its seeds.
    pub name: &'static str,
    /// Reads the input in a folder; the number decides among options.
    pub read: Option<fn(&Path, u64) -> Answer>,
    /// Commands over `case`, the folder of the input; they write below `out` and read `common`.
    pub commands: &'static [&'static str],
    /// Whether the words of an error must name a file of the input.
    pub names_file: bool,
    /// Files that are edited.
    pub may_change: fn(&str) -> bool,
    /// Whether files may vanish, be exchanged and renamed.
    pub whole_folder: bool,
    /// Whether the commands may be run: a file that says where to write must not say a place outside.
    pub may_run: fn(&Files) -> bool,
}

const ANY: fn(&str) -> bool = |_| true;
const ALWAYS: fn(&Files) -> bool = |_| true;

/// An image, which is read from bytes.
const fn image(name: &'static str, commands: &'static [&'static str]) -> Kind {
    Kind {
        name,
        read: Some(decode),
        commands,
        names_file: false,
        may_change: ANY,
        whole_folder: false,
        may_run: ALWAYS,
    }
}

/// One file that is read by its path; its neighbours stay as they are.
const fn file(
    name: &'static str,
    read: fn(&Path, u64) -> Answer,
    commands: &'static [&'static str],
    of: fn(&str) -> bool,
) -> Kind {
    Kind {
        name,
        read: Some(read),
        commands,
        names_file: true,
        may_change: of,
        whole_folder: false,
        may_run: ALWAYS,
    }
}

/// A folder that is read as a whole.
const fn folder(
    name: &'static str,
    read: fn(&Path, u64) -> Answer,
    commands: &'static [&'static str],
) -> Kind {
    Kind {
        name,
        read: Some(read),
        commands,
        names_file: true,
        may_change: ANY,
        whole_folder: true,
        may_run: ALWAYS,
    }
}

const EXTRACT_FOLDER: &str = "extract --model pixels --crop 8 --data case --out out/f";
const EXTRACT_SKIPPING: &str =
    "extract --model pixels --crop 8 --data case --out out/f --on-error skip --background 9,9,9";

/// All kinds.
pub static KINDS: &[Kind] = &[
    image("image-jpeg", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-png", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-webp", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-gif", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-bmp", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-tiff", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    image("image-pnm", &[EXTRACT_FOLDER, EXTRACT_SKIPPING]),
    Kind {
        may_change: |name| name.starts_with("mask") || name.starts_with("depth"),
        names_file: false,
        ..file(
            "mask-and-depth",
            samples,
            &[
                "eval segment --model pixels --cell 4 --train-data case/list.csv --test-data case/list.csv --iterations 2 --learning-rates 0.1 --bootstrap-resamples 10",
                "eval depth --model pixels --cell 4 --train-data case/list.csv --test-data case/list.csv --iterations 2 --learning-rates 0.1 --bootstrap-resamples 10",
            ],
            ANY,
        )
    },
    folder(
        "image-folder",
        |path, _| source(&path.display().to_string()),
        &[EXTRACT_FOLDER, EXTRACT_SKIPPING],
    ),
    file(
        "list-csv",
        |path, _| table(&path.join("list.csv")),
        &[
            "extract --model pixels --crop 8 --data case/list.csv --out out/f --on-error null",
            "curate quality --data case/list.csv --out out/q",
        ],
        |name| name == "list.csv",
    ),
    file(
        "list-parquet",
        |path, _| table(&path.join("list.parquet")),
        &["extract --model pixels --crop 8 --data case/list.parquet --out out/f --on-error null"],
        |name| name == "list.parquet",
    ),
    file(
        "parquet-images",
        |path, _| source(&path.join("images.parquet").display().to_string()),
        &["extract --model pixels --crop 8 --data case/images.parquet --out out/f --on-error skip"],
        ANY,
    ),
    file(
        "texts",
        |path, _| texts(&path.join("text.parquet")),
        &[
            "eval zero-shot --features common/features --text case/text.parquet --allow-unknown-labels --bootstrap-resamples 10",
            "eval retrieval --features common/features --text case/text.parquet --bootstrap-resamples 10",
        ],
        ANY,
    ),
    file(
        "tar",
        |path, _| source(&path.join("images.tar").display().to_string()),
        &["extract --model pixels --crop 8 --data case/images.tar --out out/f --on-error skip"],
        ANY,
    ),
    file(
        "tar-gzip",
        |path, _| source(&path.join("images.tar.gz").display().to_string()),
        &["extract --model pixels --crop 8 --data case/images.tar.gz --out out/f --on-error skip"],
        ANY,
    ),
    folder(
        "idx",
        |path, _| source(&format!("idx:{}#train", path.display())),
        &["extract --model pixels --data idx:case#train --out out/f"],
    ),
    folder(
        "layout-voc",
        |path, _| source(&format!("voc:{}#train", path.display())),
        &["extract --model pixels --crop 8 --data voc:case#train --out out/f"],
    ),
    folder(
        "layout-ade20k",
        |path, _| source(&format!("ade20k:{}#train", path.display())),
        &["extract --model pixels --crop 8 --data ade20k:case#train --out out/f"],
    ),
    folder(
        "layout-nyu",
        |path, _| source(&format!("nyu:{}#train", path.display())),
        &["extract --model pixels --crop 8 --data nyu:case#train --out out/f"],
    ),
    Kind {
        read: None,
        names_file: false,
        ..file(
            "paths-on-stdin",
            table_never,
            &["extract --model pixels --crop 8 --data - --out out/f < case/paths.txt"],
            |name| name == "paths.txt",
        )
    },
    folder(
        "features",
        features,
        &[
            "eval knn --train case --test common/features --k 1 --bootstrap-resamples 10",
            "eval logreg --train common/features --test case --c 1 --bootstrap-resamples 10",
            "inspect case",
            "index build --features case --out out/i",
            "curate dedup --features case --out out/d",
            "eval cluster --features case --k 2",
        ],
    ),
    folder(
        "index",
        index,
        &[
            "index query --index case --features common/features --k 2 --out out/hits.parquet",
            "index score --index case --features common/features --k 2",
        ],
    ),
    folder(
        "results",
        results,
        &[
            "report case",
            "report case --out out/r",
            "eval compare --a case/one --b case/two --k 1",
        ],
    ),
    folder(
        "curation",
        curation,
        &[
            "curate sample --features common/features --list case/list.parquet --size 2 --levels 2 --out out/s",
            "extract --model pixels --crop 8 --data case/list.parquet --out out/f --on-error skip",
        ],
    ),
    Kind {
        may_run: writes_below_out,
        ..file(
            "pipeline",
            |path, _| one_line(curate::Pipeline::read(&path.join("pipeline.toml")).map(drop)),
            &["curate run case/pipeline.toml"],
            ANY,
        )
    },
    file(
        "recipe",
        recipe,
        &["train --data common/images --out out/run --recipe case/recipe.toml --dry-run"],
        ANY,
    ),
    Kind {
        may_change: |name| !name.ends_with("config.toml"),
        ..folder(
            "run",
            run,
            &[
                "train --resume --out case",
                "inspect case",
                "extract --model case --data common/images --out out/f",
                "export case --out out/m.onnx",
            ],
        )
    },
    Kind {
        may_change: |name| name.ends_with("config.toml"),
        ..folder(
            "run-config",
            run_config,
            &[
                "inspect case",
                "train --resume --out case --dry-run",
                "distill --teacher case --data common/images --out out/d --dry-run",
            ],
        )
    },
    folder("teacher-cache", teacher_cache, &[]),
    file(
        "checkpoint-safetensors",
        |path, _| checkpoint(&path.join("w.safetensors")),
        &[
            "inspect case/w.safetensors",
            "extract --model case/w.safetensors --data common/images --out out/f",
        ],
        ANY,
    ),
    file(
        "checkpoint-pth",
        |path, _| checkpoint(&path.join("w.pth")),
        &[
            "inspect case/w.pth",
            "extract --model case/w.pth --data common/images --out out/f",
        ],
        ANY,
    ),
    file(
        "checkpoint-legacy",
        |path, _| checkpoint(&path.join("w.pth")),
        &["inspect case/w.pth"],
        ANY,
    ),
    folder(
        "checkpoint-folder",
        |path, _| checkpoint(path),
        &[
            "inspect case",
            "extract --model case --data common/images --out out/f",
        ],
    ),
    folder(
        "onnx",
        describe_onnx,
        &[
            "inspect case/m.onnx",
            "extract --model case/m.onnx --data common/images --out out/f --crop 8",
        ],
    ),
];

/// The kind of a name.
pub fn named(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

fn one_line<E: std::fmt::Display>(result: Result<(), E>) -> Answer {
    result.map_err(|error| error.to_string())
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whether a pipeline writes where its seed does.
fn writes_below_out(files: &Files) -> bool {
    let text = files
        .get("pipeline.toml")
        .and_then(Option::as_deref)
        .unwrap_or_default();
    text.starts_with(b"out = \"out/p\"\n")
        && tree::find(&text[1..], b"out").is_none_or(|place| text[place + 1..].starts_with(b"out/p\""))
}

/// The first file of a folder.
fn first_file(folder: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::read_dir(folder)?.flatten().next() {
        Some(entry) => std::fs::read(entry.path()),
        None => Ok(Vec::new()),
    }
}

/// Options of every kind; most inputs may have 4 million pixels, a few as many as a user's.
fn decode_options(choice: u64) -> DecodeOptions {
    let defaults = DecodeOptions::default();
    DecodeOptions {
        exif: choice & 1 == 1,
        max_pixels: if choice.is_multiple_of(16) {
            defaults.max_pixels
        } else {
            1 << 22
        },
        background: (choice & 2 == 2).then_some([9, 130, 255]),
        jpeg_shorter_side: (choice & 12 == 12).then_some(8),
        ..defaults
    }
}

fn decode(path: &Path, choice: u64) -> Answer {
    let bytes = first_file(path).map_err(said)?;
    data::decode(&bytes, &decode_options(choice))
        .map(drop)
        .map_err(said)
}

fn samples(path: &Path, choice: u64) -> Answer {
    let name = if choice & 1 == 0 {
        "mask0.png"
    } else {
        "depth0.png"
    };
    let bytes = std::fs::read(path.join(name)).map_err(said)?;
    read_samples(&bytes, 1 << 22).map(drop)
}

/// Opens a source, and reads its first rows and the last.
fn source(spec: &str) -> Answer {
    rows_of(data::open(spec).map_err(said)?.as_ref())
}

fn rows_of(source: &dyn Source) -> Answer {
    let rows = (0..source.len().min(6)).chain([source.len() - 1]);
    let options = DecodeOptions {
        max_pixels: 1 << 22,
        ..DecodeOptions::default()
    };
    let _ = source.describe();
    let mut answer = Ok(());
    for row in rows {
        let _ = (source.record(row), source.file(row));
        let loaded = source.load(row, &options).map(drop).map_err(said);
        answer = answer.and(loaded);
    }
    answer
}

/// A list, as a source and, where it is Parquet, as a table of ours.
fn table(path: &Path) -> Answer {
    let whole = match path.extension().is_some_and(|extension| extension == "parquet") {
        true => tables::read_own(path, None).map(drop).map_err(said),
        false => Ok(()),
    };
    source(&path.display().to_string()).and(whole)
}

fn table_never(_: &Path, _: u64) -> Answer {
    Ok(())
}

fn features(path: &Path, choice: u64) -> Answer {
    let folder = FeatureFolder::open(path).map_err(said)?;
    let names: Vec<String> = folder
        .meta()
        .outputs
        .iter()
        .map(|output| output.name.clone())
        .collect();
    for name in &names {
        folder.read(name).map_err(said)?;
    }
    if choice & 7 == 0
        && let Some(name) = names.first()
    {
        evaluate::read_labelled(&folder, name).map_err(said)?;
    }
    Ok(())
}

/// Width of the features that the seeds are made of.
pub const WIDTH: usize = 48;

fn index(path: &Path, _: u64) -> Answer {
    let index = OpenIndex::open(path, WIDTH).map_err(said)?;
    let queries: Vec<f32> = (0..2 * WIDTH).map(|i| (i % 7) as f32 - 3.).collect();
    let queries = macula_eval::Matrix::new(queries, 2, WIDTH).map_err(said)?;
    let hits = index
        .index
        .search(queries.view(), 3, index.ef(None, 3))
        .map_err(said)?;
    for hit in hits.iter().flatten() {
        // What a caller does with a hit.
        let row = hit.row as usize;
        let _ = (index.rows[row], &index.paths[row], &index.labels[row]);
    }
    Ok(())
}

fn results(path: &Path, choice: u64) -> Answer {
    let bootstrap = BootstrapConfig {
        resamples: 10,
        ..BootstrapConfig::default()
    };
    if choice & 3 == 0 {
        let compared =
            results::compare(&path.join("one"), &path.join("two"), Some(1), &bootstrap).map_err(said)?;
        return one_line(compared.to_text().map(drop));
    }
    let options = ReportOptions {
        bootstrap,
        baseline: (choice & 1 == 1).then(|| "one".to_owned()),
        ..ReportOptions::default()
    };
    let specs = ["one", "two"].map(|name| format!("{name}={}", path.join(name).display()));
    let report = Report::build(&specs, &options).map_err(said)?;
    let _ = (
        report.to_text(),
        report.to_markdown(),
        report.to_latex(),
        report.to_html(),
    );
    report.to_csv().map_err(said)?;
    one_line(report.to_json().map(drop))
}

fn curation(path: &Path, _: u64) -> Answer {
    table(&path.join("list.parquet"))
}

/// Texts of classes, or of images.
fn texts(path: &Path) -> Answer {
    let read = |of| evaluate::text::Texts::read(path, of).map(drop);
    read(TextOf::Class).or_else(|_| read(TextOf::Image)).map_err(said)
}

const FACTS: DataFacts = DataFacts {
    images: 100,
    side: 28,
    grey: false,
    framed: false,
};

fn recipe(path: &Path, _: u64) -> Answer {
    let (overrides, base) = Overrides::from_file(&path.join("recipe.toml")).map_err(said)?;
    let named = |error| said(overrides.named(error));
    let base = base.as_deref().unwrap_or("dinov2-small");
    let base = train::recipes::recipe(base, "common/images", &FACTS).map_err(named)?;
    let config = overrides.apply(base, FACTS.images).map_err(said)?;
    // What a run derives from its settings first.
    let _ = (
        config.vit().map_err(named)?,
        config.grid().map_err(named)?,
        config.batch_plan().map_err(named)?,
    );
    Ok(())
}

fn run(path: &Path, _: u64) -> Answer {
    train::run::saved_config(path).map_err(said)?;
    Checkpoints::in_folder(path).load_last().map_err(said)?;
    checkpoint(path)
}

fn run_config(path: &Path, _: u64) -> Answer {
    let config = train::run::saved_config(path).map_err(said)?;
    let _ = (
        config.vit().map_err(said)?,
        config.grid().map_err(said)?,
        config.batch_plan().map_err(said)?,
    );
    Ok(())
}

/// What the seeds of the teacher's cache are kept under.
pub fn cache_key() -> serde_json::Value {
    serde_json::json!({ "teacher": "soak" })
}

fn teacher_cache(path: &Path, _: u64) -> Answer {
    let mut cache = TeacherCache::open(path, &cache_key(), 6, 8, 1.).map_err(said)?;
    for row in 0..4 {
        let _ = (cache.get(row, 0), cache.get(row, 1));
    }
    Ok(())
}

fn checkpoint(path: &Path) -> Answer {
    let mut raw = weights::read_tensors(path).map_err(said)?;
    let names: Vec<String> = raw.tensors.keys().cloned().collect();
    for name in names {
        raw.read(&name).map_err(said)?;
    }
    weights::load(path, &LoadOptions::default())
        .map(drop)
        .map_err(said)
}

fn describe_onnx(path: &Path, _: u64) -> Answer {
    onnx::describe(&path.join("m.onnx")).map(drop).map_err(said)
}
