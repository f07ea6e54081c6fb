//! The build of the rewritten copy: mutants that do not compile are found by where the compiler's errors stand, and taken out.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::copy::{self, Package};
use crate::rewrite::{self, Chosen, Rendered, Source};

/// A build and the mutants in it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Built {
    /// Test binaries.
    pub binaries: Vec<Binary>,
    /// The mutants that compile.
    pub mutants: Vec<Chosen>,
}

impl Built {
    /// Keeps it for a later run.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        copy::write(path, text.as_bytes())
    }

    /// What an earlier run has kept.
    pub fn read(path: &Path) -> Result<Self> {
        serde_json::from_str(&copy::read(path)?).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// A compiled test binary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Binary {
    /// The file.
    pub path: PathBuf,
    /// The folder that its tests are started in.
    pub folder: PathBuf,
}

/// More rounds than any build should need.
const ROUNDS: usize = 40;

/// Writes the sources with their mutants into `tree` and builds the package's tests, again and again without what does not compile.
/// What was taken out is remembered beside the copy, so that a later run has fewer rounds.
pub fn until_it_compiles(
    tree: &Path,
    package: &Package,
    sources: &mut [Source],
    tests: &[String],
) -> Result<Vec<Binary>> {
    let memory = tree.with_file_name("does-not-compile");
    recall(&memory, sources);
    for round in 1..=ROUNDS {
        let rendered: Vec<Rendered> = sources.iter().map(Source::render).collect();
        for (source, rendered) in sources.iter().zip(&rendered) {
            copy::write(&tree.join(&source.path), rendered.text.as_bytes())?;
        }
        let (binaries, errors) = build(tree, package, tests)?;
        if errors.is_empty() {
            return Ok(binaries);
        }
        let bad = culprits(tree, sources, &rendered, &errors)?;
        eprintln!(
            "round {round}: {} errors, {} mutants taken out",
            errors.len(),
            bad.len()
        );
        take_out(sources, &bad);
        remember(&memory, sources)?;
    }
    Err(format!(
        "{}: does not compile after {ROUNDS} rounds",
        package.name
    ))
}

/// A span of an error: file, bytes, and whether it is where the error is.
#[derive(Debug)]
struct Place {
    file: String,
    bytes: Range<usize>,
    primary: bool,
}

/// An error of the compiler.
#[derive(Debug)]
struct Fault {
    message: String,
    places: Vec<Place>,
}

fn build(tree: &Path, package: &Package, tests: &[String]) -> Result<(Vec<Binary>, Vec<Fault>)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "test",
        "--release",
        "--locked",
        "--no-run",
        "--message-format=json",
        "--lib",
        "-p",
        &package.name,
    ]);
    command.arg("--manifest-path").arg(tree.join("Cargo.toml"));
    for test in tests {
        command.args(["--test", test]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let mut binaries = Vec::new();
    let mut faults = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if message["reason"] == "compiler-message" && message["message"]["level"] == "error" {
            faults.extend(fault(&message["message"]));
        } else if message["profile"]["test"] == true
            && let Some(path) = message["executable"].as_str()
        {
            binaries.push(Binary {
                path: path.into(),
                folder: tree.join(&package.folder),
            });
        }
    }
    if !output.status.success() && faults.is_empty() {
        return Err("cargo failed without an error in a source file".to_owned());
    }
    Ok((binaries, faults))
}

/// An error with the places it speaks of; nothing for the count of errors at the end.
fn fault(message: &Value) -> Option<Fault> {
    let mut places = Vec::new();
    let notes = message["children"].as_array().into_iter().flatten();
    for part in std::iter::once(message).chain(notes) {
        for span in part["spans"].as_array().into_iter().flatten() {
            let number = |name: &str| span[name].as_u64().unwrap_or(0) as usize;
            places.push(Place {
                file: span["file_name"].as_str().unwrap_or("").to_owned(),
                bytes: number("byte_start")..number("byte_end"),
                primary: span["is_primary"] == true && std::ptr::eq(part, message),
            });
        }
    }
    let message = message["message"].as_str().unwrap_or("").to_owned();
    (!places.is_empty()).then_some(Fault { message, places })
}

/// The numbers of the mutants that the errors are due to.
fn culprits(
    tree: &Path,
    sources: &[Source],
    rendered: &[Rendered],
    faults: &[Fault],
) -> Result<BTreeSet<usize>> {
    let mut bad = BTreeSet::new();
    let mut first_unknown = None;
    for fault in faults {
        let found = blamed(tree, sources, rendered, fault);
        if found.is_empty() {
            first_unknown.get_or_insert(fault);
        }
        bad.extend(found);
    }
    match first_unknown {
        Some(fault) if bad.is_empty() => Err(format!(
            "no mutant to blame for: {} {:?}",
            fault.message, fault.places
        )),
        _ => Ok(bad),
    }
}

