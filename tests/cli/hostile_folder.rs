//! A downloaded folder full of traps. Under every name that macula, or a program that it starts, looks for there is a program,
//! a module or a library that leaves a mark when it is run or loaded. Every verb works in that folder, with a path, a
//! `PYTHONPATH` and an `LD_LIBRARY_PATH` that lead into it, and none leaves a mark.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Workspace, names};

/// Programs that are looked for on the path, by macula or by what it starts.
const PROGRAMS: &[&str] = &[
    "python3",
    "python",
    "py",
    "pip",
    "pip3",
    "ffmpeg",
    "ffprobe",
    "nvcc",
    "nvidia-smi",
    "c++",
    "cc",
    "ldconfig",
    "uname",
];
/// Modules that Python would import from its working directory.
const MODULES: &[&str] = &[
    "onnxruntime/__init__.py",
    "pip/__init__.py",
    "pip/__main__.py",
    "pip.py",
    "sitecustomize.py",
    "usercustomize.py",
    "site.py",
    "os.py",
];
/// Libraries that are looked for by name.
const LIBRARIES: &[&str] = &[
    "onnxruntime/capi/libonnxruntime.so.1.99.0",
    "libonnxruntime.so",
    "libonnxruntime.so.1.99.0",
    "libonnxruntime_providers_shared.so",
    "libcuda.so.1",
    "libcuda.so",
    "libcudart.so",
    "libnvidia-ml.so.1",
];

/// What stands for a library where none can be built.
const NO_LIBRARY: &[u8] = b"no library";

const SMALL: &str = "--set steps=2 --set batch_size=4 --set crops.local.count=2 --set backbone.embed_dim=16 --set backbone.depth=1 \
     --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=16 \
     --set loss.head.bottleneck=8 --set loss.head.prototypes=16";
const STUDENT: &str = "--set steps=2 --set batch_size=4 --set backbone.embed_dim=16 --set backbone.depth=1 --set backbone.num_heads=2";
const QUICK: &str = "--iterations 5 --learning-rates 0.01 --val-fraction 0.25 --bootstrap-resamples 10";

