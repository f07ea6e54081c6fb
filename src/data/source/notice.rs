//! What a reader of sources tells its user: each thing once a process, and what was passed over in one line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Says `text` on stderr, unless it was said before: some verbs open a source more than once.
pub(super) fn say_once(text: String) {
    if is_new(&text) {
        tracing::info!("{text}");
    }
}

/// [`say_once`] as a warning.
pub(super) fn warn_once(text: String) {
    if is_new(&text) {
        tracing::warn!("{text}");
    }
}

fn is_new(text: &str) -> bool {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.insert(text.to_owned())
}

/// What a source holds beside its images, by reason.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    reasons: BTreeMap<&'static str, Entries>,
}

/// What was passed over for one reason.
#[derive(Debug, Default)]
struct Entries {
    count: u64,
    /// The first by name, so that the order in which a folder is listed does not matter.
    first: String,
    extensions: BTreeSet<String>,
}

/// Extensions that a line names.
const NAMED_EXTENSIONS: usize = 6;

impl PassedOver {
    /// Counts the entry `name`; `reason` is said with the number before it.
    pub(super) fn count(&mut self, reason: &'static str, name: &str) {
        let entries = self.reasons.entry(reason).or_default();
        if entries.count == 0 || name < entries.first.as_str() {
            name.clone_into(&mut entries.first);
        }
        entries.count += 1;
    }

    /// Counts a file that is of no kind of image.
    pub(super) fn count_kind(&mut self, name: &str) {
        const REASON: &str = "of kinds that are not read";
        self.count(REASON, name);
        let file = name.rsplit('/').next().unwrap_or_default();
        let extension = file.rsplit_once('.').map_or(String::new(), |(_, extension)| {
            format!(".{}", extension.to_lowercase())
        });
        if let Some(entries) = self.reasons.get_mut(REASON)
            && !extension.is_empty()
        {
            entries.extensions.insert(extension);
        }
    }

    /// One line for all, if anything was passed over: `passed over: 2 hidden (first: .git), 1 of ..`.
    pub(super) fn line(&self) -> Option<String> {
        let counted = |(reason, entries): (&&str, &Entries)| {
            let extensions: Vec<&str> = entries.extensions.iter().map(String::as_str).collect();
            let mut named = String::new();
            if let Some(some) = extensions.get(..extensions.len().min(NAMED_EXTENSIONS))
                && !some.is_empty()
            {
                let more = if extensions.len() > some.len() { ", .." } else { "" };
                named = format!("{}{more}; ", some.join(", "));
            }
            format!("{} {reason} ({named}first: {})", entries.count, entries.first)
        };
        let lines: Vec<String> = self.reasons.iter().map(counted).collect();
        (!lines.is_empty()).then(|| format!("passed over: {}", lines.join(", ")))
    }

    /// Says the line about `source`.
    pub(super) fn say(&self, source: &str) {
        if let Some(line) = self.line() {
            say_once(format!("{source}: {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_passed_over_is_one_line() {
        let mut passed = PassedOver::default();
        assert_eq!(passed.line(), None);
        passed.count("hidden", "b/.x");
        passed.count("hidden", ".git");
        for name in ["a/x.HEIC", "a/b.txt", "a/noext", "a/c.txt"] {
            passed.count_kind(name);
        }
        let expected =
            "passed over: 2 hidden (first: .git), 4 of kinds that are not read (.heic, .txt; first: a/b.txt)";
        assert_eq!(passed.line().as_deref(), Some(expected));
    }
}
