//! Runs of several processes that are started as `torchrun` starts them, by its variables, and connected by TCP.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::mpi::{SOON, assert_close, losses, signal, state, train, until_checkpoint};

/// A rank of a job, and a process of its own.
struct Rank(Child);

impl Rank {
    fn start(rank: usize, size: usize, master_port: u16, arguments: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_macula"))
            .args(arguments.split_whitespace())
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", size.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("LOCAL_WORLD_SIZE", size.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", master_port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("it starts"))
    }

    /// Its exit code (none where a signal has ended it), and what it said to stdout and stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut printed, mut said) = (String::new(), String::new());
        let stderr = self.0.stderr.take().expect("stderr");
        let read = std::thread::spawn(move || {
            let mut stderr = stderr;
            stderr.read_to_string(&mut said).expect("text");
            said
        });
        let stdout = self.0.stdout.as_mut().expect("stdout");
        stdout.read_to_string(&mut printed).expect("text");
        let status = self.0.wait().expect("it can be waited for");
        (status.code(), printed, read.join().expect("stderr is read"))
    }

    /// Waits until it has ended, which is soon.
    fn ends_soon(&mut self) {
        let start = Instant::now();
        while self.0.try_wait().expect("it can be asked").is_none() {
            assert!(start.elapsed() < SOON, "a rank lives on");
            sleep(Duration::from_millis(20));
        }
    }
}

/// A port whose neighbour, at which ranks meet, is free.
fn master_port() -> u16 {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    free.local_addr().expect("an address").port() - 1000
}

fn job(size: usize, arguments: &str) -> Vec<Rank> {
    let port = master_port();
    (0..size)
        .map(|rank| Rank::start(rank, size, port, arguments))
        .collect()
}

/// What the first of `size` ranks prints.
fn succeeds(size: usize, arguments: &str) -> String {
    let mut printed = None;
    for (rank, process) in job(size, arguments).into_iter().enumerate() {
        let (code, stdout, stderr) = process.end();
        assert_eq!(code, Some(0), "rank {rank} of {size}, {arguments}: {stderr}");
        assert!(rank == 0 || stdout.is_empty(), "rank {rank} prints {stdout}");
        printed.get_or_insert(stdout);
    }
    printed.expect("a rank")
}

fn train_on_one(folder: &Path, steps: u64) {
    let output = Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(train(folder, steps).split_whitespace())
        .output();
    assert!(output.expect("it starts").status.success());
}

#[test]
fn ranks_without_mpi_train_as_one_process_does() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    train_on_one(&at("one"), 8);
    let expected = losses(&at("one"));
    assert_eq!(expected.len(), 8);
    for (size, name) in [(2, "two"), (3, "three"), (2, "again")] {
        succeeds(size, &train(&at(name), 8));
        assert_close(name, &losses(&at(name)), &expected);
        let env = std::fs::read_to_string(at(name).join("env.json")).expect("env.json");
        assert!(env.contains(&format!("\"size\": {size}")), "{env}");
        assert!(env.contains("TCP (rank 0 at 127.0.0.1:"), "{env}");
    }
    // The same number of ranks, the same bytes.
    assert!(state(&at("two")) == state(&at("again")));
}

#[test]
fn gradients_in_bf16_go_without_mpi_too() {
    let place = tempfile::tempdir().expect("a folder");
    let [exact, short] = ["exact", "short"].map(|name| place.path().join(name));
    succeeds(2, &train(&exact, 6));
    succeeds(2, &format!("{} --set ranks.wire=bf16", train(&short, 6)));
    let (found, expected) = (losses(&short), losses(&exact));
    assert_eq!(found[0], expected[0]);
    assert!(found != expected);
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b.abs());
    assert!(off.fold(0., f64::max) < 1e-2);
}

#[test]
fn a_killed_rank_ends_the_others_with_one_line() {
    let place = tempfile::tempdir().expect("a folder");
    for victim in [1, 0] {
        let folder = place.path().join(format!("killed-{victim}"));
        let mut ranks = job(2, &train(&folder, 100_000));
        until_checkpoint(&folder, &mut ranks[0].0, 0);
        signal("-KILL", ranks[victim].0.id());
        ranks[victim].ends_soon();
        ranks[1 - victim].ends_soon();
        let survivor = ranks.swap_remove(1 - victim);
        let (code, _, said) = survivor.end();
        assert_eq!(code, Some(1), "{said}");
        let told: Vec<&str> = said.lines().filter(|line| line.contains("error: ")).collect();
        let [line] = told.as_slice() else { panic!("{said}") };
        assert!(line.starts_with(&format!("error: rank {victim} on ")), "{line}");
        assert!(line.ends_with("and so the job ends"), "{line}");
    }
}

#[test]
fn an_error_that_all_ranks_have_is_told_once_and_ends_all_with_its_code() {
    let place = tempfile::tempdir().expect("a folder");
    let arguments = format!("{} --set batch_size=9", train(&place.path().join("run"), 3));
    let ended: Vec<_> = job(2, &arguments).into_iter().map(Rank::end).collect();
    assert_eq!([ended[0].0, ended[1].0], [Some(2), Some(2)], "{ended:?}");
    let said = format!("{}{}", ended[0].2, ended[1].2);
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(
        said.contains("batch_size: expected a multiple of the 2 ranks, found 9"),
        "{said}"
    );
}

#[test]
fn ranks_that_were_started_apart_are_refused_by_name() {
    let port = master_port();
    let first = Rank::start(0, 2, port, "bench exchange --megabytes 1");
    let second = Rank::start(1, 3, port, "bench exchange --megabytes 1");
    for (code, _, said) in [first.end(), second.end()] {
        assert!(code == Some(1) || code == Some(2), "{said}");
        assert!(
            said.contains("expected WORLD_SIZE=2, as rank 0 on ") && said.contains("found 3 at rank 1 on "),
            "{said}"
        );
    }
}

#[test]
fn sums_over_ranks_are_measured_and_right() {
    for size in [2, 3] {
        let printed = succeeds(size, "bench exchange --megabytes 1 --repetitions 2 --json");
        let found: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        assert!(printed.contains("TCP (rank 0 at "), "{printed}");
        let row = &found["rows"][0];
        assert_eq!(row["way"], "host", "{printed}");
        assert_eq!(row["bytes"], 1 << 20, "{printed}");
        let number = |name: &str| row[name].as_f64().expect("a number");
        assert!(number("difference") <= number("allowed"), "{printed}");
    }
}
