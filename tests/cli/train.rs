//! `macula train` as a user runs it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Workspace, golden};

/// Settings of a run that takes seconds.
const SMALL: &str = "--set batch_size=8 --set crops.local.count=2 --set backbone.embed_dim=32 --set backbone.depth=2 --set backbone.num_heads=2 \
     --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=32 \
     --set loss.head.bottleneck=16 --set loss.head.prototypes=64 --set monitor.log_every=2";

/// Every file below `folder` but those whose bytes tell the time, by relative path.
fn weights_of(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let teacher = run.join("teacher.safetensors");
    let last = run.join("checkpoints/last");
    ["state.safetensors", "state.json"]
        .map(|name| (name.to_owned(), last.join(name)))
        .into_iter()
        .chain([("teacher".to_owned(), teacher)])
        .map(|(name, path)| {
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (name, bytes)
        })
        .collect()
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect()
}

#[test]
fn a_run_leaves_what_the_contract_names_and_its_teacher_goes_on() {
    let space = Workspace::new();
    space.succeeds(&format!(
        "train --data sample:train --out run --knn-data sample:test --knn-every 6 --set steps=12 {SMALL} \
         --set checkpoints.every=5 --set monitor.curves_every=6 --set monitor.knn.max_images=240"
    ));
    let run = space.path("run");
    for name in [
        "config.toml",
        "env.json",
        "metrics.jsonl",
        "curves.png",
        "teacher.safetensors",
        "checkpoints/last/state.safetensors",
        "checkpoints/best/state.json",
    ] {
        assert!(run.join(name).exists(), "{name}");
    }
    let events = std::fs::read_dir(&run).expect("listed").flatten();
    let events = events.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("events.out.tfevents")
    });
    assert_eq!(events.count(), 1);
    let lines = metrics(&run);
    let last = lines.last().expect("lines");
    assert_eq!(last["step"], 12);
    for key in [
        "loss",
        "loss_dino_global",
        "loss_dino_local",
        "loss_hog",
        "loss_koleo_first",
        "lr",
        "weight_decay",
        "momentum",
        "teacher_temp",
        "grad_norm",
        "images_per_second",
        "data_wait",
        "feature_std",
        "effective_rank",
        "teacher_entropy",
        "prototype_usage",
        "knn_top1",
    ] {
        assert!(last[key].is_number(), "{key}: {last}");
    }
    // The newest two checkpoints and the best: no others.
    let kept = std::fs::read_dir(run.join("checkpoints"))
        .expect("listed")
        .flatten();
    let steps = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-"));
    assert!((2..=3).contains(&steps.count()));

    // A finished run has nothing left to do, and says so.
    let text = space.succeeds("train --out run --resume").stdout;
    assert!(text.contains("finished at step 12"), "{text}");

    let text = space.succeeds("inspect run").stdout;
    assert!(text.contains("28"), "{text}");
    space.succeeds("export run --out run.onnx");
    space.succeeds("extract --model run.onnx --data sample:test --out features");
    // The images keep their 28 pixels: the file says how they are prepared.
    let meta = std::fs::read_to_string(space.path("features/meta.json")).expect("meta");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    assert_eq!(meta["preprocess"]["resize"], 28, "{meta}");
}

/// The step that `checkpoints/best` points to.
fn best_step(run: &Path) -> u64 {
    let state = std::fs::read_to_string(run.join("checkpoints/best/state.json")).expect("a best checkpoint");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    state["step"].as_u64().expect("a step")
}

