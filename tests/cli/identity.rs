//! What was computed is known wherever two things meet: models, preprocessing and images that were replaced or renamed, and
//! folders that two runs write at once.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use macula::lock::{FolderLock, LOCK_FILE};

use crate::harness::{Workspace, golden, names};

/// Two classes of small images in a folder, in a format whose files are of one size whatever is in them.
fn photos(w: &Workspace, folder: &str, per_class: usize, shade: u8) {
    for i in 0..per_class {
        w.png(&format!("{folder}/cat/{i}.bmp"), 8, 8, shade + i as u8);
        w.png(&format!("{folder}/dog/{i}.bmp"), 8, 8, shade + 100 + i as u8);
    }
}

/// Puts other images of the same names in place of those of a folder.
fn replace(w: &Workspace, folder: &str, per_class: usize) {
    let before = fs::metadata(w.path(&format!("{folder}/cat/0.bmp")))
        .expect("there")
        .len();
    photos(w, folder, per_class, 50);
    let after = fs::metadata(w.path(&format!("{folder}/cat/0.bmp")))
        .expect("there")
        .len();
    assert_eq!(before, after, "other images of equal sizes are the hard case");
}

fn extract(w: &Workspace, data: &str, out: &str, more: &str) {
    w.succeeds(&format!(
        "extract --model pixels --data {data} --out {out} {more}"
    ));
}

/// Changes the last byte of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(path, bytes).expect("written");
}

/// The lines of stderr that warn.
fn warnings(stderr: &str) -> Vec<&str> {
    stderr
        .lines()
        .filter(|line| line.contains("were made") || line.contains("different"))
        .collect()
}

#[test]
fn extraction_goes_on_with_the_same_images_however_they_are_spelled() {
    let w = Workspace::new();
    photos(&w, "photos", 3, 0);
    extract(&w, "photos", "f", "");
    let whole = w.path("photos").display().to_string();
    for spelled in ["photos/", "./photos", "photos/../photos", &whole] {
        extract(&w, spelled, "f", "--resume");
    }
    fs::rename(w.path("photos"), w.path("moved")).expect("renamed");
    extract(&w, "moved", "f", "--resume");
    let meta = fs::read_to_string(w.path("f/meta.json")).expect("meta");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    assert_eq!(meta["fingerprint"]["source"]["images"], 6);
    assert_eq!(meta["fingerprint"]["preprocess"]["decode"]["exif"], false);
}

#[test]
fn extraction_does_not_go_on_with_other_images_or_options() {
    let w = Workspace::new();
    photos(&w, "photos", 3, 0);
    extract(&w, "photos", "f", "");
    let resume = "extract --model pixels --data photos --out f --resume";
    for (option, field) in [
        ("--exif", "preprocess.decode.exif: expected true, found false"),
        (
            "--max-pixels 1000",
            "preprocess.decode.max_pixels: expected 1000, found 178956970",
        ),
        (
            "--background 1,2,3",
            "preprocess.decode.background: expected [1,2,3], found none",
        ),
        ("--resize 4", "preprocess."),
        (
            "--mean 0.5,0.5,0.5",
            "preprocess.mean: expected [0.5,0.5,0.5], found [0.0,0.0,0.0]",
        ),
    ] {
        w.fails(
            2,
            &format!("{resume} {option}"),
            &["f/meta.json", field, "--force"],
        );
    }
    replace(&w, "photos", 3);
    w.fails(2, resume, &["f/meta.json", "source.samples: expected ", "found "]);
    w.png("photos/cat/2.bmp", 8, 9, 3);
    w.fails(2, resume, &["f/meta.json", "source."]);
    photos(&w, "photos", 3, 0);
    w.succeeds(resume);
    fs::rename(w.path("photos/cat"), w.path("photos/kitten")).expect("renamed");
    w.fails(2, resume, &["f/meta.json", "source.labels: expected "]);
}

#[test]
fn shards_are_of_one_source() {
    let w = Workspace::new();
    photos(&w, "photos", 3, 0);
    extract(&w, "photos", "f", "--shard 0/2");
    extract(&w, "./photos/", "f", "--shard 1/2");
    let whole = w.succeeds("eval knn --train f --test f --k 1 --json").json();
    assert_eq!(whole["n_train"], 6);
    replace(&w, "photos", 3);
    extract(&w, "photos", "f", "--shard 1/2 --force");
    w.fails(
        2,
        "eval knn --train f --test f --k 1",
        &[
            "shard-00001-of-00002/meta.json",
            "than the first shard",
            "source.samples",
        ],
    );
}

