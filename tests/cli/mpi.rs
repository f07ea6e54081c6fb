//! Runs of several processes under a real `mpiexec`, which `MACULA_MPIEXEC` names with its options.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use macula::train::checkpoint::Checkpoints;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Settings under which the number of ranks changes the order of sums alone.
const SMALL: &str = "--seed 3 --threads 1 --knn-data sample:test --knn-every 4 --set monitor.knn.max_images=120 --set batch_size=12 \
     --set batch_warmup_start=12 --set backbone.embed_dim=32 --set backbone.depth=2 --set backbone.num_heads=2 \
     --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=32 --set loss.head.bottleneck=16 \
     --set loss.head.prototypes=64 --set loss.hog_hidden=16 --set loss.words.hidden=16 --set loss.words.vocabulary=8 --set backbone.drop_path_rate=0.0 --set loss.koleo_weight=0.0 \
     --set monitor.log_every=1 --set checkpoints.every=3 --set data.loader.workers=1";
/// How soon a job ends once one of its processes has.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// Kills of ranks, and as many of launchers.
const KILLS: usize = 10;

/// `macula` with `arguments` on as many ranks; 1 is a run without a launcher.
fn macula(ranks: usize, arguments: &str) -> Command {
    let program = env!("CARGO_BIN_EXE_macula");
    let mut command = match ranks {
        1 => Command::new(program),
        ranks => {
            let mpiexec = std::env::var("MACULA_MPIEXEC").expect("MACULA_MPIEXEC names an mpiexec");
            let mut words = mpiexec.split_whitespace();
            let mut command = Command::new(words.next().expect("a program"));
            command.args(words).arg("-n").arg(ranks.to_string()).arg(program);
            command
        }
    };
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

fn output(ranks: usize, arguments: &str) -> Output {
    macula(ranks, arguments).output().expect("it starts")
}

fn succeeds(ranks: usize, arguments: &str) {
    let output = output(ranks, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{ranks} ranks, {arguments}: {said}");
}

pub(super) fn train(folder: &Path, steps: u64) -> String {
    format!(
        "train --data sample:train --out {} {SMALL} --set steps={steps}",
        folder.display()
    )
}

pub(super) fn losses(folder: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let loss = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["loss"].as_f64().expect("a loss")
    };
    text.lines().map(loss).collect()
}

pub(super) fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (a, b)) in found.iter().zip(expected).enumerate() {
        // Sums in f32 in another order. A loss near zero, of a key among noise, is the logarithm of a share near one and has its rounding.
        let tolerance = if step == 0 { 1e-6 } else { 1e-4 };
        assert!(
            (a - b).abs() <= (tolerance * b.abs()).max(f64::from(f32::EPSILON)),
            "{what}, step {step}: {a}, expected {b}"
        );
    }
}

pub(super) fn state(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("checkpoints/last/state.safetensors")).expect("a checkpoint")
}

/// The student's weights after `step` steps, without those of which no loss depends: its gradient is zero but for rounding, of which the
/// optimizer makes steps as large as any. They are the biases of keys, since attention to a patch is relative to that to others, and
/// before batch norm (`centred`) that of the class token's norm.
fn weights(folder: &Path, step: u64, centred: bool) -> Vec<f64> {
    let path = folder.join(format!("checkpoints/step-{step}/state.safetensors"));
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("a checkpoint");
    let mut student: Vec<(&String, &Tensor)> = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("student."))
        .filter(|(name, _)| !(centred && *name == "student.backbone.norm.bias"))
        .collect();
    student.sort_by_key(|(name, _)| *name);
    let values = |(name, tensor): (&String, &Tensor)| {
        let mut values: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
        if name.ends_with("attn.qkv.bias") {
            let third = values.len() / 3;
            values[third..2 * third].fill(0.);
        }
        values
    };
    student.into_iter().flat_map(values).map(f64::from).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len());
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f64>().sqrt()
}

