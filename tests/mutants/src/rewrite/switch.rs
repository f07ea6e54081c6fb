//! The module that the copy's package gets: which mutant is on, and which have been reached.

/// The environment variable that names the mutant that is on; 0 or nothing for none.
pub const MUTANT: &str = "MACULA_MUTANT";

/// The environment variable that names a file: every mutant that is reached is written there once a process.
pub const REACHED: &str = "MACULA_MUTANTS_REACHED";

/// Its text, for mutants 1 to `mutants`.
pub fn text(mutants: usize) -> String {
    TEXT.replace("COUNT", &(mutants + 1).to_string())
        .replace("MUTANT_VARIABLE", MUTANT)
        .replace("REACHED_VARIABLE", REACHED)
}

const TEXT: &str = r#"//! Which mutant is on.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

const UNREAD: u32 = u32::MAX;
const RECORD: u32 = u32::MAX - 1;
static ON: AtomicU32 = AtomicU32::new(UNREAD);
static REACHED: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

/// Whether `mutant` is on.
#[inline(always)]
pub fn on(mutant: u32) -> bool {
    let on = ON.load(Relaxed);
    if on < RECORD { on == mutant } else { first_or_record(mutant) }
}

#[cold]
#[inline(never)]
fn first_or_record(mutant: u32) -> bool {
    let file = std::env::var_os("REACHED_VARIABLE");
    let asked = std::env::var("MUTANT_VARIABLE").ok().and_then(|text| text.parse().ok());
    let on = if file.is_some() { RECORD } else { asked.unwrap_or(0) };
    ON.store(on, Relaxed);
    let Some(file) = file else {
        return on == mutant;
    };
    if !REACHED[mutant as usize].swap(true, Relaxed) {
        let line = format!("{mutant}\n");
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    false
}
"#;