/// Every verb, in an order in which each finds what it needs, and how it ends where ONNX Runtime is found (none where that is a
/// matter of the machine's GPU).
fn commands() -> Vec<(String, Option<i32>)> {
    let dense = format!("--model pixels --train-data scenes.csv --test-data scenes.csv {QUICK}");
    let split = "--train f --test f";
    [
        ("doctor".to_owned(), Some(0)),
        ("doctor --json".to_owned(), Some(0)),
        (format!("train --data sample:train --out run {SMALL}"), Some(0)),
        (
            "tune --data sample:train --budget 4s --candidates 2 --recipe dino --out tune --set batch_size=4 --set backbone.depth=1 \
             --set backbone.embed_dim=16 --set backbone.num_heads=2 --set loss.head.hidden=16 --set loss.head.prototypes=16"
                .to_owned(),
            Some(0),
        ),
        (format!("distill --teacher run --data sample:train --out student {STUDENT}"), Some(0)),
        ("export run --out m.onnx --force".to_owned(), Some(0)),
        (
            "export run --out int8.onnx --dtype int8 --calibration sample:train --calibration-images 8 --compared-images 8 \
             --max-drift 1"
                .to_owned(),
            Some(0),
        ),
        ("inspect run".to_owned(), Some(0)),
        ("inspect m.onnx".to_owned(), Some(0)),
        ("extract --model m.onnx --data photos --out onnx".to_owned(), Some(0)),
        ("extract --model run --data photos --out candle".to_owned(), Some(0)),
        ("extract --model m.onnx --data photos --out auto --device auto".to_owned(), Some(0)),
        ("extract --model m.onnx --data photos --out gpu --device cuda".to_owned(), None),
        ("extract --model pixels --data photos --out f --resize 8 --crop 8".to_owned(), Some(0)),
        ("extract --model pixels --data video:clip.mp4 --out frames".to_owned(), Some(2)),
        ("eval knn --model m.onnx --train-data photos --test-data photos --k 1 --out kept".to_owned(), Some(0)),
        (format!("eval knn {split} --k 1 --out k"), Some(0)),
        (format!("eval linear-probe {split} --epochs 1 --val-fraction 0.25"), Some(0)),
        (format!("eval logreg {split} --c 1"), Some(0)),
        ("eval retrieval --features f".to_owned(), Some(0)),
        ("eval cluster --features f".to_owned(), Some(0)),
        ("eval suite nowhere.toml --out suite".to_owned(), Some(2)),
        ("eval svm --train f --test f --n-per-class 1".to_owned(), Some(0)),
        (
            "eval zero-shot --features f --text nowhere.parquet".to_owned(),
            Some(2),
        ),
        (format!("eval segment {dense}"), Some(0)),
        (format!("eval depth --max-depth 5 --bins 16 {dense}"), Some(0)),
        (
            "eval robustness --train-data photos --test-data photos --bootstrap-resamples 10 --model m.onnx --k 1 \
             --corruptions contrast --severities 1"
                .to_owned(),
            Some(0),
        ),
        ("eval compare --a k --b k --k 1".to_owned(), Some(0)),
        ("curate dedup --features f --out dedup".to_owned(), Some(0)),
        ("curate overlap --features f --against f --out overlap".to_owned(), Some(0)),
        ("curate retrieve --features f --seeds f --k 1 --out retrieve".to_owned(), Some(0)),
        ("curate sample --features f --size 2 --method random --out sample".to_owned(), Some(0)),
        ("curate quality --data photos --out quality".to_owned(), Some(0)),
        ("curate run pipeline.toml".to_owned(), Some(0)),
        ("index build --features f --out i".to_owned(), Some(0)),
        ("index query --index i --features f --k 1 --out hits.parquet".to_owned(), Some(0)),
        ("index score --index i --features f --k 1".to_owned(), Some(0)),
        // Opens the model, and ends at what is no index.
        ("serve --model m.onnx --port 0 --index f".to_owned(), Some(2)),
        ("report a=k --out report".to_owned(), Some(0)),
        ("viz pca --model run --data photos --n 2 --foreground all --out pca.png".to_owned(), Some(0)),
        ("viz attention --model run --data photos --rows 0 --out attention.png".to_owned(), Some(0)),
        ("viz neighbours --features f --data photos --rows 0 --k 1 --out n.png".to_owned(), Some(0)),
        ("viz map --features f --out map.png".to_owned(), Some(0)),
        ("bench train --steps 1 --set batch_size=4".to_owned(), Some(0)),
        ("bench extract --model m.onnx --data photos --images 4".to_owned(), Some(0)),
        ("bench ops --device cuda".to_owned(), None),
        ("bench products --device cuda".to_owned(), None),
        ("bench exchange --megabytes 1".to_owned(), Some(0)),
        ("demo --steps 1 --out demo".to_owned(), Some(0)),
        ("runtime install --wheel none.whl".to_owned(), Some(2)),
        ("completions bash".to_owned(), Some(0)),
        ("man pages".to_owned(), Some(0)),
    ]
    .into()
}

/// The folder with its traps; the marks are left elsewhere.
struct Trap {
    space: Workspace,
    marks: tempfile::TempDir,
}

