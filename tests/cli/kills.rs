//! Runs that are killed while they work, at random moments, and resumed: what they leave is what a run that was not killed leaves.
//!
//! The moments come from a seed that a failure prints; `MACULA_KILL_SEED` sets it.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Workspace, names};

/// Kills that each kind of run survives.
const KILLS: usize = 3;
/// Starts after which a run that is not killed often enough counts as a failure of this test.
const STARTS: usize = 30;
const SIGKILL: i32 = 9;
/// Folder for a distillation's cache.
const CACHE: &str = "cache";

/// Settings of a run that takes a second or two.
const SMALL: &str = "--set batch_size=8 --set backbone.embed_dim=32 --set backbone.depth=2 --set backbone.num_heads=2 \
     --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=32 \
     --set loss.head.bottleneck=16 --set loss.head.prototypes=64 --set loss.hog_hidden=16 --set loss.words.hidden=16 --set backbone.drop_path_rate=0.3 \
     --set monitor.log_every=2 --set checkpoints.every=3";

/// A kind of run: how it starts, how it goes on, and what is left of it.
struct Kind<'a> {
    /// Arguments, without the folder.
    start: &'a str,
    /// Arguments to go on, likewise.
    resume: &'a str,
    /// Whether it has left what a killed run can go on from.
    begun: fn(&Path) -> bool,
    /// What has to be the same, by name.
    left: fn(&Path) -> BTreeMap<String, Vec<u8>>,
}

/// Runs `kind` to its end, once undisturbed and once killed [`KILLS`] times, at least once after it has begun, and compares.
fn survives(space: &Workspace, kind: &Kind) {
    let seed = std::env::var("MACULA_KILL_SEED").map_or_else(
        |_| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.expect("a clock").as_nanos() as u64
        },
        |text| text.parse().expect("MACULA_KILL_SEED is a number"),
    );
    let context = format!("MACULA_KILL_SEED={seed}, {}", kind.start);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);

    let begin = Instant::now();
    space.succeeds(&format!("{} --out whole", kind.start));
    let mut max = begin.elapsed();
    // What the undisturbed run has put aside would help the other one.
    let cache = space.path(CACHE);
    if cache.exists() {
        std::fs::remove_dir_all(&cache).expect("removed");
    }

    let out = space.path("killed");
    let (mut kills, mut hits) = (0, 0);
    for start in 0.. {
        assert!(
            start < STARTS,
            "{context}: {kills} kills in {start} starts, {hits} of them in the middle"
        );
        let arguments = match out.exists() {
            true => kind.resume,
            false => kind.start,
        };
        let mut child = spawn(space, &format!("{arguments} --out killed"));
        if kills + 1 == KILLS && hits == 0 {
            // All the others came before it had anything to lose: on a fast machine it is at work for a small part of its time.
            let working = || !(kind.begun)(&out) && matches!(child.try_wait(), Ok(None));
            wait_while(working);
            std::thread::sleep(max.mul_f64(rng.random_range(0.0..0.1)));
        } else {
            std::thread::sleep(max.mul_f64(rng.random_range(0.1..0.9)));
        }
        child.kill().expect("a signal is sent");
        let status = child.wait().expect("ended");
        if status.signal() == Some(SIGKILL) {
            kills += 1;
            hits += usize::from((kind.begun)(&out));
            if kills >= KILLS && hits > 0 {
                break;
            }
            continue;
        }
        // It was faster. So that kills meet a live one, it begins again, and is given less time; one killed before it made a
        // folder has nothing to resume, and begins again too.
        let text = errors(space, &format!("{arguments} --out killed"), status.success());
        let nothing_there = ["config.toml", "meta.json"]
            .iter()
            .any(|name| text.contains(name));
        assert!(status.success() || nothing_there, "{context}: {status}: {text}");
        if out.exists() {
            std::fs::remove_dir_all(&out).expect("removed");
        }
        (kills, hits, max) = (0, 0, max.mul_f64(0.7));
    }
    space.succeeds(&format!("{} --out killed", kind.resume));
    let (whole, killed) = ((kind.left)(&space.path("whole")), (kind.left)(&out));
    let found: Vec<&String> = killed.keys().collect();
    assert_eq!(found, whole.keys().collect::<Vec<_>>(), "{context}");
    for (name, bytes) in &whole {
        assert!(*bytes == killed[name], "{context}: {name} differs");
    }
}

