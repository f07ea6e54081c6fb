//! Errors of the library as exceptions: the classes are Python's own (`macula/_errors.py`), chosen by kind, with the line that
//! the command would print.

use macula::{Error, ErrorKind};
use pyo3::prelude::*;

/// The exception that says what `error` says.
pub fn raised(error: &Error) -> PyErr {
    let kind = match error.kind() {
        ErrorKind::Setting => "setting",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Mismatch => "mismatch",
        ErrorKind::Exists => "exists",
        ErrorKind::NotFinite => "not_finite",
        ErrorKind::Io => "io",
        ErrorKind::Failed => "failed",
        _ => "input",
    };
    let text = error.to_string();
    let mut line = text.lines().collect::<Vec<_>>().join("; ");
    // The library's name of what callers give as `k`.
    if let Some(reason) = line.strip_prefix("ks: ") {
        line = format!("k: {reason}");
    }
    let made = Python::attach(|py| -> PyResult<PyErr> {
        let make = py.import("macula._errors")?.getattr("make")?;
        Ok(PyErr::from_value(make.call1((kind, line))?))
    });
    made.unwrap_or_else(|error| error)
}

/// The result of a protocol or a short piece of work, as Python has it.
pub fn returned<T>(result: macula::Result<T>) -> PyResult<T> {
    result.map_err(|error| raised(&error))
}