impl Trap {
    fn new() -> Self {
        let trap = Self {
            space: Workspace::new(),
            marks: tempfile::tempdir().unwrap(),
        };
        for name in PROGRAMS {
            // `pip` itself is a package there.
            for folder in ["", "bin/"]
                .iter()
                .filter(|folder| *name != "pip" || !folder.is_empty())
            {
                let script = format!("#!/bin/sh\n: > '{}'\n", trap.mark(name).display());
                let program = trap.space.write(&format!("{folder}{name}"), script);
                fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        for name in MODULES {
            trap.space
                .write(name, format!("open({:?}, 'w')\n", trap.mark(name)));
        }
        let library = trap.library();
        for name in LIBRARIES {
            trap.space.write(name, &library);
        }
        trap.space.write(".python-version", "../../../bin\n");
        trap.space.write(".env", "ORT_DYLIB_PATH=libonnxruntime.so\n");
        trap.space
            .write("macula.toml", "ort_lib = \"libonnxruntime.so\"\n");
        trap.space.write("clip.mp4", "a video");
        trap.space.write(
            "pipeline.toml",
            "features = \"f\"\nout = \"p\"\n[[step]]\nverb = \"dedup\"\n",
        );
        let mut scenes = "image,mask,depth\n".to_owned();
        for i in 0..8 {
            let class = ["cat", "dog"][i % 2];
            trap.space
                .png(&format!("photos/{class}/{i}.png"), 24, 24, 20 * i as u8);
            let mask = image::GrayImage::from_fn(24, 24, |x, _| image::Luma([u8::from(x > 11)]));
            let depth = image::ImageBuffer::from_fn(24, 24, |x, _| image::Luma([1000 + 20 * x as u16]));
            mask.save(trap.space.path(&format!("mask{i}.png"))).unwrap();
            depth.save(trap.space.path(&format!("depth{i}.png"))).unwrap();
            scenes += &format!("photos/{class}/{i}.png,mask{i}.png,depth{i}.png\n");
        }
        trap.space.write("scenes.csv", scenes);
        trap
    }

    /// Has the environment lead into the folder as well.
    fn lead_in(&mut self) {
        let path = std::env::var("PATH").unwrap();
        self.space.variable("PATH", format!(":.:bin:{path}:"));
        self.space.variable("PYTHONPATH", ".");
        self.space.variable("LD_LIBRARY_PATH", ":.");
    }

    /// Has macula look for ONNX Runtime everywhere, which nobody has installed; pip says no at once.
    fn without_library(&mut self, cache: &Path) {
        self.space.variable("MACULA_CACHE", cache);
        self.space.variable("PIP_NO_INDEX", "1");
        self.space.variable("PIP_FIND_LINKS", "");
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.marks.path().join(name.replace('/', "."))
    }

    /// A library whose constructor leaves a mark; without a C compiler, a file that no loader takes, and a word about it.
    fn library(&self) -> Vec<u8> {
        let place = tempfile::tempdir().unwrap();
        let (source, built) = (place.path().join("mark.c"), place.path().join("mark.so"));
        let text = format!(
            "#include <fcntl.h>\n__attribute__((constructor)) static void mark(void) {{ open({:?}, O_CREAT | O_WRONLY, 0644); }}\n",
            self.mark("library")
        );
        fs::write(&source, text).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&built, &source])
            .status();
        if compiled.is_ok_and(|status| status.success()) {
            return fs::read(built).unwrap();
        }
        // Not through the macro, whose output a passing test hides.
        let mut stderr = std::io::stderr();
        writeln!(
            stderr,
            "hostile_folder: no C compiler (cc), so the libraries are files that cannot be loaded: they show what is passed over, \
             not what is loaded"
        )
        .unwrap();
        NO_LIBRARY.to_vec()
    }

    /// Which traps were sprung so far, each by the first command that did.
    fn sprung(&self, command: &str, by: &mut BTreeMap<String, String>) {
        for name in names(self.marks.path()) {
            by.entry(name).or_insert_with(|| command.to_owned());
        }
    }
}

/// Runs every verb; with the exit codes where `whole` says that ONNX Runtime can be found.
fn every_verb(trap: &Trap, whole: bool) {
    let mut by = BTreeMap::new();
    let mut ended = Vec::new();
    for (command, code) in commands() {
        let run = trap.space.macula(&command);
        trap.sprung(&command, &mut by);
        assert!(
            !run.stderr.contains("panicked"),
            "macula {command}\n{}",
            run.stderr
        );
        if let Some(code) = code.filter(|&code| whole && run.code != code) {
            ended.push(format!(
                "macula {command}: {} instead of {code}\n{}",
                run.code, run.stderr
            ));
        }
    }
    assert!(by.is_empty(), "run or loaded from the working directory: {by:#?}");
    assert!(ended.is_empty(), "{}", ended.join("\n"));
}

