//! What is wrong with how an input was answered, and how often what was seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::process::{End, Ran};
use super::tree::Files;

/// Letters of an error line that are still one clear line.
const LONGEST: usize = 2000;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// A panic that reached the caller.
    Panic,
    /// Over the limit of time.
    Hang,
    /// Over the limit of memory.
    Memory,
    /// Ended by a signal: an abort, a segmentation fault.
    Signal,
    /// An exit code other than 0, 1 and 2.
    ExitCode,
    /// The text of a panic on stderr, whatever the exit code.
    PanicText,
    /// A failure without exactly one error line at the end of stderr.
    NotOneLine,
    /// An error of several lines.
    SeveralLines,
    /// An error that names no file of the input.
    NamesNoFile,
    /// An error line of thousands of letters.
    LongLine,
    /// An error line with control characters.
    ControlCharacters,
}

impl Fault {
    /// Whether a soak that finds it has failed. An error line that lacks the file's name or quotes too
    /// much of a damaged file is only reported.
    pub fn fails(&self) -> bool {
        !matches!(self, Self::NamesNoFile | Self::LongLine | Self::ControlCharacters)
    }
}

/// A fault of one input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of input.
    pub kind: String,
    /// Through the binary, not the library.
    pub binary: bool,
    /// The seed of the soak.
    pub seed: u64,
    /// The number of the input among those of its kind.
    pub number: u64,
    /// What is wrong.
    pub fault: Fault,
    /// Where: the place of a panic, or the shape of a message.
    pub place: String,
    /// The message, or the end of stderr.
    pub message: String,
    /// The command, for the binary.
    pub command: String,
}

/// What was seen of a kind.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Tally {
    /// Inputs that were read through the library.
    pub tried: u64,
    /// Of these, read without an error.
    pub accepted: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Commands run.
    pub commands: u64,
    /// How they ended.
    pub exit_codes: BTreeMap<i32, u64>,
    /// The longest that one took, in milliseconds.
    pub slowest_ms: u64,
    /// Panics that the library caught itself and made an error of, by place.
    pub caught: BTreeMap<String, u64>,
    /// Inputs that could not be written to disk, for instance a file below a file.
    pub unwritable: u64,
}

impl Tally {
    /// Adds what another counted.
    pub fn add(&mut self, other: Self) {
        self.tried += other.tried;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.commands += other.commands;
        self.unwritable += other.unwritable;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        for (code, count) in other.exit_codes {
            *self.exit_codes.entry(code).or_default() += count;
        }
        for (place, count) in other.caught {
            *self.caught.entry(place).or_default() += count;
        }
    }
}

/// What is wrong with an error's words.
pub fn of_message(line: &str, files: &Files, names_file: bool) -> Option<(Fault, String)> {
    // Many shapes of one origin: what the file says is in them.
    let quoting = |fault| Some((fault, shape(line).chars().take(30).collect()));
    if line.contains('\n') {
        return quoting(Fault::SeveralLines);
    }
    if line.chars().count() > LONGEST {
        return quoting(Fault::LongLine);
    }
    if line.chars().any(char::is_control) {
        return quoting(Fault::ControlCharacters);
    }
    let named = || {
        line.contains("case")
            || files
                .keys()
                .any(|name| name.split('/').any(|part| line.contains(part)))
    };
    if names_file && !named() {
        return Some((Fault::NamesNoFile, shape(line)));
    }
    None
}

/// What is wrong with a command's end.
pub fn of_command(ran: &Ran, files: &Files) -> Option<(Fault, String)> {
    let panic = ran.stderr.lines().find(|line| line.contains("panicked at"));
    let place = || {
        panic.map_or_else(String::new, |line| {
            line.split("panicked at")
                .nth(1)
                .unwrap_or_default()
                .trim()
                .to_owned()
        })
    };
    match ran.end {
        End::Hang => return Some((Fault::Hang, String::new())),
        End::Memory => return Some((Fault::Memory, String::new())),
        End::Signal(signal) => return Some((Fault::Signal, format!("signal {signal} {}", place()))),
        End::Exit(0..=2) => {}
        End::Exit(code) => return Some((Fault::ExitCode, format!("exit code {code} {}", place()))),
    }
    if panic.is_some() {
        return Some((Fault::PanicText, place()));
    }
    if ran.end == End::Exit(0) {
        return None;
    }
    let errors: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    let [error] = errors[..] else {
        return Some((
            Fault::NotOneLine,
            format!(
                "{} lines: {}",
                errors.len(),
                shape(ran.stderr.lines().last().unwrap_or_default())
            ),
        ));
    };
    if ran.stderr.lines().last() != Some(error) {
        return Some((
            Fault::NotOneLine,
            shape(ran.stderr.lines().last().unwrap_or_default()),
        ));
    }
    of_message(error, files, true)
}

/// A message without its numbers and names, so that messages of one origin are one finding.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '`' | '"' => {
                quoted = !quoted;
                shape.push('`');
            }
            _ if quoted => {}
            _ if letter.is_ascii_digit() => {
                if !shape.ends_with('#') {
                    shape.push('#');
                }
            }
            _ if letter.is_control() => shape.push('?'),
            _ => shape.push(letter),
        }
    }
    shape.chars().take(120).collect()
}
