//! The verdict on every row, and `list.parquet`, which keeps it: `row`, `path`, `label`, `kept`, `reason`, the group that the
//! row belongs to (`component` or `cluster`), `of` and `similarity` (the row that decided and its cosine), and `source` where
//! the images are rows of a source and no files. `train --data` reads the rows that are kept.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use macula_eval::Error as EvalError;
use polars::prelude::{Column, DataFrame, ParquetWriter};

use super::origin::Origin;
use crate::tables::Table;
use crate::{Error, Result, files};

/// Name of the list that every step writes.
pub const LIST_FILE: &str = "list.parquet";
/// Reason of a row that stays.
pub(crate) const KEPT: &str = "kept";
/// Reason of a row that the list given with `--list` does not name.
const NOT_LISTED: &str = "not in the list";

/// A verdict on every row of a feature folder or source.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Place of each row in its source.
    pub rows: Vec<u64>,
    /// Path of each row in the features.
    pub paths: Vec<String>,
    /// Label of each row, where there is one.
    pub labels: Vec<Option<String>>,
    /// Whether it stays.
    pub kept: Vec<bool>,
    /// Why.
    pub reasons: Vec<Cow<'static, str>>,
    /// Component or cluster.
    pub groups: Vec<Option<u32>>,
    /// The row that decided: the copy that is kept, the evaluation or seed row that it is near.
    pub of: Vec<Option<u64>>,
    /// Cosine similarity to that row.
    pub similarities: Vec<Option<f32>>,
    /// Whether this step judged the row; others left earlier.
    pub judged: Vec<bool>,
    group: &'static str,
}

impl Ledger {
    /// All rows kept.
    pub(crate) fn new(
        rows: Vec<u64>,
        paths: Vec<String>,
        labels: Vec<Option<String>>,
        group: &'static str,
    ) -> Self {
        let n = rows.len();
        Self {
            rows,
            paths,
            labels,
            kept: vec![true; n],
            reasons: vec![Cow::Borrowed(KEPT); n],
            groups: vec![None; n],
            of: vec![None; n],
            similarities: vec![None; n],
            judged: vec![true; n],
            group,
        }
    }

    /// Leaves out the rows that are not among `judged`, for the reason that the earlier list gives.
    pub(crate) fn narrow(&mut self, judged: &[usize], earlier: Option<&Earlier>) {
        let mut is_judged = vec![false; self.rows.len()];
        judged.iter().for_each(|&place| is_judged[place] = true);
        for (place, _) in is_judged.iter().enumerate().filter(|(_, judged)| !**judged) {
            let reason = earlier
                .and_then(|earlier| earlier.verdict(self.rows[place]))
                .map(|v| v.reason.clone());
            self.kept[place] = false;
            self.reasons[place] = reason.map_or(Cow::Borrowed(NOT_LISTED), Cow::Owned);
        }
        self.judged = is_judged;
    }

    /// Drops the row at `place`.
    pub(crate) fn drop_row(&mut self, place: usize, reason: impl Into<Cow<'static, str>>) {
        self.kept[place] = false;
        self.reasons[place] = reason.into();
    }

    /// Rows that this step judged.
    pub fn n_judged(&self) -> usize {
        self.judged.iter().filter(|judged| **judged).count()
    }

    /// Rows that stay.
    pub fn n_kept(&self) -> usize {
        self.kept.iter().filter(|kept| **kept).count()
    }

    /// (kept, reason, rows) of the rows judged, kept ones first, then the most frequent reasons.
    pub fn tally(&self) -> Vec<(bool, String, usize)> {
        let mut tally: BTreeMap<(bool, &str), usize> = BTreeMap::new();
        let rows = self.kept.iter().zip(&self.reasons).zip(&self.judged);
        for ((&kept, reason), _) in rows.filter(|(_, judged)| **judged) {
            *tally.entry((kept, reason)).or_default() += 1;
        }
        let mut rows: Vec<(bool, String, usize)> = tally
            .into_iter()
            .map(|((kept, reason), count)| (kept, reason.to_owned(), count))
            .collect();
        rows.sort_by(|a, b| b.0.cmp(&a.0).then(b.2.cmp(&a.2)));
        rows
    }

    /// Entropy of the labels over the logarithm of their number, 0 to 1, of the rows judged and of those kept; none where
    /// rows have no label or all have the same.
    pub fn label_entropies(&self) -> Option<(f64, f64)> {
        let classes: std::collections::BTreeSet<&str> = self
            .labels
            .iter()
            .zip(&self.judged)
            .filter(|(_, judged)| **judged)
            .map(|(label, _)| label.as_deref())
            .collect::<Option<_>>()?;
        if classes.len() < 2 {
            return None;
        }
        let entropy = |among: &[bool]| {
            let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
            for (label, _) in self.labels.iter().zip(among).filter(|(_, among)| **among) {
                *counts.entry(label.as_deref().unwrap_or_default()).or_default() += 1.0;
            }
            let total: f64 = counts.values().sum();
            let terms = counts
                .values()
                .map(|count| -(count / total) * (count / total).ln());
            terms.sum::<f64>() / (classes.len() as f64).ln()
        };
        Some((entropy(&self.judged), entropy(&self.kept)))
    }

