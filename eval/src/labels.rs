//! Class names of two sides that should agree: which of the test rows have a class that the training rows lack, and
//! which of those are only spelt otherwise (`0` and `0.0`, `Cat` and `cat`, a blank at the end).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::LabelSet;

/// Labels that a message names; the others are counted.
const NAMED: usize = 5;

/// A label that the other side lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownLabel {
    /// The label.
    pub name: String,
    /// Rows that have it.
    pub rows: usize,
    /// A class of the other side that differs from it in spelling alone.
    pub meant: Option<String>,
}

/// The labels that the other side lacks, of which there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownLabels {
    /// Ordered as [`LabelSet`] orders classes.
    pub labels: Vec<UnknownLabel>,
    /// Rows of this side, with whatever label.
    pub of_rows: usize,
}

impl UnknownLabels {
    /// Those of `labels` that are not among `known`; none where all are.
    pub fn find<'a>(known: &LabelSet, labels: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut of_rows = 0;
        let there: BTreeSet<&str> = known.names.iter().map(String::as_str).collect();
        let mut unknown: BTreeMap<&str, usize> = BTreeMap::new();
        for label in labels {
            of_rows += 1;
            if !there.contains(label) {
                *unknown.entry(label).or_default() += 1;
            }
        }
        if unknown.is_empty() {
            return None;
        }
        // Of several classes with one spelling, the first is suggested.
        let mut by_spelling = BTreeMap::new();
        for name in &known.names {
            by_spelling.entry(spelling(name)).or_insert(name);
        }
        let ordered = LabelSet::from_labels(unknown.keys().copied());
        let labels = ordered.names.into_iter().map(|name| UnknownLabel {
            rows: unknown[name.as_str()],
            meant: by_spelling.get(&spelling(&name)).map(|name| (*name).clone()),
            name,
        });
        Some(Self {
            labels: labels.collect(),
            of_rows,
        })
    }

    /// Rows with such a label.
    pub fn rows(&self) -> usize {
        self.labels.iter().map(|label| label.rows).sum()
    }

    /// Those that a class of the other side is spelt like; none where there is no such label.
    pub fn misspelt(&self) -> Option<Self> {
        let labels: Vec<_> = self
            .labels
            .iter()
            .filter(|label| label.meant.is_some())
            .cloned()
            .collect();
        (!labels.is_empty()).then_some(Self {
            labels,
            of_rows: self.of_rows,
        })
    }
}

/// ``2 classes in 5 of 40 rows: `0.0` (3 rows; is it `0`?), `7` (2 rows)``: those with a suggestion first, then those with
/// most rows.
impl fmt::Display for UnknownLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, rows) = (self.labels.len(), self.rows());
        let classes = if n == 1 { "class" } else { "classes" };
        write!(f, "{n} {classes} in {rows} of {} rows: ", self.of_rows)?;
        let mut labels: Vec<&UnknownLabel> = self.labels.iter().collect();
        labels.sort_by_key(|label| (label.meant.is_none(), std::cmp::Reverse(label.rows)));
        for (place, label) in labels.iter().take(NAMED).enumerate() {
            let before = if place == 0 { "" } else { ", " };
            let rows = if label.rows == 1 { "row" } else { "rows" };
            write!(f, "{before}`{}` ({} {rows}", label.name, label.rows)?;
            match &label.meant {
                Some(meant) => write!(f, "; is it `{meant}`?)")?,
                None => write!(f, ")")?,
            }
        }
        match n.saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Pairs of classes of one set that differ in spelling alone.
pub fn alike(classes: &LabelSet) -> Vec<(&str, &str)> {
    let mut first: BTreeMap<String, &str> = BTreeMap::new();
    let mut pairs = Vec::new();
    for name in &classes.names {
        match first.get(&spelling(name)) {
            Some(earlier) => pairs.push((*earlier, name.as_str())),
            None => {
                first.insert(spelling(name), name);
            }
        }
    }
    pairs
}

