//! Errors of the toolkit: each says in one line which file, field or tensor is at fault, what was expected and what
//! was found, and knows the exit code it ends a command with.

use std::path::{Path, PathBuf};

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

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Models(error.into())
    }
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

    /// This error with the file that the values at fault stand in, where it is about what a user gave and does not name the
    /// file already.
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().display().to_string();
        let text = self.to_string();
        match self {
            Self::Io { .. } => self,
            _ if self.exit_code() != 2 || text.starts_with(&path) => self,
            _ => Self::input(path, text),
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

/// `text` in one line of at most `longest` letters: readers of other formats answer with several, and quote what they read.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(longest) {
        None => line,
        Some((end, _)) => format!("{} ...", line[..end].trim_end()),
    }
}

/// What the reader of TOML says, in one line: with the names of all fields that there are it is long.
pub(crate) fn toml_line(error: &toml::de::Error) -> String {
    one_line(&error.to_string(), 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_a_file_s_values_names_the_file_once() {
        let message = |error: Error| error.in_file("a/recipe.toml").to_string();
        assert_eq!(
            message(Error::input("steps", "expected a number")),
            "a/recipe.toml: steps: expected a number"
        );
        assert_eq!(
            message(Error::input("a/recipe.toml: steps", "expected a number")),
            "a/recipe.toml: steps: expected a number"
        );
        // What went wrong by itself is not the file's fault.
        assert_eq!(
            message(Error::failed("step 3", "out of memory")),
            "step 3: out of memory"
        );
    }

    #[test]
    fn lines_are_joined_and_cut() {
        assert_eq!(one_line("a\n  b\n\n", 10), "a b");
        assert_eq!(one_line("äöü xyz", 3), "äöü ...");
    }
}