    /// The list as a table; `origin` says where the images lie.
    ///
    /// # Errors
    /// What Polars says.
    pub(crate) fn to_frame(&self, origin: &Origin) -> Result<DataFrame> {
        let located = self
            .rows
            .iter()
            .zip(&self.paths)
            .map(|(&row, path)| origin.locate(row, path));
        let (paths, sources): (Vec<String>, Vec<Option<&str>>) = located.unzip();
        let reasons: Vec<&str> = self.reasons.iter().map(Cow::as_ref).collect();
        let labels: Vec<Option<&str>> = self.labels.iter().map(Option::as_deref).collect();
        let mut columns = vec![
            Column::new("row".into(), self.rows.as_slice()),
            Column::new("path".into(), paths),
            Column::new("label".into(), labels),
            Column::new("kept".into(), self.kept.as_slice()),
            Column::new("reason".into(), reasons),
            Column::new(self.group.into(), self.groups.as_slice()),
            Column::new("of".into(), self.of.as_slice()),
            Column::new("similarity".into(), self.similarities.as_slice()),
        ];
        if sources.iter().any(Option::is_some) {
            columns.push(Column::new("source".into(), sources));
        }
        Ok(DataFrame::new(self.rows.len(), columns).map_err(EvalError::from)?)
    }

    /// Writes the list to `path`, whole.
    ///
    /// # Errors
    /// The system's or Polars' word with the path.
    pub(crate) fn write(&self, path: &Path, origin: &Origin) -> Result<()> {
        let mut frame = self.to_frame(origin)?;
        files::write_whole(path, |file| {
            ParquetWriter::new(file)
                .finish(&mut frame)
                .map_err(EvalError::from)?;
            Ok(())
        })
    }
}

/// The verdict of an earlier list on one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) row: u64,
    pub(crate) path: String,
    pub(crate) kept: bool,
    pub(crate) reason: String,
}

/// A row's number; spreadsheets write some with a fraction of nothing.
fn row_number(text: Option<&str>) -> Option<u64> {
    let text = text?;
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

/// The list of an earlier step.
#[derive(Debug)]
pub(crate) struct Earlier {
    verdicts: Vec<Verdict>, // ascending by row
}

impl Earlier {
    /// Reads `list.parquet` or `list.csv`: column `row`, and `kept` (all rows are kept without it), `reason`, `path`.
    ///
    /// # Errors
    /// A file that cannot be read, no column `row`, values of another kind, a row that is listed twice.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let table = Table::open(path)?;
        let name = || path.display().to_string();
        let unfit = |column: &str, expected: &str| {
            Error::input(name(), format!("column `{column}`: expected {expected}"))
        };
        let rows = table.text("row")?.ok_or_else(|| {
            let found = table.names().join(", ");
            Error::input(name(), format!("expected a column `row`, found {found}"))
        })?;
        let texts = |column: &str| -> Result<Option<Vec<String>>> {
            let found = table.text(column)?;
            Ok(found.map(|texts| texts.into_iter().map(Option::unwrap_or_default).collect()))
        };
        let (paths, kept, reasons) = (texts("path")?, texts("kept")?, texts("reason")?);
        let mut verdicts = Vec::with_capacity(rows.len());
        for (place, row) in rows.into_iter().enumerate() {
            let text =
                |column: &Option<Vec<String>>| column.as_ref().map_or(String::new(), |c| c[place].clone());
            let kept = match kept.as_ref().map(|kept| kept[place].as_str()) {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    return Err(unfit(
                        "kept",
                        &format!("true or false, found `{other}` in row {place}"),
                    ));
                }
            };
            verdicts.push(Verdict {
                row: row_number(row.as_deref()).ok_or_else(|| {
                    let found = row.as_deref().unwrap_or("none");
                    unfit(
                        "row",
                        &format!("whole numbers from 0, one in every row, found {found} in row {place}"),
                    )
                })?,
                path: text(&paths),
                kept,
                reason: text(&reasons),
            });
        }
        verdicts.sort_by_key(|verdict| verdict.row);
        if let Some(pair) = verdicts.windows(2).find(|pair| pair[0].row == pair[1].row) {
            return Err(Error::input(
                name(),
                format!("expected each row once, found row {} twice", pair[0].row),
            ));
        }
        Ok(Self { verdicts })
    }

    /// The verdict on `row`, where the list has one.
    pub(crate) fn verdict(&self, row: u64) -> Option<&Verdict> {
        let place = self
            .verdicts
            .binary_search_by_key(&row, |verdict| verdict.row)
            .ok()?;
        Some(&self.verdicts[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_labels() {
        let labels = ["a", "a", "a", "b"].map(|label| Some(label.to_owned())).to_vec();
        let mut ledger = Ledger::new(vec![0, 1, 2, 3], vec![String::new(); 4], labels, "component");
        ledger.drop_row(0, "copy");
        ledger.drop_row(1, "copy");
        let (before, after) = ledger.label_entropies().unwrap();
        assert!((before - 0.811_278_124).abs() < 1e-8 && (after - 1.0).abs() < 1e-12);
        assert_eq!(
            ledger.tally(),
            [(true, "kept".to_owned(), 2), (false, "copy".to_owned(), 2)]
        );
        ledger.labels[2] = None;
        assert_eq!(ledger.label_entropies(), None);
    }

    #[test]
    fn a_list_is_read_back_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Earlier::read(&path).map_err(|error| error.to_string())
        };
        let list = read("row,path,kept,reason\n7,a.png,false,copy\n3,b.png,true,kept\n").unwrap();
        assert_eq!(list.verdict(7).unwrap().reason, "copy");
        assert!(list.verdict(3).unwrap().kept && list.verdict(4).is_none());
        assert!(read("row\n5\n").unwrap().verdict(5).unwrap().kept);
        for (text, word) in [
            ("path\na.png\n", "column `row`"),
            ("row\nfive\n", "whole numbers"),
            ("row,kept\n1,perhaps\n", "perhaps"),
            ("row\n1\n1\n", "twice"),
        ] {
            let message = read(text).unwrap_err();
            assert!(
                message.contains(word) && message.contains("list.csv"),
                "{message}"
            );
        }
    }
}