#[test]
fn no_verb_runs_or_loads_what_lies_in_the_working_directory() {
    let mut trap = Trap::new();
    trap.lead_in();
    every_verb(&trap, true);
}

#[test]
fn nor_does_one_that_looks_for_onnx_runtime_everywhere() {
    let mut trap = Trap::new();
    let cache = tempfile::tempdir().unwrap();
    trap.without_library(cache.path());
    every_verb(&trap, false);
}

#[test]
fn nor_one_that_looks_everywhere_with_an_environment_that_leads_there() {
    let mut trap = Trap::new();
    let cache = tempfile::tempdir().unwrap();
    trap.without_library(cache.path());
    trap.lead_in();
    every_verb(&trap, false);
}

/// The variables that name a library or the folder of libraries by a path from the working directory.
#[test]
fn relative_paths_of_libraries_in_the_environment_are_refused() {
    for (variable, value, words) in [
        (
            "ORT_DYLIB_PATH",
            "./libonnxruntime.so",
            "expected an absolute path",
        ),
        ("ORT_DYLIB_PATH", "onnxruntime/capi", "expected an absolute path"),
        // For the loader, which does not find it: that of this folder is not meant.
        (
            "ORT_DYLIB_PATH",
            "libonnxruntime.so",
            "ORT_DYLIB_PATH libonnxruntime.so",
        ),
        (
            "MACULA_CACHE",
            "cache",
            "expected an absolute path, found `cache`",
        ),
    ] {
        let mut trap = Trap::new();
        let cache = tempfile::tempdir().unwrap();
        trap.without_library(cache.path());
        trap.space.variable(variable, value);
        let run = trap.space.macula("doctor");
        let mut by = BTreeMap::new();
        trap.sprung(value, &mut by);
        assert!(by.is_empty(), "{variable}={value}: {by:?}");
        assert!(run.stdout.contains(words), "{variable}={value}: {}", run.stdout);
    }
}

/// What the user names on the command line is meant: it is loaded, and turns out not to be the library.
#[test]
fn a_library_named_on_the_command_line_is_loaded() {
    let mut trap = Trap::new();
    let cache = tempfile::tempdir().unwrap();
    trap.without_library(cache.path());
    let run = trap.space.macula("doctor --ort-lib libonnxruntime.so");
    let expected = trap.space.path("libonnxruntime.so");
    assert!(
        run.stdout.contains(&expected.display().to_string()),
        "{}",
        run.stdout
    );
    let built = fs::read(&expected).unwrap() != NO_LIBRARY;
    assert_eq!(trap.mark("library").exists(), built, "{}", run.stdout);
}

#[test]
fn the_list_of_verbs_is_whole() {
    let space = Workspace::new();
    let known: Vec<String> = commands().into_iter().map(|(command, _)| command).collect();
    let mut left = vec![String::new()];
    let mut seen = 0;
    while let Some(verb) = left.pop() {
        let help = space.succeeds(&format!("{verb} --help")).stdout;
        let Some((_, listed)) = help.split_once("Commands:\n") else {
            assert!(
                known.iter().any(|command| command.starts_with(verb.trim())),
                "no command for `macula {verb}`"
            );
            seen += 1;
            continue;
        };
        // Further in, a line goes on with the description above it.
        let lines = listed.lines().take_while(|line| line.starts_with("  "));
        let lines = lines.filter(|line| !line.starts_with("   "));
        let verbs = lines.filter_map(|line| line.split_whitespace().next());
        left.extend(
            verbs
                .filter(|&name| name != "help")
                .map(|name| format!("{verb} {name}")),
        );
    }
    assert!(seen > 25, "{seen}");
}
