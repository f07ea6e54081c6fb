//! The command line within a process that is not its own.

use signal_hook::consts::SIGINT;
use signal_hook::low_level::raise;

use crate::harness::Workspace;

/// Runs the words of `arguments` in this process.
fn run(arguments: &str) -> u8 {
    macula::cli::run(std::iter::once("macula").chain(arguments.split_whitespace()))
}

#[test]
fn every_end_is_an_exit_code() {
    let space = Workspace::new();
    let pages = space.path("pages").display().to_string();
    let absent = space.path("absent").display().to_string();
    assert_eq!(run(&format!("man {pages}")), 0);
    assert_eq!(run(&format!("man {pages}")), 2);
    assert_eq!(run(&format!("inspect {absent}")), 2);
    assert_eq!(run("no-such-verb"), 2);
    assert_eq!(run("eval knn --nonsense"), 2);
    assert_eq!(run(""), 2);
}

/// Training listens for signals and has a pool of threads, which a process has once: a second run gets on with both, and
/// afterwards the signals are the process's own again. In a process of its own the second SIGINT would end it.
#[test]
fn a_process_that_trains_twice_goes_on() {
    let space = Workspace::new();
    let small = "--set steps=2 --set batch_size=4 --set crops.local.count=2 --set backbone.embed_dim=32 --set backbone.depth=1 \
                 --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 \
                 --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64";
    // As many as the pool has where another test of this process has started it.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for name in ["first", "second"] {
        let out = space.path(name);
        let line = format!(
            "train --data sample:test --out {} --threads {threads} {small}",
            out.display()
        );
        assert_eq!(run(&line), 0, "{line}");
        assert!(out.join("teacher.safetensors").is_file());
    }
    let out = space.path("third").display().to_string();
    let other = format!(
        "train --data sample:test --out {out} --threads {} {small}",
        threads + 1
    );
    assert_eq!(run(&other), 1, "a pool of another size");
    raise(SIGINT).unwrap();
    raise(SIGINT).unwrap();
}
