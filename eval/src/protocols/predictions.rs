//! What a classifier said of each test row, kept beside the accuracies: for comparing two runs on the same rows, for the
//! table of classes and for the confusion matrix.

use polars::prelude::{Column, DataFrame};

use crate::metrics::classification::{hits_at, per_class_accuracy};
use crate::metrics::confusion::confusion_matrix;
use crate::{LabelSet, Result};

/// Predictions of one classifier on the test rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// Which of several classifiers of one run, for instance `20` for k = 20; none where there is only one.
    pub k: Option<usize>,
    /// Class of each test row; none where a score is NaN.
    pub classes: Vec<Option<u32>>,
}

/// The class that ranks first in the sense of `metrics::classification::rank_of`: the greatest score, of equals the
/// highest class. None when a score is NaN, for then no class counts as a hit.
pub fn predicted_class<T: PartialOrd + Copy>(scores: &[T]) -> Option<u32> {
    let mut best: Option<(usize, T)> = None;
    for (class, &score) in scores.iter().enumerate() {
        score.partial_cmp(&score)?; // NaN alone has no order
        if best.is_none_or(|(_, highest)| score >= highest) {
            best = Some((class, score));
        }
    }
    best.map(|(class, _)| class as u32)
}

impl Predictions {
    /// Whether each row is right.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn right(&self, labels: &[u32]) -> Vec<bool> {
        assert_eq!(self.classes.len(), labels.len(), "one label a row");
        let pairs = self.classes.iter().zip(labels);
        pairs.map(|(class, &label)| *class == Some(label)).collect()
    }

    /// The table of classes: `class`, `n`, `accuracy`, those without test rows left out.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn per_class(&self, labels: &[u32], classes: &LabelSet) -> Result<DataFrame> {
        let ranks: Vec<usize> = self
            .right(labels)
            .iter()
            .map(|&right| usize::from(!right))
            .collect();
        let accuracies = per_class_accuracy(&hits_at(&ranks, 1), labels, classes.len());
        let mut counts = vec![0u64; classes.len()];
        labels.iter().for_each(|&label| counts[label as usize] += 1);
        let present: Vec<usize> = (0..classes.len()).filter(|&class| counts[class] > 0).collect();
        let names: Vec<&str> = present
            .iter()
            .map(|&class| classes.names[class].as_str())
            .collect();
        let n: Vec<u64> = present.iter().map(|&class| counts[class]).collect();
        let accuracy: Vec<Option<f64>> = present.iter().map(|&class| accuracies[class]).collect();
        let columns = vec![
            Column::new("class".into(), names),
            Column::new("n".into(), n),
            Column::new("accuracy".into(), accuracy),
        ];
        Ok(DataFrame::new(present.len(), columns)?)
    }

    /// The confusion matrix: column `label` and one column a class with the rows of that label taken for it.
    ///
    /// # Errors
    /// Two classes of one name, or a class called `label`.
    pub fn confusion(&self, labels: &[u32], classes: &LabelSet) -> Result<DataFrame> {
        let n = classes.len();
        let counts = confusion_matrix(labels, &self.classes, n);
        let mut columns = vec![Column::new("label".into(), classes.names.clone())];
        for (class, name) in classes.names.iter().enumerate() {
            let column: Vec<u64> = (0..n).map(|label| counts[label * n + class]).collect();
            columns.push(Column::new(name.as_str().into(), column));
        }
        Ok(DataFrame::new(n, columns)?)
    }
}

/// `row`, `label`, `predicted`, `correct` (and `k` where there are several classifiers, one after the other); `rows` are
/// the places of the test rows in their source.
///
/// # Errors
/// Whatever Polars has against the columns; none is known.
pub fn table(
    predictions: &[Predictions],
    rows: &[u64],
    labels: &[u32],
    classes: &LabelSet,
) -> Result<DataFrame> {
    let times = predictions.len();
    let name = |class: u32| classes.names[class as usize].as_str();
    let of_labels: Vec<&str> = labels.iter().map(|&label| name(label)).collect();
    let predicted: Vec<Option<&str>> = predictions
        .iter()
        .flat_map(|one| one.classes.iter().map(|class| class.map(name)))
        .collect();
    let correct: Vec<bool> = predictions.iter().flat_map(|one| one.right(labels)).collect();
    let mut columns = vec![
        Column::new("row".into(), rows.repeat(times)),
        Column::new("label".into(), of_labels.repeat(times)),
        Column::new("predicted".into(), predicted),
        Column::new("correct".into(), correct),
    ];
    if predictions.iter().any(|one| one.k.is_some()) {
        let ks: Vec<Option<u64>> = predictions
            .iter()
            .flat_map(|one| vec![one.k.map(|k| k as u64); rows.len()])
            .collect();
        columns.insert(0, Column::new("k".into(), ks));
    }
    Ok(DataFrame::new(times * rows.len(), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::classification::rank_of;
    use proptest::prelude::*;

    fn classes() -> LabelSet {
        LabelSet::from_labels(["cat", "dog", "eel"])
    }

    #[test]
    fn tables_name_the_classes() {
        let one = Predictions {
            k: None,
            classes: vec![Some(0), Some(1), None, Some(1)],
        };
        let labels = [0, 0, 1, 1];
        let per_class = one.per_class(&labels, &classes()).unwrap();
        assert_eq!(per_class.height(), 2, "no test row shows an eel");
        assert_eq!(
            per_class.column("accuracy").unwrap().f64().unwrap().get(0),
            Some(0.5)
        );
        let confusion = one.confusion(&labels, &classes()).unwrap();
        let dogs: Vec<u64> = confusion
            .column("dog")
            .unwrap()
            .u64()
            .unwrap()
            .iter()
            .flatten()
            .collect();
        assert_eq!(dogs, [1, 1, 0]);
        let both = [one.clone(), Predictions { k: Some(5), ..one }];
        let table = table(&both, &[7, 8, 9, 10], &labels, &classes()).unwrap();
        assert_eq!(table.height(), 8);
        let correct: Vec<bool> = table
            .column("correct")
            .unwrap()
            .bool()
            .unwrap()
            .iter()
            .flatten()
            .collect();
        assert_eq!(correct[..4], [true, false, false, true]);
        assert_eq!(table.column("k").unwrap().u64().unwrap().get(7), Some(5));
    }

    proptest! {
        #[test]
        fn the_predicted_class_is_the_one_that_ranks_first(
            scores in prop::collection::vec(prop_oneof![(-2i8..3).prop_map(f32::from), Just(f32::NAN)], 1..8)
        ) {
            let first = (0..scores.len() as u32).find(|&class| rank_of(&scores, class) == 0);
            let alone = scores.len() == 1 && scores[0].is_nan();
            prop_assert_eq!(predicted_class(&scores), if alone { None } else { first });
        }
    }
}