#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn ranks_train_as_one_process_does() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: String| place.path().join(name);
    for recipe in ["dinov2-small", "dino", "ibot", "moco", "mocov3"] {
        let train = |folder: &Path| {
            let train = train(folder, 20);
            format!("{train} --recipe {recipe} --set checkpoints.every=1 --set checkpoints.keep=99")
        };
        let centred = recipe == "mocov3";
        let one = at(format!("{recipe}-one"));
        succeeds(1, &train(&one));
        let expected = losses(&one);
        assert_eq!(expected.len(), 20);
        let last = weights(&one, 20, centred);
        let moved = distance(&last, &weights(&one, 1, centred));
        assert!(moved > 0.);
        for ranks in [2, 3, 4] {
            let what = format!("{recipe} on {ranks} ranks");
            let folder = at(format!("{recipe}-on-{ranks}"));
            succeeds(ranks, &train(&folder));
            assert_close(&what, &losses(&folder), &expected);
            let apart = distance(&weights(&folder, 20, centred), &last);
            println!("{what}: weights {apart:.2e} apart, of {moved:.2e} moved");
            assert!(apart <= 1e-4 * moved, "{what}: {apart} of {moved}");
            let log = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("a log");
            assert!(log.contains("\"rank_wait\":"), "{log}");
            let env = std::fs::read_to_string(folder.join("env.json")).expect("env.json");
            assert!(env.contains(&format!("\"size\": {ranks}")), "{env}");
        }
        // The same number of ranks, the same bytes.
        let again = at(format!("{recipe}-again"));
        succeeds(2, &train(&again));
        assert!(state(&again) == state(&at(format!("{recipe}-on-2"))), "{recipe}");
    }
}

/// Rows and queries divided among ranks: the files of one process, to the byte.
#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn ranks_curate_and_evaluate_as_one_process_does() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name).display().to_string();
    let (train, test) = (at("train"), at("test"));
    for (data, folder) in [("sample:train", &train), ("sample:test", &test)] {
        succeeds(1, &format!("extract --model pixels --data {data} --out {folder}"));
    }
    let curate = |step: &str| format!("curate {step} --features {train} --threads 1");
    let cases = [
        (
            curate("sample --size 0.1 --levels 200,20"),
            &["list.parquet", "clusters.csv"][..],
        ),
        (
            curate("sample --size 50 --levels 200,20 --split 9 --closest"),
            &["list.parquet", "clusters.csv"],
        ),
        (curate("dedup --threshold 0.97 --search lists"), &["list.parquet"]),
        (
            format!("eval cluster --features {train} --k 10,40 --threads 1"),
            &["table.csv"],
        ),
        (
            format!("eval knn --train {train} --test {test} --threads 1"),
            &["table.csv", "predictions.parquet"],
        ),
        (
            format!("eval knn --train {train} --test {test} --n-per-class 5 --n-tries 3 --threads 1"),
            &["table.csv"],
        ),
    ];
    for (number, (arguments, files)) in cases.iter().enumerate() {
        let of = |ranks: usize| {
            let folder = at(&format!("{number}-on-{ranks}"));
            let output = output(ranks, &format!("{arguments} --out {folder}"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{ranks} ranks, {arguments}: {said}");
            assert_eq!(said.contains("memory of ranks"), ranks > 1, "{said}");
            let read = |name: &&str| std::fs::read(Path::new(&folder).join(name)).expect("a file");
            files.iter().map(read).collect::<Vec<_>>()
        };
        let expected = of(1);
        for ranks in [2, 3] {
            assert!(of(ranks) == expected, "{arguments} on {ranks} ranks");
        }
    }
}

/// Gradients in bf16 on the way: other roundings, and the same bytes again.
#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn ranks_train_in_bf16_on_the_wire() {
    let place = tempfile::tempdir().expect("a folder");
    let [exact, short, again] = ["exact", "short", "again"].map(|name| place.path().join(name));
    succeeds(2, &train(&exact, 20));
    for folder in [&short, &again] {
        succeeds(2, &format!("{} --set ranks.wire=bf16", train(folder, 20)));
    }
    assert!(state(&short) == state(&again));
    let (found, expected) = (losses(&short), losses(&exact));
    assert_eq!(found[0], expected[0]);
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b.abs());
    let off = off.fold(0., f64::max);
    println!("largest relative difference of a loss: {off:.1e}");
    assert!(off > 0. && off < 1e-2, "{off}");
}

