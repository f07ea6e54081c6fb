//! What can go wrong in an evaluation, each with the field or row at fault.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of range or does not fit the data.
    #[error("{field}: {reason}")]
    Config {
        /// The setting.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The features or labels cannot be evaluated.
    #[error("{what}: {reason}")]
    Data {
        /// Which matrix or labels, for instance `train features`.
        what: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Polars failed.
    #[error("table: {0}")]
    Table(#[from] polars::error::PolarsError),
}

impl Error {
    /// An [`Error::Config`] for `field`.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Data`] about `what`.
    pub fn data(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Data {
            what: what.into(),
            reason: reason.into(),
        }
    }
}
