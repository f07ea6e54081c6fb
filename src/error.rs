//! Errors of the toolkit: each says in one line which file, field or tensor is at fault, what was expected and what
//! was found, and knows the exit code it ends a command with.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the toolkit. [`Error::kind`] says what a caller may do about one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of a request is out of its range, or asks for what cannot be had.
    #[error("{field}: {reason}")]
    Setting {
        /// The setting's name, with its value behind it where that is short: `max_test`, `device cuda:1`.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The user gave something that cannot be used: an argument, a file, a row.
    #[error("{what}: {reason}")]
    Input {
        /// The flag, file, column or row.
        what: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// What is there was made from other data, settings or models than what is asked for.
    #[error("{what}: {reason}")]
    Mismatch {
        /// The file, folder or source.
        what: String,
        /// The first field that differs, with both values.
        reason: String,
    },
    /// Output that is there already and was not to be replaced.
    #[error("{path}: exists already")]
    Exists {
        /// The file or folder.
        path: PathBuf,
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

/// What kind of thing went wrong, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting: give another value.
    Setting,
    /// A file, source or argument that cannot be used as it is.
    Input,
    /// A file or folder that is not there.
    NotFound,
    /// What is there was made otherwise: go on elsewhere, or replace it.
    Mismatch,
    /// Output that is there already.
    Exists,
    /// Training has diverged.
    NotFinite,
    /// The operating system refused something.
    Io,
    /// Anything else that went wrong while running.
    Failed,
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

    /// An [`Error::Setting`] about `field`, as the setting is called in the library.
    pub fn setting(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Mismatch`] of `what`.
    pub fn mismatch(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Mismatch {
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

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        use macula_models::Error as Models;
        let system = |source: &std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        match self {
            Self::Setting { .. } | Self::Eval(macula_eval::Error::Config { .. }) => ErrorKind::Setting,
            Self::Input { .. } | Self::Eval(macula_eval::Error::Data { .. }) => ErrorKind::Input,
            Self::Mismatch { .. } => ErrorKind::Mismatch,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Io { source, .. } | Self::Models(Models::Io { source, .. }) => system(source),
            Self::NotFinite { .. } => ErrorKind::NotFinite,
            Self::Failed { .. } | Self::Models(Models::Candle(_)) | Self::Eval(_) => ErrorKind::Failed,
            Self::Models(_) => ErrorKind::Input,
        }
    }

    /// The exit code of a command that ends with this error: 2 for bad arguments or input, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::NotFinite | ErrorKind::Io | ErrorKind::Failed => 1,
            _ => 2,
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
    fn kinds_are_what_callers_match() {
        let io = |kind: std::io::ErrorKind| Error::io("a.png", kind.into());
        for (error, kind, code) in [
            (Error::setting("k", "expected 1"), ErrorKind::Setting, 2),
            (
                Error::mismatch("f/meta.json", "other images"),
                ErrorKind::Mismatch,
                2,
            ),
            (io(std::io::ErrorKind::NotFound), ErrorKind::NotFound, 2),
            (io(std::io::ErrorKind::PermissionDenied), ErrorKind::Io, 1),
            (Error::failed("step 3", "out of memory"), ErrorKind::Failed, 1),
            (
                macula_eval::Error::config("k", "expected 1").into(),
                ErrorKind::Setting,
                2,
            ),
        ] {
            assert_eq!((error.kind(), error.exit_code()), (kind, code), "{error}");
        }
    }

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
