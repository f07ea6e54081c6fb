//! Errors of the toolkit: each says in one line which file, field or tensor is at fault, what was expected and what
//! was found, and knows the exit code it ends a command with.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the toolkit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user gave something that cannot be used: an argument, a file, a row.
    #[error("{what}: {reason}")]
    Input {
        /// The flag, file, column or row.
        what: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Something went wrong while running.
    #[error("{what}: {reason}")]
    Failed {
        /// The step, file or library.
        what: String,
        /// What happened, and what to do about it where that is known.
        reason: String,
    },
    /// A loss or a gradient of training is NaN or infinite.
    #[error("{what}: expected a finite number, found {value}")]
    NotFinite {
        /// The loss term, or the gradient norm of a sub-module.
        what: String,
        /// What was found.
        value: f64,
    },
    /// The operating system refused something.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A network or its files.
    #[error(transparent)]
    Models(#[from] macula_models::Error),
    /// An evaluation.
    #[error(transparent)]
    Eval(#[from] macula_eval::Error),
}

impl Error {
    /// An [`Error::Input`] about `what`.
    pub fn input(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Input {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Failed`] in `what`.
    pub fn failed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Failed {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    /// The exit code of a command that ends with this error: 2 for bad arguments or input, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        use macula_models::Error as Models;
        let missing = |source: &std::io::Error| u8::from(source.kind() == std::io::ErrorKind::NotFound) + 1;
        match self {
            Self::Input { .. } => 2,
            Self::Io { source, .. } | Self::Models(Models::Io { source, .. }) => missing(source),
            Self::Models(Models::Candle(_)) | Self::Failed { .. } | Self::NotFinite { .. } => 1,
            Self::Models(_) => 2,
            Self::Eval(macula_eval::Error::Config { .. } | macula_eval::Error::Data { .. }) => 2,
            Self::Eval(_) => 1,
        }
    }
}
