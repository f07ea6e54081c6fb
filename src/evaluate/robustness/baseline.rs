//! The earlier result that corruption errors are measured against.

use std::path::Path;

use macula_eval::protocols::robustness::{Baseline, CLEAN, severity_column};
use serde_json::{Value, json};

use crate::data::SourceIdentity;
use crate::identity::{fingerprint_in, source_difference};
use crate::results::{StoredResult, read_all};
use crate::{Error, Result};

/// What both results must have been run with, and what it is called.
const SHARED: [(&str, &str); 4] = [
    ("corruptions", "corruptions"),
    ("severities", "severities"),
    ("classifier", "classifier"),
    ("test_rows_sha256", "test rows with SHA-256"),
];

/// A kept result of the same protocol on the same test rows.
pub(super) struct Earlier {
    stored: StoredResult,
    errors: Baseline,
}

impl Earlier {
    /// Reads the result at `path` (the file or its folder) and holds it against the `settings` of this run and its test
    /// images.
    ///
    /// # Errors
    /// One line that names the option and the file: no result, one of another protocol, or with other corruptions,
    /// severities, classifier or test rows.
    pub fn read(path: &Path, settings: &Value, test: &SourceIdentity) -> Result<Self> {
        let mut found = read_all(&[path.display().to_string()]).map_err(|error| match error {
            Error::Input { what, reason } => refused(&what, reason),
            other => other,
        })?;
        let stored = found.swap_remove(0);
        if !found.is_empty() {
            let reason = format!("expected one result, found {}", found.len() + 1);
            return Err(refused(&path.display().to_string(), reason));
        }
        if stored.task != "robustness" {
            let reason = format!("expected a result of eval robustness, found `{}`", stored.task);
            return Err(refused(&stored.file(), reason));
        }
        for (key, name) in SHARED {
            let theirs = stored.settings.get(key).unwrap_or(&Value::Null);
            if *theirs != settings[key] {
                let reason = format!("expected {name} {}, found {theirs}", settings[key]);
                return Err(refused(&stored.file(), reason));
            }
        }
        let made = fingerprint_in(&stored.settings, "test");
        if let Some(difference) = made.and_then(|made| source_difference(test, &made.source)) {
            return Err(refused(
                &stored.file(),
                format!("other test images: {difference}"),
            ));
        }
        if stored.settings.get("seed") != settings.get("seed") {
            tracing::warn!("{}: made with another seed, so that noise differs", stored.file());
        }
        let errors = errors(&stored, settings)?;
        Ok(Self { stored, errors })
    }

    /// Refuses a result whose classifier saw another number of training rows, or that has another number of test rows.
    ///
    /// # Errors
    /// Names the option, the file and both numbers.
    pub fn check_counts(&self, n_train: usize, n_test: usize) -> Result<()> {
        let counts = [
            ("classifier of", "training", n_train, self.stored.n_train),
            ("", "test", n_test, self.stored.n_test),
        ];
        for (of, rows, ours, theirs) in counts {
            if ours as u64 != theirs {
                let reason = format!("expected {of} {ours} {rows} rows, found {theirs}");
                return Err(refused(&self.stored.file(), reason.replace("  ", " ")));
            }
        }
        Ok(())
    }

    /// Its errors, in the order of this run.
    pub fn errors(&self) -> &Baseline {
        &self.errors
    }

    /// Which file, and which model it speaks of.
    pub fn describe(&self) -> Value {
        json!({ "file": self.stored.file(), "model": self.stored.settings.get("model") })
    }
}

fn refused(what: &str, reason: String) -> Error {
    Error::setting(format!("baseline {what}"), reason)
}

/// The table's errors; corruptions and severities are those of `settings`.
fn errors(stored: &StoredResult, settings: &Value) -> Result<Baseline> {
    let number = |corruption: &str, column: &str| {
        let row = stored
            .rows
            .iter()
            .find(|row| row.get("corruption").and_then(Value::as_str) == Some(corruption));
        let value = row.and_then(|row| row.get(column)).and_then(Value::as_f64);
        value.filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| {
            let reason =
                format!("expected a number from 0 to 1 in row `{corruption}`, column `{column}`, found none");
            refused(&stored.file(), reason)
        })
    };
    let list = |key: &str| settings[key].as_array().cloned().unwrap_or_default();
    let columns: Vec<String> = list("severities")
        .iter()
        .filter_map(Value::as_u64)
        .map(|severity| severity_column(severity as u8))
        .collect();
    let of_corruption = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        columns.iter().map(|column| number(name, column)).collect()
    };
    Ok(Baseline {
        clean: number(CLEAN, "error")?,
        errors: list("corruptions")
            .iter()
            .map(of_corruption)
            .collect::<Result<_>>()?,
    })
}