#[test]
fn kept_features_are_of_this_model_and_of_these_classes() {
    let w = Workspace::new();
    photos(&w, "train", 3, 0);
    photos(&w, "test", 2, 10);
    fs::copy(golden("official_plain.safetensors"), w.path("m.safetensors")).expect("copied");
    let eval =
        "eval knn --model m.safetensors --heads 3 --train-data train --test-data test --features kept --k 1";
    w.succeeds(eval);
    // A renamed file with the same content is the same model.
    fs::rename(w.path("m.safetensors"), w.path("n.safetensors")).expect("renamed");
    w.succeeds(&eval.replace("m.safetensors", "n.safetensors"));
    fs::rename(w.path("n.safetensors"), w.path("m.safetensors")).expect("renamed");

    fs::rename(w.path("test/cat"), w.path("test/kitten")).expect("renamed");
    w.fails(
        2,
        eval,
        &["kept/test/meta.json", "source.labels: expected ", "--force"],
    );
    fs::rename(w.path("test/kitten"), w.path("test/cat")).expect("renamed");
    w.succeeds(eval);
    flip(&w.path("m.safetensors"));
    w.fails(
        2,
        eval,
        &["kept/train/meta.json", "model.sha256: expected ", "found "],
    );
    w.succeeds(&format!("{eval} --force"));
}

#[test]
fn external_data_is_part_of_an_onnx_model() {
    let w = Workspace::new();
    photos(&w, "photos", 1, 0);
    let official = golden("official_plain.safetensors").display().to_string();
    w.succeeds(&format!(
        "export {official} --heads 3 --external-data-over 1000 --out m.onnx"
    ));
    w.succeeds("extract --model m.onnx --data photos --out f");
    fs::create_dir(w.path("moved")).expect("made");
    let data = names(&w.path(""));
    let data = data
        .iter()
        .find(|name| name.ends_with(".data"))
        .expect("external data");
    for name in ["m.onnx", data] {
        fs::copy(w.path(name), w.path(&format!("moved/{name}"))).expect("copied");
    }
    w.succeeds("extract --model moved/m.onnx --data photos --out f --resume");
    flip(&w.path(data));
    let resume = "extract --model m.onnx --data photos --out f --resume";
    w.fails(2, resume, &["f/meta.json", "model.sha256: expected ", "found "]);
    w.succeeds("extract --model m.onnx --data photos --out g");
    let run = w.succeeds("eval knn --train f --test g --k 1");
    assert!(
        run.stderr.contains("by different models (model.sha256 "),
        "{}",
        run.stderr
    );
    fs::remove_file(w.path(data)).expect("removed");
    w.fails(
        2,
        resume,
        &["m.onnx: external data: expected ", data, "found no such file"],
    );
    w.fails(
        2,
        "distill --teacher m.onnx --data sample:train --out student",
        &["m.onnx: external data: expected ", data, "found no such file"],
    );
}

