//! What a classifier's run keeps and prints beside its table.

use std::path::Path;

use macula_eval::LabelSet;
use macula_eval::labels::UnknownLabels;
use macula_eval::protocols::predictions::Predictions;
use macula_eval::table::EvalResult;

use super::output;
use crate::Result;
use crate::evaluate::{LabelledPair, NearDuplicates};
use crate::results::{per_class_result, save_predictions};

/// Predictions on the test rows, and what goes with them.
pub(super) struct Kept<'a> {
    /// One entry a classifier.
    pub predictions: &'a [Predictions],
    /// Place of each test row in its source.
    pub rows: &'a [u64],
    /// Class of each test row.
    pub labels: &'a [u32],
    /// The classes.
    pub classes: &'a LabelSet,
    /// Test labels that train lacks, where they are allowed.
    pub unknown: Option<&'a UnknownLabels>,
    /// What a leak check found, where one was asked for.
    pub leaks: Option<&'a NearDuplicates>,
}

impl<'a> Kept<'a> {
    /// What `predictions` say of the test rows of `pair`.
    pub fn new<F>(pair: &'a LabelledPair<F>, predictions: &'a [Predictions]) -> Self {
        Self {
            predictions,
            rows: &pair.test_rows,
            labels: &pair.test_labels,
            classes: &pair.classes,
            unknown: pair.unknown.as_ref(),
            leaks: None,
        }
    }

    /// Writes everything into folder `out`. `result.json` is written later: where it stands, this is whole.
    pub fn save(&self, out: &Path) -> Result<()> {
        save_predictions(out, self.predictions, self.rows, self.labels, self.classes)?;
        self.leaks.map_or(Ok(()), |leaks| leaks.save(out))
    }

    /// Prints the result and after it the table of classes; in JSON under the key `per_class`.
    pub fn print_with_classes(&self, result: &EvalResult, json: bool, out: Option<&Path>) -> Result<()> {
        let classes = per_class_result(self.predictions, self.labels, self.classes)?;
        if let Some(out) = out {
            result.save(out)?;
        }
        if json {
            let mut value = result.to_json()?;
            value["per_class"] = classes.to_json()?["rows"].take();
            return output::print_json(&value);
        }
        output::print(&format!("{}\n{}", result.to_text()?, classes.to_text()?))
    }
}
