//! Runs of several processes under a real `mpiexec`, which `MACULA_MPIEXEC` names with its options.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Settings under which the number of ranks changes the order of sums alone.
const SMALL: &str = "--seed 3 --threads 1 --knn-data sample:test --knn-every 4 --set monitor.knn.max_images=120 --set batch_size=12 \
     --set backbone.embed_dim=32 --set backbone.depth=2 --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 \
     --set local_size=14 --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64 \
     --set loss.hog_hidden=16 --set backbone.drop_path_rate=0.0 --set loss.koleo_weight=0.0 --set monitor.log_every=1 \
     --set checkpoints.every=3 --set data.loader.workers=1";
/// How soon a job ends once one of its processes has.
const SOON: Duration = Duration::from_secs(5);

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

fn train(folder: &Path, steps: u64) -> String {
    format!(
        "train --data sample:train --out {} {SMALL} --set steps={steps}",
        folder.display()
    )
}

fn losses(folder: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let loss = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["loss"].as_f64().expect("a loss")
    };
    text.lines().map(loss).collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (a, b)) in found.iter().zip(expected).enumerate() {
        let tolerance = if step == 0 { 1e-6 } else { 1e-4 };
        assert!(
            (a - b).abs() <= tolerance * b.abs(),
            "{what}, step {step}: {a}, expected {b}"
        );
    }
}

fn state(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("checkpoints/last/state.safetensors")).expect("a checkpoint")
}

#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn ranks_train_as_one_process_does() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    succeeds(1, &train(&at("one"), 12));
    let expected = losses(&at("one"));
    assert_eq!(expected.len(), 12);
    for ranks in [2, 3, 4] {
        let folder = at(&format!("on-{ranks}"));
        succeeds(ranks, &train(&folder, 12));
        assert_close(&format!("{ranks} ranks"), &losses(&folder), &expected);
        let env = std::fs::read_to_string(folder.join("env.json")).expect("env.json");
        assert!(env.contains(&format!("\"size\": {ranks}")), "{env}");
    }
    // The same number of ranks, the same bytes.
    succeeds(2, &train(&at("again"), 12));
    assert!(state(&at("again")) == state(&at("on-2")));
}

#[test]
#[ignore = "needs an mpiexec (MACULA_MPIEXEC)"]
fn a_killed_rank_ends_the_job_and_another_number_goes_on() {
    let place = tempfile::tempdir().expect("a folder");
    let whole = place.path().join("whole");
    succeeds(1, &train(&whole, 60));
    for victim in [1, 0] {
        let folder = place.path().join(format!("killed-{victim}"));
        let mut job = macula(2, &train(&folder, 60))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        until(&folder.join("checkpoints/last"), &mut job);
        let ranks = ranks_below(job.id(), &folder);
        assert_eq!(ranks.len(), 2, "{ranks:?}");
        kill(ranks[victim]);
        let start = Instant::now();
        let status = loop {
            if let Some(status) = job.try_wait().expect("it can be asked") {
                break status;
            }
            assert!(start.elapsed() < SOON, "the job goes on without rank {victim}");
            sleep(Duration::from_millis(20));
        };
        assert!(!status.success());
        sleep(Duration::from_millis(200));
        assert!(ranks_below(0, &folder).is_empty(), "a rank lives on");
        let out = folder.display();
        succeeds(3, &format!("train --out {out} --resume --threads 1"));
        assert_close(&format!("killed {victim}"), &losses(&folder), &losses(&whole));
    }
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

fn until(path: &Path, job: &mut Child) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            job.try_wait().expect("it can be asked").is_none(),
            "the job ended too soon"
        );
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no {}",
            path.display()
        );
        sleep(Duration::from_millis(10));
    }
}

/// The processes of `macula` that work for `folder`, by number; not `launcher`, whose arguments name it too.
fn ranks_below(launcher: u32, folder: &Path) -> Vec<u32> {
    let wanted = folder.display().to_string();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_macula"));
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let is_rank = |process: &u32| {
        let entry = PathBuf::from(format!("/proc/{process}"));
        let exe = std::fs::read_link(entry.join("exe")).unwrap_or_default();
        let line = std::fs::read(entry.join("cmdline")).unwrap_or_default();
        *process != launcher && exe == program && String::from_utf8_lossy(&line).contains(&wanted)
    };
    let entries = std::fs::read_dir("/proc").expect("Linux");
    let mut ranks: Vec<u32> = entries.flatten().filter_map(number).filter(is_rank).collect();
    ranks.sort_unstable();
    ranks
}

fn kill(process: u32) {
    let done = Command::new("/bin/kill")
        .args(["-9", &process.to_string()])
        .status();
    assert!(done.expect("kill starts").success());
}