/// The optimizer's state divided among ranks: the bytes of ranks that each keep all of it, also of three that go on after a kill.
#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn ranks_that_divide_the_optimizers_state_write_the_same_bytes() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    let sharded = |folder: &Path, steps| format!("{} --set ranks.shard_optimizer=true", train(folder, steps));
    for recipe in ["dinov2-small", "moco"] {
        let [whole, divided] = ["whole", "divided"].map(|name| at(&format!("{recipe}-{name}")));
        succeeds(2, &format!("{} --recipe {recipe}", train(&whole, 20)));
        succeeds(2, &format!("{} --recipe {recipe}", sharded(&divided, 20)));
        assert!(state(&divided) == state(&whole), "{recipe}");
        assert_eq!(losses(&divided), losses(&whole), "{recipe}");
        let [all, part] = [&whole, &divided].map(|folder| optimizer_bytes(folder));
        assert!(all.len() == 2 && part.len() == 2);
        assert_eq!(part[0] + part[1], all[0], "{recipe}");
        assert!(part[0].max(part[1]) * 10 < all[0] * 6, "{part:?} of {all:?}");
    }

    let killed = at("killed");
    let mut job = start(2, &sharded(&killed, 60));
    until_checkpoint(&killed, &mut job, 3);
    signal("-KILL", ranks_of(&killed)[1]);
    assert!(!ended(&mut job, "rank 1 was killed").success());
    none_lives(&killed, Instant::now());
    // The same run on ranks that keep everything.
    let other = at("other");
    let copied = Command::new("/bin/cp").arg("-a").args([&killed, &other]).status();
    assert!(copied.expect("cp starts").success());
    let config = other.join("config.toml");
    let text = std::fs::read_to_string(&config).expect("settings");
    assert!(text.contains("shard_optimizer = true"), "{text}");
    let text = text.replace("shard_optimizer = true", "shard_optimizer = false");
    std::fs::write(&config, text).expect("settings are written");
    for folder in [&killed, &other] {
        succeeds(
            3,
            &format!("train --out {} --resume --threads 1", folder.display()),
        );
        assert_eq!(last_step(folder), 60);
    }
    assert!(state(&killed) == state(&other));
}

/// Bytes of the optimizer's state on each rank.
fn optimizer_bytes(folder: &Path) -> Vec<u64> {
    let env = std::fs::read_to_string(folder.join("env.json")).expect("env.json");
    let env: serde_json::Value = serde_json::from_str(&env).expect("JSON");
    serde_json::from_value(env["ranks"]["optimizer_bytes"].clone()).expect("bytes of each rank")
}

/// A signal to the launcher or to any rank ends all with a checkpoint, and any number of ranks goes on.
#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn a_run_goes_on_with_another_number_of_ranks() {
    let place = tempfile::tempdir().expect("a folder");
    let (whole, folder) = (place.path().join("whole"), place.path().join("parts"));
    succeeds(1, &train(&whole, 150));
    let resume = format!("train --out {} --resume --threads 1", folder.display());
    let mut done = 0;
    for (ranks, signal_name) in [(2, "-USR1"), (1, "-INT"), (4, "-INT")] {
        let arguments = match done {
            0 => train(&folder, 150),
            _ => resume.clone(),
        };
        let mut job = start(ranks, &arguments);
        until_checkpoint(&folder, &mut job, done);
        let told = match ranks {
            4 => ranks_of(&folder)[1],
            // The launcher, or the one process.
            _ => job.id(),
        };
        signal(signal_name, told);
        let status = ended(&mut job, &format!("{signal_name} was sent to one of {ranks}"));
        assert!(status.success(), "{ranks} ranks: {status}");
        assert!((done + 1..150).contains(&last_step(&folder)), "too fast");
        done = last_step(&folder);
    }
    succeeds(4, &resume);
    assert_eq!(last_step(&folder), 150);
    let (found, expected) = (losses(&folder), losses(&whole));
    assert_eq!(found.len(), expected.len());
    for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
        // Differences in rounding grow with the steps.
        let tolerance = if step < 20 { 1e-4 } else { 1e-2 };
        assert!(
            (a - b).abs() <= tolerance * b.abs(),
            "step {step}: {a}, expected {b}"
        );
    }
}

#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn a_killed_rank_ends_the_job_and_another_number_goes_on() {
    let place = tempfile::tempdir().expect("a folder");
    let whole = place.path().join("whole");
    succeeds(1, &train(&whole, 60));
    for victim in [1, 0] {
        let folder = place.path().join(format!("killed-{victim}"));
        let mut job = start(2, &train(&folder, 60));
        until_checkpoint(&folder, &mut job, 0);
        let ranks = ranks_of(&folder);
        assert_eq!(ranks.len(), 2, "{ranks:?}");
        signal("-KILL", ranks[victim]);
        assert!(!ended(&mut job, &format!("rank {victim} was killed")).success());
        none_lives(&folder, Instant::now());
        let out = folder.display();
        succeeds(3, &format!("train --out {out} --resume --threads 1"));
        assert_close(&format!("killed {victim}"), &losses(&folder), &losses(&whole));
    }
}

