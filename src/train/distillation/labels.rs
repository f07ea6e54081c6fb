//! Labels of a source's images as class numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::data::Source;
use crate::{Error, Result};

/// Stands for a row without a label.
const NONE: u32 = u32::MAX;

/// The class of every row, classes numbered in the order of their names.
#[derive(Debug, Clone)]
pub struct Labels {
    by_row: Vec<u32>,
    classes: usize,
}

impl Labels {
    /// Those of `source`.
    ///
    /// # Errors
    /// A source without any label.
    pub fn read(source: &dyn Source) -> Result<Self> {
        let labels = || (0..source.len()).map(|row| source.record(row).label);
        let names: BTreeSet<String> = labels().flatten().collect();
        if names.is_empty() {
            let reason = "expected 0 for a source without labels, found more";
            return Err(Error::input("distill.label_weight", reason));
        }
        let numbers: BTreeMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
        let number = |label: Option<String>| label.and_then(|label| numbers.get(label.as_str()).copied());
        Ok(Self {
            by_row: labels().map(|label| number(label).unwrap_or(NONE)).collect(),
            classes: names.len(),
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of `row`, if it has a label.
    pub fn class(&self, row: u64) -> Option<u32> {
        let class = self.by_row.get(usize::try_from(row).ok()?);
        class.copied().filter(|class| *class != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    #[test]
    fn classes_are_numbered_by_name_and_rows_may_lack_one() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.csv");
        std::fs::write(&list, "path,label\na.png,pear\nb.png,apple\nc.png,\nd.png,pear\n").unwrap();
        let source = data::open(list.to_str().unwrap()).unwrap();
        let labels = Labels::read(source.as_ref()).unwrap();
        assert_eq!(labels.classes(), 2);
        let classes: Vec<_> = (0..4).map(|row| labels.class(row)).collect();
        assert_eq!(classes, [Some(1), Some(0), None, Some(1)]);
    }

    #[test]
    fn a_source_without_labels_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.csv");
        std::fs::write(&list, "path\na.png\n").unwrap();
        let source = data::open(list.to_str().unwrap()).unwrap();
        let error = Labels::read(source.as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("distill.label_weight: expected 0"), "{error}");
    }
}
