//! The one boundary around the reader of Parquet. It trusts what a file says of itself and panics where that is wrong; here
//! such a panic becomes an error that names the file, and nothing of it is printed.

use std::any::Any;
use std::path::Path;

use polars::prelude::PolarsResult;

use crate::files::lossless;
use crate::quiet::quietly;
use crate::{Error, Result};

/// Runs `read`, which reads the Parquet file `path` on this thread; its errors and panics become an error of one line.
///
/// # Errors
/// What `read` says, or that it panicked.
pub fn guarded<T>(path: &Path, read: impl FnOnce() -> PolarsResult<T>) -> Result<T> {
    let outcome = quietly(read);
    let reason = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => words(panic.as_ref()).to_owned(),
    };
    let reason = reason.lines().next().unwrap_or_default();
    Err(Error::input(
        lossless(path),
        format!("damaged, or no Parquet file that can be read: {reason}"),
    ))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("its reader gave up")
}

#[cfg(test)]
mod tests {
    use polars::prelude::polars_err;

    use super::*;

    #[test]
    fn errors_and_panics_name_the_file_in_one_line() {
        let guarded = |read: fn() -> PolarsResult<u8>| {
            let read = guarded(Path::new("a.parquet"), read);
            read.map_err(|error| error.to_string())
        };
        assert_eq!(guarded(|| Ok(7)), Ok(7));
        let failed = guarded(|| Err(polars_err!(ComputeError: "no\nmore"))).unwrap_err();
        let panicked = guarded(|| panic!("{} of {}", 3, 2)).unwrap_err();
        assert!(
            failed.starts_with("a.parquet: damaged") && failed.ends_with("no"),
            "{failed}"
        );
        assert!(panicked.ends_with(": 3 of 2"), "{panicked}");
    }
}