/// Looks often, since what is waited for may last for a few milliseconds.
fn wait_while(mut waiting: impl FnMut() -> bool) {
    while waiting() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn spawn(space: &Workspace, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(arguments.split_whitespace())
        .current_dir(space.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs")
}

/// What a run that failed says when it is tried again.
fn errors(space: &Workspace, arguments: &str, succeeded: bool) -> String {
    if succeeded {
        return String::new();
    }
    space.macula(arguments).stderr
}

/// Whether a training has a checkpoint to go on from.
fn has_checkpoint(run: &Path) -> bool {
    run.join("checkpoints/last/state.json").is_file()
}

/// The weights, the state, the settings, and of each line of the log all that is not the clock's.
fn training(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut left: BTreeMap<String, Vec<u8>> = [
        "checkpoints/last/state.safetensors",
        "checkpoints/last/state.json",
        "teacher.safetensors",
        "config.toml",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), read(&run.join(name))))
    .collect();
    let log = String::from_utf8(read(&run.join("metrics.jsonl"))).expect("UTF-8");
    for (number, line) in log.lines().enumerate() {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
        let object = line.as_object_mut().expect("an object");
        for of_the_clock in ["images_per_second", "data_wait", "minutes"] {
            object.remove(of_the_clock);
        }
        left.insert(format!("metrics.jsonl:{number}"), line.to_string().into_bytes());
    }
    left
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Trains with `settings` beside the small ones.
fn training_survives(settings: &str) {
    let space = Workspace::new();
    survives(
        &space,
        &Kind {
            start: &format!("train --data sample:train {SMALL} {settings}"),
            resume: "train --resume",
            begun: has_checkpoint,
            left: training,
        },
    );
}

#[test]
fn a_run_in_f32_survives() {
    training_survives("--set steps=30 --set crops.local.count=2 --set loss.ibot_weight=1");
}

#[test]
fn a_run_in_bf16_survives() {
    training_survives("--set steps=30 --set compute=bf16");
}

#[test]
fn a_run_in_parts_survives() {
    training_survives("--recipe dino --set steps=30 --set accumulate=2 --set crops.local.count=2");
}

#[test]
fn momentum_contrast_survives() {
    training_survives(
        "--recipe moco --set steps=30 --set loss.info_nce.hidden=32 --set loss.info_nce.output=16 \
         --set loss.info_nce.queue=128 --set optimizer.kind=sgd --set optimizer.learning_rate=0.1",
    );
}

/// With a cache of the teacher's outputs, of which a killed run leaves a part.
#[test]
fn a_distillation_survives() {
    let space = Workspace::new();
    space.succeeds(&format!(
        "train --data sample:train --out teacher {SMALL} --set steps=3 --set loss.ibot_weight=1"
    ));
    survives(
        &space,
        &Kind {
            start: "distill --teacher teacher --data sample:train --recipe distill-features --set steps=40 \
                    --set batch_size=8 --set backbone.embed_dim=16 --set backbone.depth=2 --set backbone.num_heads=2 \
                    --set monitor.log_every=2 --set checkpoints.every=3 --set distill.relation_queue=64 \
                    --set distill.cache_epochs=1 --set distill.cache=cache",
            resume: "distill --resume",
            begun: has_checkpoint,
            left: training,
        },
    );
}

/// Every file of a feature folder is the same, and no other is there.
#[test]
fn an_extraction_survives() {
    fn has_part(folder: &Path) -> bool {
        names(folder).iter().any(|name| name.starts_with("part-"))
    }
    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let path = |name: &String| -> PathBuf { folder.join(name) };
        let files = names(folder).into_iter();
        files.map(|name| (name.clone(), read(&path(&name)))).collect()
    }
    let space = Workspace::new();
    survives(
        &space,
        &Kind {
            // Few rows a part, so that there are several.
            start: "extract --model pixels:rgb --data sample:test --resize 144 --crop 144",
            resume: "extract --model pixels:rgb --data sample:test --resize 144 --crop 144 --resume",
            begun: has_part,
            left: files,
        },
    );
}