/// What two spellings of one class share: a number is its value; a word is without case, without blanks around it, and
/// with one kind of blank between its parts.
fn spelling(label: &str) -> String {
    // A byte-order mark and a blank of no width are no white space to Rust.
    let seen = |c: char| !c.is_whitespace() && !['\u{feff}', '\u{200b}'].contains(&c);
    let trimmed = label.trim_matches(|c: char| !seen(c));
    if let Some(number) = trimmed.parse::<f64>().ok().filter(|number| number.is_finite()) {
        return format!("{:e}", number + 0.0); // -0 and 0 are one
    }
    let lower = trimmed.to_lowercase();
    let parts = lower.split(|c: char| !seen(c) || c == '_' || c == '-');
    parts
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(known: &[&str], labels: &[&str]) -> Option<String> {
        let known = LabelSet::from_labels(known.iter().copied());
        UnknownLabels::find(&known, labels.iter().copied()).map(|unknown| unknown.to_string())
    }

    #[test]
    fn labels_that_both_sides_have_are_no_fault() {
        assert_eq!(found(&["a", "b"], &["a", "a"]), None);
        assert_eq!(found(&[], &[]), None);
    }

    #[test]
    fn they_are_named_and_their_rows_counted() {
        assert_eq!(
            found(&["a", "b"], &["a", "x", "x"]).unwrap(),
            "1 class in 2 of 3 rows: `x` (2 rows)"
        );
        let many = ["q1", "q2", "q3", "q4", "q5", "q6", "q7", "q7", "a"];
        assert_eq!(
            found(&["a"], &many).unwrap(),
            "7 classes in 8 of 9 rows: `q7` (2 rows), `q1` (1 row), `q2` (1 row), `q3` (1 row), `q4` (1 row) and 2 more"
        );
    }

    #[test]
    fn what_is_only_spelt_otherwise_is_suggested() {
        for (known, label) in [
            ("0", "0.0"),
            ("7", "07"),
            ("-1", "-1.00"),
            ("1000", "1e3"),
            ("cat", "Cat"),
            ("cat", "cat "),
            ("cat", "\u{feff}cat"),
            ("cat", "cat\u{a0}"),
            ("n 02", "n_02"),
            ("T-shirt/top", "t shirt/top"),
            ("Été", "été"),
        ] {
            for (known, label) in [(known, label), (label, known)] {
                assert_eq!(
                    found(&[known, "other"], &[label]).unwrap(),
                    format!("1 class in 1 of 1 rows: `{label}` (1 row; is it `{known}`?)")
                );
            }
        }
        for (known, label) in [
            ("1", "10"),
            ("cat", "cats"),
            ("nan", "inf"),
            ("a.b", "ab"),
            ("0", ""),
        ] {
            assert_eq!(
                found(&[known], &[label]).unwrap(),
                format!("1 class in 1 of 1 rows: `{label}` (1 row)")
            );
        }
    }

    #[test]
    fn the_misspelt_ones_come_first_and_stand_alone() {
        let known = LabelSet::from_labels(["0", "1"]);
        let unknown = UnknownLabels::find(&known, ["8", "8", "9", "1.0", "0"]).unwrap();
        assert_eq!(
            unknown.to_string(),
            "3 classes in 4 of 5 rows: `1.0` (1 row; is it `1`?), `8` (2 rows), `9` (1 row)"
        );
        assert_eq!(
            unknown.misspelt().unwrap().to_string(),
            "1 class in 1 of 5 rows: `1.0` (1 row; is it `1`?)"
        );
        let strangers = UnknownLabels::find(&known, ["8"]).unwrap();
        assert_eq!(strangers.misspelt(), None);
    }

    #[test]
    fn classes_of_one_set_may_be_alike() {
        let classes = LabelSet::from_labels(["Cat", "cat", "dog", "cat "]);
        assert_eq!(alike(&classes), [("Cat", "cat"), ("Cat", "cat ")]);
        assert!(alike(&LabelSet::from_labels(["1", "2"])).is_empty());
    }
}
