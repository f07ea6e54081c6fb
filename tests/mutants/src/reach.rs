//! Which tests reach which mutants: every test once in a process of its own, with no mutant on.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::Result;
use crate::build::Binary;
use crate::process::{self, Ending, Limits};
use crate::rewrite::switch::REACHED;

/// A test and what it reaches.
#[derive(Debug)]
pub struct Test {
    /// Place of its binary in the list of binaries.
    pub binary: usize,
    /// Its name.
    pub name: String,
    /// How long it takes alone, with no mutant on.
    pub seconds: f64,
    /// The mutants whose code it runs.
    pub reached: HashSet<usize>,
}

/// The tests that pass with no mutant on.
#[derive(Debug)]
pub struct Reach {
    /// The binaries.
    pub binaries: Vec<Binary>,
    /// Their tests.
    pub tests: Vec<Test>,
}

/// A test that takes longer alone is not used.
const SLOWEST: f64 = 60.0;

/// Runs every test once, or those whose names begin with one of `modules`. Those that fail or take long are named and left out.
pub fn measure(binaries: &[Binary], modules: &[String], work: &Path) -> Result<Reach> {
    let mut tests = Vec::new();
    let began = Instant::now();
    for (index, binary) in binaries.iter().enumerate() {
        let mut names = names(binary)?;
        names.retain(|name| {
            modules.is_empty() || modules.iter().any(|module| name.starts_with(module.as_str()))
        });
        for name in names {
            match one(binary, &name, work)? {
                Some((seconds, reached)) if !reached.is_empty() => tests.push(Test {
                    binary: index,
                    name,
                    seconds,
                    reached,
                }),
                Some(_) => {}
                None => eprintln!("left out, as it fails or is slow without a mutant: {name}"),
            }
        }
    }
    eprintln!(
        "{} tests reach mutants; found out in {:.0} s",
        tests.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(Reach {
        binaries: binaries.to_vec(),
        tests,
    })
}

fn names(binary: &Binary) -> Result<Vec<String>> {
    let output = Command::new(&binary.path)
        .args(["--list", "--format", "terse"])
        .current_dir(&binary.folder)
        .output()
        .map_err(|error| format!("{}: {error}", binary.path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect())
}

fn one(binary: &Binary, name: &str, work: &Path) -> Result<Option<(f64, HashSet<usize>)>> {
    let list = work.join("reached");
    let _ = std::fs::remove_file(&list);
    let began = Instant::now();
    let named = list.to_string_lossy();
    let variables = [(REACHED, &*named)];
    let ending = process::run(
        binary,
        &[name],
        &variables,
        &work.join("tmp"),
        Limits::several_times(SLOWEST / 10.0),
    )?;
    let seconds = began.elapsed().as_secs_f64();
    if ending != Ending::Passed || seconds > SLOWEST {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    Ok(Some((
        seconds,
        text.lines().filter_map(|line| line.parse().ok()).collect(),
    )))
}