/// The nearest mutants to where an error stands: one that it stands in, else those whose choice it stands in, else those inside
/// what it speaks of; first by where the error is, then by the other places that it names, at last all of the function.
fn blamed(tree: &Path, sources: &[Source], rendered: &[Rendered], fault: &Fault) -> Vec<usize> {
    let of = |place: &Place| {
        let named = Path::new(&place.file);
        sources
            .iter()
            .position(|source| named.ends_with(&source.path) || tree.join(&source.path) == named)
    };
    let primary = fault.places.iter().filter(|place| place.primary);
    let others = fault.places.iter().filter(|place| !place.primary);
    let places: Vec<(usize, &Range<usize>)> = primary
        .chain(others)
        .filter_map(|place| Some((of(place)?, &place.bytes)))
        .collect();
    for &(file, bytes) in &places {
        let inside = rendered[file]
            .mutants
            .iter()
            .filter(|(_, range)| holds(range, bytes));
        if let Some((id, _)) = inside.min_by_key(|(_, range)| range.len()) {
            return vec![*id];
        }
    }
    for &(file, bytes) in &places {
        let inside = rendered[file]
            .sites
            .iter()
            .filter(|(_, range)| holds(range, bytes));
        if let Some((site, _)) = inside.min_by_key(|(_, range)| range.len()) {
            return of_site(&sources[file], *site);
        }
    }
    for &(file, bytes) in &places {
        let within = rendered[file]
            .sites
            .iter()
            .filter(|(_, range)| holds(bytes, range));
        let ids: Vec<usize> = within
            .flat_map(|(site, _)| of_site(&sources[file], *site))
            .collect();
        if !ids.is_empty() {
            return ids;
        }
    }
    places.first().map_or_else(Vec::new, |&(file, bytes)| {
        of_function(&sources[file], &rendered[file], bytes)
    })
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn of_site(source: &Source, site: usize) -> Vec<usize> {
    let mutants = source.sites[site].mutants.iter();
    mutants
        .filter(|mutant| mutant.alive)
        .map(|mutant| mutant.id)
        .collect()
}

/// All mutants of the function whose site stands last before `bytes`.
fn of_function(source: &Source, rendered: &Rendered, bytes: &Range<usize>) -> Vec<usize> {
    let before = rendered
        .sites
        .iter()
        .filter(|(_, range)| range.start <= bytes.start);
    let Some(&(site, _)) = before.max_by_key(|(_, range)| range.start) else {
        return Vec::new();
    };
    let function = &source.sites[site].function;
    let sites = (0..source.sites.len()).filter(|&site| source.sites[site].function == *function);
    sites.flat_map(|site| of_site(source, site)).collect()
}

fn take_out(sources: &mut [Source], bad: &BTreeSet<usize>) {
    let mutants = sources
        .iter_mut()
        .flat_map(|source| &mut source.sites)
        .flat_map(|site| &mut site.mutants);
    for mutant in mutants {
        mutant.alive &= !bad.contains(&mutant.id);
    }
}

/// A mutant's name from one run to the next.
fn key(source: &Source, site: &rewrite::Site, mutant: &rewrite::Mutant) -> String {
    let place = site.range.start;
    let original = &source.text[site.range.clone()];
    format!("{} {place} {original:?} {:?}", source.path.display(), mutant.text)
}

fn remember(memory: &Path, sources: &[Source]) -> Result<()> {
    let mut lines: BTreeSet<String> = std::fs::read_to_string(memory)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    for source in sources {
        for site in &source.sites {
            let dead = site.mutants.iter().filter(|mutant| !mutant.alive);
            lines.extend(dead.map(|mutant| key(source, site, mutant)));
        }
    }
    let text: Vec<String> = lines.into_iter().collect();
    copy::write(memory, text.join("\n").as_bytes())
}

fn recall(memory: &Path, sources: &mut [Source]) {
    let text = std::fs::read_to_string(memory).unwrap_or_default();
    let dead: HashSet<&str> = text.lines().collect();
    for source in sources {
        let copy = source.clone();
        for (site, original) in source.sites.iter_mut().zip(&copy.sites) {
            for mutant in &mut site.mutants {
                mutant.alive = !dead.contains(key(&copy, original, mutant).as_str());
            }
        }
    }
}
