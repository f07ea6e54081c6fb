//! A child of the soak that answers inputs of one kind, one after the other: it says each input's number before it reads it, so
//! that its parent knows which one it died of, and what it found and counted.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::findings::{self, Fault, Finding, Tally};
use super::kinds::Kind;
use super::mutate::mutated;
use super::process::{self, Limits};
use super::tree::{self, Files, Seed};

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Work {
    /// The kind's name.
    pub kind: String,
    /// Through the binary, not the library.
    pub binary: bool,
    /// The seed of the soak.
    pub seed: u64,
    /// The first number.
    pub first: u64,
    /// The most inputs.
    pub count: u64,
    /// After this long no other input is begun.
    pub milliseconds: u64,
    /// Folder of the seeds.
    pub seeds: PathBuf,
    /// A folder of the worker's own.
    pub folder: PathBuf,
}

/// What a worker says, a line each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// It begins an input.
    Begins(u64),
    /// It found a fault.
    Found(Box<Finding>),
    /// It is done up to this number, and counted this.
    Done(u64, Tally),
}

/// An input, and what decides among the ways to read it.
pub struct Input {
    /// Its files.
    pub files: Files,
    /// Decides among options and commands.
    pub choice: u64,
}

/// Input `number` of a kind; the same for the same seeds, always.
pub fn input(kind: &Kind, seeds: &[Seed], seed: u64, number: u64) -> Input {
    let mut rng = macula::rng::stream(seed, &format!("soak {}", kind.name), number);
    let choice = rng.random();
    Input {
        files: mutated(seeds, kind.may_change, kind.whole_folder, &mut rng),
        choice,
    }
}

/// The seeds of a kind.
pub fn seeds_of(kind: &Kind, root: &Path) -> Vec<Seed> {
    let folder = root.join(kind.name);
    let mut names: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("seeds")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    names
        .iter()
        .map(|path| Seed::read(path).expect("a seed is read"))
        .collect()
}

/// Panics since the last input, message and place.
static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

fn panics() -> Vec<(String, String)> {
    std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Notes panics instead of printing them.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(|| "nowhere".to_owned(), |place| place.to_string());
        let message = panic.payload_as_str().unwrap_or("no text").to_owned();
        PANICS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((message, shortened(&place)));
    }));
}

/// A place without the folders above the crate.
fn shortened(place: &str) -> String {
    let parts: Vec<&str> = place.split('/').collect();
    let start = parts
        .iter()
        .position(|part| part.starts_with("index.crates.io"))
        .map_or(0, |found| found + 1);
    parts[start..].join("/")
}

/// Answers inputs until the time or the number is up.
pub fn work(kind: &'static Kind, work: &Work) {
    note_panics();
    let seeds = seeds_of(kind, &work.seeds);
    std::fs::create_dir_all(&work.folder).expect("a folder");
    std::env::set_current_dir(&work.folder).expect("a folder to work in");
    if !Path::new("common").exists() {
        std::os::unix::fs::symlink(work.seeds.join("common"), "common").expect("linked");
    }
    let mut worker = Worker {
        kind,
        tally: Tally::default(),
        work,
    };
    let start = Instant::now();
    let mut next = work.first;
    while next < work.first + work.count && start.elapsed() < Duration::from_millis(work.milliseconds) {
        let input = input(kind, &seeds, work.seed, next);
        say(&Word::Begins(next));
        for (fault, place, message, command) in worker.answer(&input) {
            let finding = Finding {
                kind: kind.name.to_owned(),
                binary: work.binary,
                seed: work.seed,
                number: next,
                fault,
                place,
                message: message.chars().take(2000).collect(),
                command,
            };
            say(&Word::Found(Box::new(finding)));
        }
        next += 1;
    }
    say(&Word::Done(next, worker.tally));
}

fn say(word: &Word) {
    let line = serde_json::to_string(word).expect("written");
    // A parent that is gone needs no answer.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

struct Worker<'a> {
    kind: &'static Kind,
    tally: Tally,
    work: &'a Work,
}

/// Fault, place, message and command.
type Found = Vec<(Fault, String, String, String)>;

impl Worker<'_> {
    fn answer(&mut self, input: &Input) -> Found {
        let case = Path::new("case");
        if tree::write(&input.files, case).is_err() {
            self.tally.unwritable += 1;
            return Vec::new();
        }
        let start = Instant::now();
        let found = if self.work.binary {
            self.command(input)
        } else {
            self.library(case, input)
        };
        let took = start.elapsed().as_millis() as u64;
        self.tally.slowest_ms = self.tally.slowest_ms.max(took);
        found
    }

    fn library(&mut self, case: &Path, input: &Input) -> Found {
        let Some(read) = self.kind.read else {
            return Vec::new();
        };
        self.tally.tried += 1;
        let answer = catch_unwind(AssertUnwindSafe(|| read(case, input.choice)));
        let panics = panics();
        match answer {
            Err(_) => {
                let (message, place) = panics.into_iter().next().unwrap_or_default();
                vec![(Fault::Panic, place, message, String::new())]
            }
            Ok(answer) => {
                for (_, place) in panics {
                    *self.tally.caught.entry(place).or_default() += 1;
                }
                match answer {
                    Ok(()) => {
                        self.tally.accepted += 1;
                        Vec::new()
                    }
                    Err(text) => {
                        self.tally.refused += 1;
                        // As the command prints it.
                        let line = text.lines().collect::<Vec<_>>().join("; ");
                        let wrong = findings::of_message(&line, &input.files, self.kind.names_file);
                        wrong
                            .map(|(fault, place)| (fault, place, line, String::new()))
                            .into_iter()
                            .collect()
                    }
                }
            }
        }
    }

    fn command(&mut self, input: &Input) -> Found {
        let commands = self.kind.commands;
        if commands.is_empty() || !(self.kind.may_run)(&input.files) {
            return Vec::new();
        }
        let command = commands[(input.choice % commands.len() as u64) as usize];
        let _ = std::fs::remove_dir_all("out");
        std::fs::create_dir_all("out").expect("created");
        let ran = process::macula(Path::new("."), command, &Limits::for_inputs());
        self.tally.commands += 1;
        if let process::End::Exit(code) = ran.end {
            *self.tally.exit_codes.entry(code).or_default() += 1;
        }
        let wrong = findings::of_command(&ran, &input.files);
        wrong
            .map(|(fault, place)| (fault, place, ran.stderr, command.to_owned()))
            .into_iter()
            .collect()
    }
}
