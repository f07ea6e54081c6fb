//! Printing results: stdout may be a pipe that closes early, and that is no error.

use std::io::{ErrorKind, Write as _};
use std::path::Path;

use macula_eval::table::EvalResult;

use crate::lock::FolderLock;
use crate::report::RESULT_FILE;
use crate::{Error, Result, files};

/// Prints `text` and a line end to stdout.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", error)),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON and nothing else.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::failed("json", e.to_string()))?;
    print(&text)
}

/// Takes the folder of a result for this run, which is refused where it holds one, unless `force`.
pub fn take_result_folder(out: Option<&Path>, force: bool) -> Result<Option<FolderLock>> {
    let Some(out) = out else { return Ok(None) };
    let lock = FolderLock::of(out)?;
    files::refuse_existing(&out.join(RESULT_FILE), force)?;
    Ok(Some(lock))
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