/// Ranks and launchers by turns, at random moments. Every time the job ends soon, no process is left, and every checkpoint is whole.
#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn whoever_is_killed_the_job_ends_soon_and_its_checkpoints_are_whole() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("run");
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut arguments = train(&folder, 100_000);
    let mut done = 0;
    let mut slowest = Duration::ZERO;
    for kill in 0..2 * KILLS {
        let mut job = start(2, &arguments);
        until_checkpoint(&folder, &mut job, done);
        sleep(Duration::from_millis(rng.random_range(0..300)));
        let ranks = ranks_of(&folder);
        assert_eq!(ranks.len(), 2, "{ranks:?}");
        let victim = match kill % 2 {
            0 => ranks[rng.random_range(0..2)],
            _ => job.id(),
        };
        signal("-KILL", victim);
        let since = Instant::now();
        ended(&mut job, &format!("kill {kill}"));
        none_lives(&folder, since);
        slowest = slowest.max(since.elapsed());
        let checkpoints = Checkpoints::in_folder(&folder);
        let last = checkpoints.last_step().expect("a checkpoint");
        let saved = checkpoints.load_last().expect("whole").expect("one");
        assert_eq!(saved.state.step, last, "kill {kill}");
        assert!(last > done || kill == 0, "kill {kill}: {last} after {done}");
        done = last;
        arguments = format!("train --out {} --resume --threads 1", folder.display());
    }
    println!("{} kills, the slowest job ended after {slowest:?}", 2 * KILLS);
}

#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn an_error_that_all_ranks_have_is_told_once() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("run");
    let output = output(2, &format!("{} --set batch_size=9", train(&folder, 3)));
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = said.lines().filter(|line| line.contains("error: ")).count();
    assert_eq!(told, 1, "{said}");
    assert!(
        said.contains("batch_size: expected a multiple of the 2 ranks, found 9"),
        "{said}"
    );
}

fn start(ranks: usize, arguments: &str) -> Child {
    macula(ranks, arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// How `job` ends, which it does soon.
fn ended(job: &mut Child, why: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = job.try_wait().expect("it can be asked") {
            return status;
        }
        assert!(start.elapsed() < SOON, "the job goes on although {why}");
        sleep(Duration::from_millis(20));
    }
}

/// Waits until no process works for `folder`, soon after `since`.
fn none_lives(folder: &Path, since: Instant) {
    while !ranks_of(folder).is_empty() {
        assert!(since.elapsed() < SOON, "a rank lives on");
        sleep(Duration::from_millis(20));
    }
}

/// The step of the last checkpoint; 0 where there is none.
fn last_step(folder: &Path) -> u64 {
    Checkpoints::in_folder(folder).last_step().unwrap_or(0)
}

/// Waits for a checkpoint of a step after `before`.
pub(super) fn until_checkpoint(folder: &Path, job: &mut Child, before: u64) {
    let start = Instant::now();
    while last_step(folder) <= before {
        assert!(
            job.try_wait().expect("it can be asked").is_none(),
            "the job ended too soon"
        );
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no checkpoint after step {before}"
        );
        sleep(Duration::from_millis(10));
    }
}

/// The processes of `macula` that work for `folder`, by number; not launchers, whose arguments name it too.
fn ranks_of(folder: &Path) -> Vec<u32> {
    let wanted = folder.display().to_string();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_macula"));
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let is_rank = |process: &u32| {
        let entry = PathBuf::from(format!("/proc/{process}"));
        let exe = std::fs::read_link(entry.join("exe")).unwrap_or_default();
        let line = std::fs::read(entry.join("cmdline")).unwrap_or_default();
        exe == program && String::from_utf8_lossy(&line).contains(&wanted)
    };
    let entries = std::fs::read_dir("/proc").expect("Linux");
    let mut ranks: Vec<u32> = entries.flatten().filter_map(number).filter(is_rank).collect();
    ranks.sort_unstable();
    ranks
}

pub(super) fn signal(signal: &str, process: u32) {
    let done = Command::new("/bin/kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(done.expect("kill starts").success());
}
