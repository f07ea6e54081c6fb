//! A mutation soak: damaged copies of every kind of file that macula reads, through the library by the thousand and through
//! the binary as a user runs it. Whatever a file holds, the answer is a result or one error line that names it: no panic, no
//! hang, no run on memory.
//!
//! Without arguments, as in `cargo test`, a fixed part of it runs. The long run is
//!
//! ```text
//! cargo test --release --test soak -- --seconds 3600 --threads 2 --keep soak-findings
//! ```
//!
//! with `--seed N` for other inputs, `--kinds a,b` for some kinds (names as in the report, or their beginnings),
//! `--binary-share 0.3` for the share of the time that goes to the binary, and `--again FOLDER` for one kept finding.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod findings;
mod kinds;
mod mutate;
mod process;
mod report;
mod seeds;
mod supervisor;
mod tree;
#[path = "../../models/tests/weights_support/mod.rs"]
mod weights_support;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use findings::Finding;
use supervisor::Plan;
use tree::Seed;
use worker::Work;

/// What the fixed part is called among the tests.
const FIXED: &str = "a_fixed_part_of_the_mutation_soak";
/// Inputs of a kind in the fixed part: through the library, through the binary.
const FIXED_INPUTS: (u64, u64) = (300, 4);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        arguments
            .iter()
            .position(|found| found == flag)
            .and_then(|at| arguments.get(at + 1))
            .cloned()
    };
    if let Some(work) = value("--work") {
        let work: Work = serde_json::from_str(&work).expect("work");
        worker::work(kinds::named(&work.kind).expect("a kind"), &work);
        return ExitCode::SUCCESS;
    }
    if let Some(folder) = value("--again") {
        return again(Path::new(&folder));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let number = |flag: &str, default: f64| -> f64 {
        value(flag).map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("{flag}: expected a number, found `{text}`"))
        })
    };
    let mut plan = Plan {
        duration: Duration::from_secs(600),
        max: FIXED_INPUTS,
        seed: number("--seed", 1.) as u64,
        threads: number("--threads", 2.) as usize,
        kinds: supervisor::chosen(
            &value("--kinds").map_or_else(Vec::new, |names| names.split(',').map(str::to_owned).collect()),
        ),
        binary_share: number("--binary-share", 0.3),
        keep: value("--keep").map_or_else(
            || std::env::temp_dir().join("macula-soak-findings"),
            PathBuf::from,
        ),
        seeds: folder.path().join("seeds"),
        folder: folder.path().to_owned(),
    };
    if value("--seconds").is_some() {
        plan.duration = Duration::from_secs_f64(number("--seconds", 60.));
        plan.max = (1 << 39, 1 << 39);
    } else if value("--kinds").is_none() && !is_requested(&arguments) {
        return ExitCode::SUCCESS;
    }
    assert!(!plan.kinds.is_empty(), "--kinds: no such kind");
    seeds::make(&plan.seeds);
    let outcome = supervisor::soak(&plan);
    let text = report::text(&outcome);
    println!("{text}");
    if !outcome.found.is_empty() {
        std::fs::write(plan.keep.join("report.txt"), &text).expect("written");
    }
    assert!(
        outcome.tallies.values().any(|tally| tally.accepted > 0),
        "no input was accepted: the seeds are no use"
    );
    if outcome.found.keys().any(|(_, _, fault, _)| fault.fails()) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Whether the arguments of the test harness ask for the fixed part; says so as the harness does.
fn is_requested(arguments: &[String]) -> bool {
    if arguments.iter().any(|argument| argument == "--list") {
        println!("{FIXED}: test");
        return false;
    }
    let names: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let ignored_only = arguments.iter().any(|argument| argument == "--ignored");
    let runs = !ignored_only && (names.is_empty() || names.iter().any(|name| FIXED.contains(name.as_str())));
    println!("\nrunning {} test", u8::from(runs));
    runs
}

/// Answers the input of a kept finding again.
fn again(folder: &Path) -> ExitCode {
    let text = std::fs::read_to_string(folder.join("finding.json")).expect("finding.json");
    let finding: Finding = serde_json::from_str(&text).expect("a finding");
    let kind = kinds::named(&finding.kind).expect("a kind");
    let input = Seed::read(&folder.join("input")).expect("an input").files;
    let place = tempfile::tempdir().expect("a temporary folder");
    tree::write(&input, &place.path().join("case")).expect("written");
    if finding.binary {
        let seeds = place.path().join("seeds");
        seeds::make(&seeds);
        std::os::unix::fs::symlink(seeds.join("common"), place.path().join("common")).expect("linked");
        println!("macula {}", finding.command);
        let ran = process::macula(place.path(), &finding.command, &process::Limits::for_inputs());
        println!("{}{:?} after {:?}", ran.stderr, ran.end, ran.took);
        return ExitCode::SUCCESS;
    }
    let seeds = [Seed::read(&folder.join("input")).expect("an input")];
    let choice = worker::input(kind, &seeds, finding.seed, finding.number).choice;
    println!(
        "{:?}",
        kind.read.expect("a reader")(&place.path().join("case"), choice)
    );
    ExitCode::SUCCESS
}
