//! Printing results: stdout may be a pipe that closes early, and that is no error.

use std::io::{ErrorKind, Write as _};
use std::path::Path;

use macula_eval::table::EvalResult;

use super::called;
use crate::{Error, Result};

/// Prints `text` and a line end to stdout, or gives it to the caller of [`super::call`].
pub fn print(text: &str) -> Result<()> {
    if called::takes(text) {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", error)),
        _ => Ok(()),
    }
}

/// `line` without characters that would steer a terminal, which a damaged file may bring into an error, and no longer than
/// somebody reads.
pub fn plain(line: &str) -> String {
    const LONGEST: usize = 2_000;
    let mut plain = String::new();
    for (count, character) in line.chars().enumerate() {
        if count == LONGEST {
            plain.push_str(" ..");
            break;
        }
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// Prints `value` as JSON and nothing else.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::failed("json", e.to_string()))?;
    print(&text)
}

/// Prints a result as a table or as JSON, and keeps it in `out` where that was asked for.
pub fn print_result(result: &EvalResult, json: bool, out: Option<&Path>) -> Result<()> {
    if let Some(folder) = out {
        result.save(folder)?;
    }
    if json {
        print_json(&result.to_json()?)
    } else {
        print(&result.to_text()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_steers_no_terminal_and_ends() {
        assert_eq!(plain("größer \u{1b}[2J\0\t`x`"), "größer \\u{1b}[2J\\u{0}\\t`x`");
        let long = plain(&"ä".repeat(5_000));
        assert!(long.ends_with("ä ..") && long.chars().count() == 2_003);
    }
}