#[test]
fn without_labels_lidar_or_rankme_chooses_the_best_checkpoint() {
    let space = Workspace::new();
    for (select, key) in [("lidar", "lidar"), ("rankme", "effective_rank")] {
        let settings = format!(
            "train --data sample:train --select {select} --knn-every 2 --set steps=12 {SMALL} \
             --set monitor.label_free.images=32 --set monitor.label_free.views=2"
        );
        space.succeeds(&format!("{settings} --out {select}"));
        let run = space.path(select);
        let readings: Vec<(u64, f64)> = metrics(&run)
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?)))
            .collect();
        assert_eq!(
            readings.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            [2, 4, 6, 8, 10, 12]
        );
        let best = readings
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("readings");
        assert_eq!(best_step(&run), best.0, "{readings:?}");
        let last = metrics(&run).pop().expect("lines");
        for key in ["lidar", "spectrum_decay", "effective_rank", "feature_std"] {
            assert!(last[key].is_number(), "{key}: {last}");
        }
        assert!(last.get("knn_top1").is_none(), "{last}");
    }
    for (arguments, word) in [
        ("--select knn", "--knn-data"),
        ("--knn-every 3", "--select"),
        ("--set checkpoints.select=lidar", "monitor.label_free"),
    ] {
        space.fails(
            2,
            &format!("train --data sample:train --out none {arguments}"),
            &[word],
        );
    }
}

