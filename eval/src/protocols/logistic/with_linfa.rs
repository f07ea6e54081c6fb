//! linfa's vocabulary for the same solver: `Fit` on a `Dataset<f32, L>` and `Predict` on arrays, with labels of any
//! ordered type. Errors of shape that linfa's traits cannot return are panics, as in linfa's own models.

use super::{LogisticModel, LogisticSolver, LogisticValidParams};
use crate::{Error, MatrixView, Result};
use linfa::dataset::{AsSingleTargets, DatasetBase, Label};
use linfa::traits::{Fit, PredictInplace};
use ndarray::{Array1, ArrayBase, CowArray, Data, Ix2};

/// A fitted model together with the labels that its class numbers stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledLogistic<L> {
    model: LogisticModel,
    classes: Vec<L>,
}

impl<L> LabelledLogistic<L> {
    /// The model on class numbers.
    pub fn model(&self) -> &LogisticModel {
        &self.model
    }

    /// The label of each class number, in ascending order.
    pub fn classes(&self) -> &[L] {
        &self.classes
    }
}

impl From<linfa::Error> for Error {
    fn from(error: linfa::Error) -> Self {
        Self::data("dataset", error.to_string())
    }
}

impl<S, T, L> Fit<ArrayBase<S, Ix2>, T, Error> for LogisticValidParams
where
    S: Data<Elem = f32>,
    T: AsSingleTargets<Elem = L>,
    L: Label,
{
    type Object = LabelledLogistic<L>;

    fn fit(&self, dataset: &DatasetBase<ArrayBase<S, Ix2>, T>) -> Result<Self::Object> {
        let targets = dataset.as_single_targets();
        let mut classes: Vec<L> = targets.iter().cloned().collect();
        classes.sort();
        classes.dedup();
        let labels: Vec<u32> = targets
            .iter()
            .map(|label| classes.partition_point(|class| class < label) as u32)
            .collect();
        let records = dataset.records().as_standard_layout();
        let model = LogisticSolver::new(view(&records)?, &labels, classes.len())?.fit(self, None)?;
        Ok(LabelledLogistic { model, classes })
    }
}

impl<S: Data<Elem = f32>, L: Label> PredictInplace<ArrayBase<S, Ix2>, Array1<L>> for LabelledLogistic<L> {
    fn predict_inplace(&self, x: &ArrayBase<S, Ix2>, y: &mut Array1<L>) {
        assert_eq!(x.nrows(), y.len(), "one target a row");
        assert_eq!(
            x.ncols(),
            self.model.dim(),
            "the width the model was trained with"
        );
        if x.is_empty() {
            return;
        }
        let records = x.as_standard_layout();
        let predicted = view(&records)
            .and_then(|view| self.model.predict(view))
            .unwrap_or_else(|error| panic!("{error}"));
        for (target, class) in y.iter_mut().zip(predicted) {
            *target = self.classes[class as usize].clone();
        }
    }

    fn default_target(&self, x: &ArrayBase<S, Ix2>) -> Array1<L> {
        Array1::default(x.nrows())
    }
}

fn view<'a>(records: &'a CowArray<'_, f32, Ix2>) -> Result<MatrixView<'a>> {
    let values = records
        .as_slice()
        .ok_or_else(|| Error::data("dataset", "expected records in row-major order"))?;
    MatrixView::new(values, records.nrows(), records.ncols())
}
