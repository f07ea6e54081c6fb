//! Every chosen mutant against the tests that reach it: the file's own first, quick ones before slow ones, until one fails.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::outcome::{Outcome, Verdict};
use crate::process::{self, Ending, Limits};
use crate::reach::{Reach, Test};
use crate::rewrite::Chosen;
use crate::rewrite::switch::MUTANT;

/// Tests are started together up to so many seconds; a slower one is started alone.
const TOGETHER: f64 = 2.0;

/// Judges all, one process at a time. Every result is a line of `results` at once.
pub fn all(chosen: &[Chosen], reach: &Reach, work: &Path, results: &Path) -> Result<Vec<Outcome>> {
    let said = |error: std::io::Error| format!("{}: {error}", results.display());
    std::fs::create_dir_all(results.parent().unwrap_or(Path::new("."))).map_err(said)?;
    let mut file = std::fs::File::create(results).map_err(said)?;
    let mut outcomes = Vec::new();
    let began = Instant::now();
    for (place, mutant) in chosen.iter().enumerate() {
        let outcome = one(mutant, reach, work)?;
        writeln!(file, "{}", outcome.line()).map_err(said)?;
        outcomes.push(outcome);
        if (place + 1) % 100 == 0 {
            eprintln!(
                "{} of {} in {:.0} s",
                place + 1,
                chosen.len(),
                began.elapsed().as_secs_f64()
            );
        }
    }
    Ok(outcomes)
}

fn one(mutant: &Chosen, reach: &Reach, work: &Path) -> Result<Outcome> {
    let module = module(&mutant.file);
    let mut tests: Vec<&Test> = reach
        .tests
        .iter()
        .filter(|test| test.reached.contains(&mutant.id))
        .collect();
    tests.sort_by(|a, b| {
        let slow = (a.seconds > TOGETHER).cmp(&(b.seconds > TOGETHER));
        let near = distance(&a.name, &module).cmp(&distance(&b.name, &module));
        slow.then(a.binary.cmp(&b.binary))
            .then(near)
            .then(a.seconds.total_cmp(&b.seconds))
    });
    let began = Instant::now();
    let verdict = if tests.is_empty() {
        Verdict::NotCovered
    } else {
        against(mutant, &tests, reach, work)?
    };
    Ok(Outcome {
        mutant: mutant.clone(),
        verdict,
        seconds: (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
    })
}

fn against(mutant: &Chosen, tests: &[&Test], reach: &Reach, work: &Path) -> Result<Verdict> {
    let number = mutant.id.to_string();
    for batch in batches(tests) {
        let names: Vec<&str> = batch.iter().map(|test| test.name.as_str()).collect();
        let seconds = batch.iter().map(|test| test.seconds).sum();
        let binary = &reach.binaries[batch[0].binary];
        let variables = [(MUTANT, number.as_str())];
        match process::run(
            binary,
            &names,
            &variables,
            &work.join("tmp"),
            Limits::several_times(seconds),
        )? {
            Ending::Passed => {}
            Ending::Failed(by) => return Ok(Verdict::Caught { by }),
            Ending::Died(by) => return Ok(Verdict::Caught { by }),
            Ending::TimedOut => return Ok(Verdict::TimedOut),
        }
    }
    Ok(Verdict::Survived)
}

/// Runs of tests of one binary that take at most [`TOGETHER`] seconds together.
fn batches<'a>(tests: &[&'a Test]) -> Vec<Vec<&'a Test>> {
    let mut batches: Vec<Vec<&Test>> = Vec::new();
    let mut seconds = 0.0;
    for &test in tests {
        seconds += test.seconds;
        match batches.last_mut() {
            Some(batch) if seconds <= TOGETHER && batch[0].binary == test.binary => batch.push(test),
            _ => {
                batches.push(vec![test]);
                seconds = test.seconds;
            }
        }
    }
    batches
}

/// The module of a file, as tests are named: `eval/src/metrics/iou.rs` is `metrics::iou`.
fn module(file: &str) -> String {
    let below = file.split_once("src/").map_or(file, |(_, below)| below);
    let stem = below.trim_end_matches(".rs").trim_end_matches("/mod");
    stem.replace('/', "::")
}

/// 0 for a test of the module, 1 for one of the module that holds it, 2 for others.
fn distance(test: &str, module: &str) -> u8 {
    let holder = module.rsplit_once("::").map_or("", |(holder, _)| holder);
    match () {
        () if test.starts_with(module) => 0,
        () if test.starts_with(holder) => 1,
        () => 2,
    }
}