fn start(space: &Workspace, arguments: &str) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(arguments.split_whitespace())
        .current_dir(space.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs")
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_with_a_checkpoint_and_code_0() {
    let space = Workspace::new();
    for signal in ["INT", "TERM"] {
        let mut child = start(
            &space,
            &format!("train --data sample:train --out {signal} --set steps=100000 {SMALL}"),
        );
        let path = space.path(signal).join("metrics.jsonl");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() > 1) {
            assert!(Instant::now() < deadline, "no step in a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.expect("kill runs").success());
        assert_eq!(child.wait().expect("ended").code(), Some(0), "{signal}");
        let last = space.path(signal).join("checkpoints/last/state.json");
        assert!(last.is_file());
        assert!(space.path(signal).join("teacher.safetensors").is_file());
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_its_images() {
    for replicas in [1, 2] {
        let space = Workspace::new();
        stops_at_what_is_not_finite(&space, replicas);
    }
}

fn stops_at_what_is_not_finite(space: &Workspace, replicas: usize) {
    let run = space.macula(&format!(
        "train --data sample:train --out run --set steps=50 {SMALL} --set checkpoints.every=1 \
         --set optimizer.learning_rate=1e30 --set optimizer.warmup_steps=3 --threads 2 --replicas {replicas}"
    ));
    assert_eq!(run.code, 1, "{}", run.stderr);
    let error = run.stderr.lines().last().expect("an error");
    for word in ["error: step", "expected a finite number", "is the last good one"] {
        assert!(error.contains(word), "expected `{word}` in: {error}");
    }
    let record = std::fs::read_dir(space.path("run"))
        .expect("listed")
        .flatten()
        .find(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("not-finite-step-")
        });
    let text = std::fs::read_to_string(record.expect("a record").path()).expect("read");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(record["images"].as_array().expect("images").len(), 8);
    assert!(record["images"][0]["path"].is_string());
    // The checkpoint is whole: resuming reads it, and meets the same end.
    let again = space.macula("train --out run --resume");
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("resuming from step"), "{}", again.stderr);
}

#[test]
fn unreadable_images_are_named_once_and_trained_through() {
    let space = Workspace::new();
    let png = include_bytes!("../fixtures/images/rgb.png");
    for number in 0..38 {
        space.write(&format!("images/{number:02}.png"), png);
    }
    space.write("images/empty.png", b"");
    space.write("images/cut.png", &png[..png.len() / 2]);
    let run = space.succeeds(&format!("train --data images --out run --set steps=12 {SMALL}"));
    for name in ["empty.png", "cut.png"] {
        assert_eq!(run.stderr.matches(name).count(), 1, "{}", run.stderr);
    }
    let errors = std::fs::read_to_string(space.path("run/errors.csv")).expect("errors.csv");
    assert_eq!(errors.lines().count(), 3, "{errors}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let space = Workspace::new();
    let settings = format!("--set steps=6 {SMALL} --set checkpoints.every=3");
    space.succeeds(&format!("train --data sample:train --out run {settings}"));
    let before = weights_of(&space.path("run"));
    // As on a full disk, no file may grow beyond 64 blocks; the signal that would say so is left aside.
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} train --data sample:train --out other {settings}",
        env!("CARGO_BIN_EXE_macula")
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(space.path("."))
        .output()
        .expect("sh runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr
            .lines()
            .last()
            .is_some_and(|line| line.contains("checkpoints")),
        "{stderr}"
    );
    let left: Vec<_> = std::fs::read_dir(space.path("other/checkpoints"))
        .expect("listed")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(weights_of(&space.path("run")) == before);
}

/// What `env.json` says of ranks, and the weights in the end.
fn ranks_and_weights(run: &Path) -> (serde_json::Value, BTreeMap<String, Vec<u8>>) {
    let text = std::fs::read_to_string(run.join("env.json")).expect("env.json");
    let env: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    (env["ranks"].clone(), weights_of(run))
}

#[test]
fn copies_of_the_network_share_the_threads_and_train_as_one() {
    let space = Workspace::new();
    let train = |out: &str, flags: &str| {
        let command = format!(
            "train --data sample:train --out {out} --set steps=4 {SMALL} --set monitor.log_every=1 {flags}"
        );
        space.succeeds(&command);
        let (ranks, weights) = ranks_and_weights(&space.path(out));
        let losses = metrics(&space.path(out))
            .iter()
            .filter_map(|line| line["loss"].as_f64())
            .collect();
        (ranks, weights, losses)
    };
    let (none, _, one): (_, _, Vec<f64>) = train("one", "--threads 2 --replicas 1");
    assert!(none.is_null());
    let (ranks, weights, two) = train("two", "--threads 2 --replicas 2");
    assert_eq!(
        (&ranks["size"], &ranks["library"]),
        (&2.into(), &"threads of one process".into())
    );
    assert_eq!(two.len(), 4);
    for (found, expected) in two.iter().zip(&one) {
        assert!(
            (found - expected).abs() <= 1e-4 * expected,
            "{two:?}, expected {one:?}"
        );
    }
    // Two threads each.
    assert_eq!(train("wide", "--threads 4 --replicas 2").2.len(), 4);
    let (_, same, _) = train("same", "--threads 2 --replicas 2");
    assert_eq!(same, weights);
    // As many as train soonest: of 8 images one, of 32 two on two threads.
    assert!(train("auto", "--threads 2").0.is_null());
    assert_eq!(train("large", "--threads 2 --set batch_size=32").0["size"], 2);
}

#[test]
fn wrong_arguments_are_one_line() {
    let space = Workspace::new();
    space.write(
        "list.toml",
        "recipe = \"dino\"\n[optimizer]\nlearning_rat = 1.0\n",
    );
    space.write("broken.toml", "steps = = 3\n");
    space.write("folder/a.txt", "no run");
    for (arguments, words) in [
        ("train --out run", &["--data"][..]),
        ("train --data nowhere --out run", &["nowhere"]),
        (
            "train --data sample:train --out run --recipe simclr",
            &["--recipe", "dinov2-small", "simclr"],
        ),
        (
            "train --data sample:train --out run --recipe list.toml",
            &["learning_rat"],
        ),
        (
            "train --data sample:train --out run --recipe broken.toml",
            &["broken.toml"],
        ),
        (
            "train --data sample:train --out run --set steps",
            &["--set", "found `steps`"],
        ),
        (
            "train --data sample:train --out run --set steps=0",
            &["steps", "0"],
        ),
        (
            "train --data sample:train --out run --replicas 0",
            &["--replicas", "at least 1, found 0"],
        ),
        (
            "train --data sample:train --out run --threads 2 --replicas 4",
            &["replicas", "each of 2 threads, found 4"],
        ),
        (
            "train --data sample:train --out run --threads 3 --replicas 3 --set batch_size=64",
            &["batch_size", "multiple of the 3 ranks, found 64"],
        ),
        (
            "train --data sample:train --out run --set optimizer.learning_rate=fast",
            &["learning_rate"],
        ),
        (
            "train --data sample:train --out run --device cpu --set data.loader.crops_on=gpu",
            &["data.loader.crops_on", "--device cuda", "found gpu on Cpu"],
        ),
        (
            "train --data sample:train --out run --set backbone.num_heads=5",
            &["backbone.num_heads", "384", "5"],
        ),
        (
            "train --data sample:train --out run --set image_size=30",
            &["image_size", "7", "30"],
        ),
        (
            "train --data sample:train --out run --set crops.local.count=2 --set local_size=15",
            &["crops.local.size", "15"],
        ),
        (
            "train --data sample:train --out run --set crops.global.count=3",
            &["crops.global.count", "3"],
        ),
        (
            "train --data sample:train --out run --set batch_size=6 --set accumulate=4",
            &["accumulate", "6", "4"],
        ),
        (
            "train --data sample:train --out run --set epochs=2 --set steps=3",
            &["epochs"],
        ),
        ("train --data sample:train --out folder", &["folder", "--force"]),
        (
            "train --data sample:train --out folder --force",
            &["folder", "no run folder"],
        ),
        ("train --out folder --resume", &["config.toml"]),
        ("train --data sample:train --out run --from nothing", &["nothing"]),
        ("train --data sample:train --out run --device cuda", &["cuda"]),
        (
            "train --data sample:train --out run --knn-data images",
            &["images"],
        ),
    ] {
        let code = if arguments.contains("cuda") { 1 } else { 2 };
        space.fails(code, arguments, words);
        assert!(
            !space.path("run").exists(),
            "macula {arguments} left a run folder"
        );
    }
}

#[test]
fn a_run_goes_on_from_another_at_a_higher_resolution_and_from_a_backbone() {
    let space = Workspace::new();
    space.succeeds(&format!(
        "train --data sample:train --out low --set steps=4 {SMALL}"
    ));
    space.succeeds("train --data sample:train --out high --from low --set image_size=42 --set steps=2");
    let config = std::fs::read_to_string(space.path("high/config.toml")).expect("config");
    assert!(
        config.contains("steps = 2") && config.contains("size = 42"),
        "{config}"
    );
    let text = space.succeeds("inspect high").stdout;
    assert!(text.contains("42"), "{text}");
    space.succeeds(
        "train --data sample:train --out new-heads --recipe dino --from low/teacher.safetensors --set steps=2 \
         --set batch_size=8 --set image_size=28 --set local_size=14"
    );
}

/// The start of a run that goes on from other weights is its first checkpoint and its first reading.
#[test]
fn a_start_from_elsewhere_is_kept_and_measured() {
    let space = Workspace::new();
    space.succeeds(&format!(
        "train --data sample:train --out first --set steps=3 {SMALL}"
    ));
    let settings =
        "--knn-data sample:test --set checkpoints.keep=9 --set optimizer.lora_rank=4 --set steps=3";
    space.succeeds(&format!(
        "train --data sample:train --out run --from first/teacher.safetensors --recipe dino {settings} \
         --set batch_size=8 --set image_size=28"
    ));
    let lines = std::fs::read_to_string(space.path("run/metrics.jsonl")).expect("metrics");
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().expect("line")).expect("JSON");
    let start = last["knn_top1_start"].as_f64().expect("the start's");
    assert!(start > 0.3 && last["knn_top1"].as_f64().is_some(), "{last}");
    // As if it had been killed in its first steps: its adapters go on from the start, not from initial weights.
    let whole = weights_of(&space.path("run"));
    std::fs::remove_dir_all(space.path("run/checkpoints/step-3")).expect("removed");
    space.succeeds("train --out run --resume");
    assert!(weights_of(&space.path("run")) == whole);
    let lines = std::fs::read_to_string(space.path("run/metrics.jsonl")).expect("metrics");
    assert_eq!(lines.lines().count(), 2, "{lines}");
    space.succeeds("export run --out run.onnx");
    // As if it had been killed before it had kept its start.
    space.succeeds("train --data sample:train --out early --from first --set steps=1");
    std::fs::remove_dir_all(space.path("early/checkpoints")).expect("removed");
    space.fails(
        2,
        "train --out early --resume",
        &["early: expected a checkpoint, found none", "--from"],
    );
    space.fails(
        2,
        &format!("train --data sample:train --out no --set optimizer.lora_rank=4 {SMALL}"),
        &["optimizer.lora_rank", "--from"],
    );
}

/// What DINOv3, CLIP and SigLIP are made of, trained from scratch and gone on from: exported, extracted, resumed.
#[test]
fn other_backbones_are_trained_too() {
    let space = Workspace::new();
    let rotary = "--set arch=vit-tiny/7-reg2-rope --set backbone.ffn_hidden=40";
    let short = "--set checkpoints.every=2 --set checkpoints.keep=9";
    space.succeeds(&format!(
        "train --data sample:train --out run {short} --set steps=4 {SMALL} {rotary}"
    ));
    let config = std::fs::read_to_string(space.path("run/config.toml")).expect("config");
    assert!(config.contains("[backbone.rope]\ntheta = 100.0"), "{config}");
    // As if it had been killed after the checkpoint of step 2.
    let whole = weights_of(&space.path("run"));
    std::fs::remove_dir_all(space.path("run/checkpoints/step-4")).expect("removed");
    space.succeeds("train --out run --resume");
    assert!(weights_of(&space.path("run")) == whole);
    space.succeeds("export run --out run.onnx");
    space.succeeds("extract --model run.onnx --data sample:test --out features");
    space.succeeds("train --data sample:train --out next --from run --set image_size=42 --set steps=1");

    // Patches of 7 pixels behind a convolution of stride 1, of 28 behind two of stride 2.
    for (name, stem) in [
        ("one", "[{channels=6,stride=1}]"),
        (
            "two",
            "[{channels=6,stride=2},{channels=8,stride=2}] --set backbone.patch_size=28 --set local_size=28",
        ),
    ] {
        space.succeeds(&format!(
            "train --data sample:train --out {name} --set steps=2 {SMALL} --set backbone.stem={stem}"
        ));
        let config = std::fs::read_to_string(space.path(name).join("config.toml")).expect("config");
        assert!(config.contains("[[backbone.stem]]\nchannels = 6"), "{config}");
        space.succeeds(&format!("export {name} --out {name}.onnx"));
        space.succeeds(&format!("export {name} --out {name}-f16.onnx --dtype f16"));
        space.succeeds(&format!(
            "extract --model {name}.onnx --data sample:test --out {name}-onnx"
        ));
        space.succeeds(&format!(
            "extract --model {name} --data sample:test --out {name}-candle"
        ));
        space.succeeds(&format!(
            "train --data sample:train --out {name}-next --from {name} --set steps=1"
        ));
    }
    space.fails(
        2,
        "train --data sample:train --out no --set backbone.stem=[{channels=6,stride=2}]",
        &["backbone.stem", "patch size 7", "found 2"],
    );
    space.fails(
        2,
        "train --data sample:train --out no --set backbone.stem=[{channels=0,stride=1}]",
        &["stem.0.channels", "at least 1"],
    );

    let crops = "--set steps=1 --set batch_size=8 --set image_size=16 --set local_size=8";
    for (name, lines) in [
        ("dinov3_hf", &["[backbone.rope]", "layer_norm_eps = 0.00001"][..]),
        (
            "dinov3_timm_gated.safetensors",
            &["[backbone.rope]", "feed_forward = \"swiglu\""],
        ),
        ("clip_hf", &["activation = \"quick-gelu\"", "pre_norm = true"]),
    ] {
        let model = golden("backbones").join(name).display().to_string();
        space.succeeds(&format!(
            "train --data sample:train --out from --force --recipe ibot --from {model} --heads 2 {crops}"
        ));
        let config = std::fs::read_to_string(space.path("from/config.toml")).expect("config");
        for line in lines {
            assert!(config.contains(line), "{name}: {line} in\n{config}");
        }
        space.succeeds("export from --out from.onnx --force");
    }
    let siglip = golden("backbones/siglip_hf").display().to_string();
    space.fails(
        2,
        &format!("train --data sample:train --out no --from {siglip} {crops}"),
        &["--from", "no class token", "it can be a teacher"],
    );
    space.fails(
        2,
        "train --data sample:train --out no --set backbone.rope.theta=100 --set backbone.patch_drop_rate=0.5",
        &["backbone.patch_drop_rate", "rotary positions"],
    );
    space.fails(
        2,
        "train --data sample:train --out no --set backbone.rope.theta=0",
        &["rope.theta", "found 0"],
    );
}

#[test]
fn an_older_run_is_replaced_only_by_one_that_can_begin() {
    let space = Workspace::new();
    let settings = format!("--set steps=2 {SMALL}");
    space.succeeds(&format!("train --data sample:train --out run {settings}"));
    let before = weights_of(&space.path("run"));
    space.fails(
        2,
        &format!("train --data sample:train --out run --force --knn-data nowhere {settings}"),
        &["nowhere"],
    );
    assert!(weights_of(&space.path("run")) == before);
    // Its weights are read before its folder goes.
    space.succeeds("train --data sample:train --out run --force --from run --set steps=3");
    assert!(space.path("run/checkpoints/step-3").is_dir());
    assert!(!space.path("run/checkpoints/step-2").exists());
}

#[test]
fn paths_on_stdin_are_read_once() {
    use std::io::Write as _;
    let space = Workspace::new();
    let paths: String = (0..9)
        .map(|number| {
            let path = space.png(&format!("images/{number}.png"), 28, 28, 20 * number);
            format!("{}\n", path.display())
        })
        .collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(format!("train --data - --out run --set steps=2 {SMALL}").split_whitespace())
        .current_dir(space.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(paths.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(space.path("run/teacher.safetensors").is_file());
}

/// What a flag says is a setting of the run, so that a resumed run and `config.toml` have it.
#[test]
fn flags_of_decoding_are_settings() {
    let space = Workspace::new();
    let settings = |flags: &str| {
        let run = space.succeeds(&format!("train --data sample:test --out run --dry-run {flags}"));
        let config: toml::Table = run.stdout.parse().expect("TOML");
        config["data"]["loader"].as_table().expect("a table").clone()
    };
    let usual = settings("");
    for name in ["exif", "max_pixels", "background"] {
        assert!(!usual.contains_key(name), "{usual:?}");
    }
    let flags = settings("--exif --max-pixels 1000000 --background 255,254,0");
    let set = settings(
        "--set data.loader.exif=true --set data.loader.max_pixels=1000000 --set data.loader.background=[255,254,0]",
    );
    assert_eq!(flags, set);
    assert_eq!(flags["exif"].as_bool(), Some(true));
    assert_eq!(flags["max_pixels"].as_integer(), Some(1_000_000));
    assert_eq!(flags["background"].as_array().map(Vec::len), Some(3));

    for i in 0..4 {
        space.png(&format!("photos/{i}.png"), 40, 40, 10 * i);
    }
    space.succeeds("train --data photos --out run --dry-run --max-pixels 1600");
    space.fails(
        2,
        "train --data photos --out run --max-pixels 1599",
        &["--data", "can be read"],
    );
    space.fails(
        2,
        "train --data photos --out run --set data.loader.max_pixels=0",
        &["max_pixels", "at least 1"],
    );
    for flag in ["--exif", "--max-pixels 9", "--background 0,0,0"] {
        space.fails(
            2,
            &format!("train --out run --resume {flag}"),
            &["--resume", "cannot be used with"],
        );
    }
}