#[test]
fn a_folder_without_a_fingerprint_is_read_and_goes_on() {
    let w = Workspace::new();
    photos(&w, "photos", 3, 0);
    extract(&w, "photos", "f", "");
    let path = w.path("f/meta.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    meta.as_object_mut()
        .expect("an object")
        .remove("fingerprint")
        .expect("a fingerprint");
    fs::write(&path, meta.to_string()).expect("written");
    extract(&w, "photos", "f", "--resume");
    let after: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    assert!(
        after.get("fingerprint").is_none(),
        "what was not known then is not known now"
    );
    extract(&w, "photos", "g", "");
    let run = w.succeeds("eval knn --train f --test g --k 1");
    assert!(warnings(&run.stderr).is_empty(), "{}", run.stderr);
    w.fails(
        2,
        "extract --model pixels --data photos --out f --resume --resize 4",
        &["f/meta.json", "preprocess."],
    );
}

/// Feature folders `a`, and `b` whose images were decoded otherwise.
fn unlike(w: &Workspace) {
    photos(w, "photos", 4, 0);
    extract(w, "photos", "a", "");
    extract(w, "photos", "b", "--background 255,255,255");
}

#[test]
fn comparing_features_of_different_preprocessing_is_noticed() {
    let w = Workspace::new();
    unlike(&w);
    w.succeeds("index build --features a --out index");
    let commands = [
        "eval knn --train a --test b --k 1",
        "eval logreg --train a --test b --c 1",
        "eval retrieval --query b --database a",
        "eval retrieval --query b --database a --copies --candidates 4",
        "eval retrieval --query a --database a --copies --candidates 4 --training b --whiten",
        "index query --index index --features b --k 1 --out hits.parquet",
        "index score --index index --features b --k 1",
        "curate dedup --features a --against b --out dedup",
        "curate overlap --features a --against b --out overlap",
        "curate retrieve --features a --seeds b --out retrieve",
        "viz neighbours --features a --data photos --query b --query-data photos --k 1 --out n.png",
    ];
    for command in commands {
        let noticed = w.succeeds(command);
        let lines = warnings(&noticed.stderr);
        let field =
            |line: &&str| line.contains("preprocess.decode.background") && line.contains("[255,255,255]");
        assert!(lines.iter().any(field), "{command}: {}", noticed.stderr);
        let fair = command
            .replace(" b ", " a ")
            .replace(" --out ", " --force --out ")
            .replace(" b ", " a ");
        let fair = w.succeeds(&fair);
        assert!(warnings(&fair.stderr).is_empty(), "{command}: {}", fair.stderr);
    }
}

#[test]
fn images_are_those_that_features_were_made_from() {
    let w = Workspace::new();
    photos(&w, "photos", 4, 0);
    extract(&w, "photos", "a", "");
    let draw = "viz neighbours --features a --data photos --k 1 --force --out n.png";
    w.succeeds(draw);
    fs::rename(w.path("photos/cat"), w.path("photos/kitten")).expect("renamed");
    w.fails(
        2,
        draw,
        &["photos: expected the images that a was made from", "cat/0.bmp"],
    );
    fs::rename(w.path("photos/kitten"), w.path("photos/cat")).expect("renamed");
    replace(&w, "photos", 4);
    w.fails(
        2,
        draw,
        &[
            "photos: expected the images that a was made from",
            "source.samples",
        ],
    );
}

#[test]
fn results_of_replaced_images_are_not_compared() {
    let w = Workspace::new();
    photos(&w, "train", 4, 0);
    photos(&w, "test", 3, 20);
    let eval = |w: &Workspace, test: &str, out: &str| {
        w.succeeds(&format!(
            "eval knn --model pixels --train-data train --test-data {test} --features kept-{out} --k 1 --out {out}"
        ));
    };
    eval(&w, "test", "one");
    eval(&w, "./test/", "two");
    let report = |w: &Workspace, others: &str| w.succeeds(&format!("report {others} --json"));
    let same = report(&w, "A=one B=two");
    assert!(warnings(&same.stderr).is_empty(), "{}", same.stderr);
    let same = same.json();
    let columns = |report: &serde_json::Value| {
        let rows = report["rows"].as_array().expect("rows").clone();
        let mut data: Vec<String> = rows.iter().map(|row| row["data"].to_string()).collect();
        data.sort();
        data.dedup();
        data.len()
    };
    assert_eq!(columns(&same), 1, "{same}");
    w.succeeds("eval compare --a one --b two");

    replace(&w, "test", 3);
    eval(&w, "test", "three");
    let other = report(&w, "A=one B=three");
    assert!(
        other
            .stderr
            .contains("speak of different test images (source.samples "),
        "{}",
        other.stderr
    );
    assert_eq!(columns(&other.json()), 2, "{}", other.stdout);
    w.fails(
        2,
        "eval compare --a one --b three",
        &[
            "three/result.json",
            "expected the test images of one",
            "source.samples",
        ],
    );
}

const TINY: &str = "--set steps=4 --set batch_size=4 --set backbone.embed_dim=32 --set backbone.depth=1 \
     --set backbone.num_heads=2 --set backbone.patch_size=4 --set image_size=8 --set local_size=4 \
     --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64 \
     --set backbone.patch_drop_rate=0";

#[test]
fn training_goes_on_with_the_same_images() {
    let w = Workspace::new();
    photos(&w, "photos", 8, 0);
    w.succeeds(&format!("train --data photos --out run {TINY}"));
    assert!(w.path("run/fingerprint.json").is_file());
    w.succeeds("train --out run --resume --data ./photos/");
    fs::rename(w.path("photos"), w.path("moved")).expect("renamed");
    w.succeeds("train --out run --resume --data moved");
    fs::rename(w.path("moved"), w.path("photos")).expect("renamed");
    replace(&w, "photos", 8);
    let words = [
        "run/fingerprint.json",
        "began with other data",
        "source.samples: expected ",
    ];
    w.fails(2, "train --out run --resume", &words);

    // A run begun before there were fingerprints has recorded how many images there were.
    fs::remove_file(w.path("run/fingerprint.json")).expect("removed");
    w.fails(
        2,
        "train --out run --resume --data ./photos",
        &["--data", "the run's own source photos"],
    );
    w.succeeds("train --out run --resume");
    fs::remove_file(w.path("run/fingerprint.json")).expect("removed");
    w.png("photos/cat/more.png", 8, 8, 1);
    w.fails(
        2,
        "train --out run --resume",
        &["run/env.json", "source.images: expected 16, found 17"],
    );
}

#[test]
fn a_distillation_knows_its_teacher_and_its_images() {
    let w = Workspace::new();
    photos(&w, "photos", 8, 0);
    w.succeeds(&format!("train --data photos --out teacher {TINY}"));
    fs::copy(w.path("teacher/teacher.safetensors"), w.path("t.safetensors")).expect("copied");
    let student = "--set steps=2 --set batch_size=4 --set backbone.embed_dim=16 --set backbone.depth=1 \
         --set backbone.num_heads=2 --set image_size=14 --set local_size=7 --set distill.relation_queue=8 --set distill.cache_epochs=1 --set distill.cache=cache";
    let distill = |data: &str, out: &str| {
        w.succeeds(&format!(
            "distill --teacher t.safetensors --data {data} --out {out} {student}"
        ));
        names(&w.path("cache")).len()
    };
    assert_eq!(distill("photos", "s1"), 1);
    assert_eq!(
        distill("./photos/", "s2"),
        1,
        "the same images are in the cache already"
    );
    fs::rename(w.path("t.safetensors"), w.path("u.safetensors")).expect("renamed");
    w.succeeds("distill --out s1 --resume --teacher u.safetensors");
    replace(&w, "photos", 8);
    w.fails(
        2,
        "distill --out s1 --resume --teacher u.safetensors",
        &["s1/fingerprint.json", "source.samples"],
    );
    fs::rename(w.path("u.safetensors"), w.path("t.safetensors")).expect("renamed");
    assert_eq!(
        distill("photos", "s3"),
        2,
        "other images have outputs of their own"
    );
    flip(&w.path("t.safetensors"));
    w.fails(
        2,
        "distill --out s3 --resume",
        &["t.safetensors", "expected the teacher that the run began with"],
    );
}

#[test]
fn a_folder_that_is_being_written_is_refused() {
    let w = Workspace::new();
    photos(&w, "photos", 4, 0);
    extract(&w, "photos", "a", "");
    let cases = [
        ("f", "extract --model pixels --data photos --out f"),
        ("f", "extract --model pixels --data photos --out f --resume"),
        ("f", "extract --model pixels --data photos --out f --force"),
        (
            "kept/train",
            "eval knn --model pixels --train-data photos --test-data photos --features kept --k 1",
        ),
        ("result", "eval knn --train a --test a --k 1 --out result"),
        ("result", "eval cluster --features a --k 2 --out result --force"),
        ("page", "report result --out page --force"),
    ];
    w.succeeds("eval knn --train a --test a --k 1 --out result");
    for (folder, command) in cases {
        let lock = FolderLock::acquire(&w.path(folder)).expect("free");
        w.fails(
            2,
            command,
            &[folder, "another run (process ", "is writing this folder"],
        );
        drop(lock);
    }
    for (folder, command) in [
        ("index", "index build --features a --out index"),
        ("dedup", "curate dedup --features a --out dedup"),
        ("dedup", "curate dedup --features a --out dedup --force"),
    ] {
        let lock = FolderLock::beside(&w.path(folder)).expect("free");
        w.fails(
            2,
            command,
            &[folder, "another run (process ", "is writing this folder"],
        );
        drop(lock);
    }
    let lock = FolderLock::acquire(&w.path("run")).expect("free");
    for force in ["", " --force"] {
        let command = format!("train --data photos --out run {TINY}{force}");
        w.fails(2, &command, &["run", "another run (process "]);
    }
    drop(lock);
    // Another shard of the same folder is another folder.
    let lock = FolderLock::acquire(&w.path("s/shard-00000-of-00002")).expect("free");
    extract(&w, "photos", "s", "--shard 1/2");
    w.fails(
        2,
        "extract --model pixels --data photos --out s --shard 0/2",
        &["shard-00000-of-00002", "another run"],
    );
    drop(lock);
    let left = |folder: &str| {
        names(&w.path(folder))
            .into_iter()
            .any(|name| name.starts_with(LOCK_FILE))
    };
    assert!(!["", "a", "s", "result"].iter().any(|folder| left(folder)));
}

#[test]
fn a_killed_run_leaves_its_folder_to_the_next() {
    let w = Workspace::new();
    photos(&w, "photos", 8, 0);
    let long = TINY.replace("steps=4", "steps=1000000");
    let arguments = format!("train --data photos --out run {long} --set checkpoints.every=2");
    let mut first = Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(arguments.split_whitespace())
        .current_dir(w.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let began = Instant::now();
    while !w.path("run/checkpoints/last").exists() && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let holder = format!("another run (process {}) is writing this folder", first.id());
    for second in [
        format!("--data photos {TINY}"),
        "--resume".to_owned(),
        format!("--data photos --force {TINY}"),
    ] {
        w.fails(2, &format!("train --out run {second}"), &["run", &holder]);
    }
    first.kill().expect("killed");
    first.wait().expect("ended");
    assert!(
        w.path("run").join(LOCK_FILE).is_file(),
        "a kill leaves the file behind"
    );
    w.succeeds(&format!("train --data photos --out run --force {TINY}"));
    assert!(!w.path("run").join(LOCK_FILE).exists());
}
