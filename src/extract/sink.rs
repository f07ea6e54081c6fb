//! Where the pipeline's features go: a feature folder, or a matrix in memory.

use macula_eval::Matrix;

use super::folder::Features;
use crate::Result;

/// The rows of one part, in the order of the source.
#[derive(Debug, Default)]
pub struct PartRows {
    /// Place of each row in the source.
    pub rows: Vec<u64>,
    /// Path of each row.
    pub paths: Vec<String>,
    /// Label of each row, where there is one.
    pub labels: Vec<Option<String>>,
    /// Whether each row has features; a row without has nulls.
    pub present: Vec<bool>,
    /// One buffer an output: values of the rows that have features, row after row.
    pub values: Vec<Vec<f32>>,
    /// Failed rows: place, path, error.
    pub errors: Vec<(u64, String, String)>,
}

/// Takes the parts of an extraction, in the order of the source.
pub trait FeatureSink: Send {
    /// Takes the next part.
    ///
    /// # Errors
    /// Whatever keeps it from being kept; the extraction ends with that.
    fn write(&mut self, part: PartRows) -> Result<()>;
}

/// Keeps one output in memory.
#[derive(Debug)]
pub struct MatrixSink {
    output: usize,
    width: usize,
    values: Vec<f32>, // [n, width]
    rows: Vec<u64>,
    paths: Vec<String>,
    labels: Vec<Option<String>>,
    n_null: u64,
}

impl MatrixSink {
    /// For the model's output number `output`, of `width` values a row.
    pub fn new(output: usize, width: usize) -> Self {
        Self {
            output,
            width,
            values: Vec::new(),
            rows: Vec::new(),
            paths: Vec::new(),
            labels: Vec::new(),
            n_null: 0,
        }
    }

    /// The rows with features, as a feature folder's column gives them.
    ///
    /// # Errors
    /// None is known: every part holds as many values as rows.
    pub fn finish(self) -> Result<Features> {
        Ok(Features {
            matrix: Matrix::new(self.values, self.rows.len(), self.width)?,
            rows: self.rows,
            paths: self.paths,
            labels: self.labels,
            n_null: self.n_null,
        })
    }
}

impl FeatureSink for MatrixSink {
    fn write(&mut self, mut part: PartRows) -> Result<()> {
        self.values.append(&mut part.values[self.output]);
        let rows = part.rows.into_iter().zip(part.paths).zip(part.labels);
        for (((row, path), label), present) in rows.zip(part.present) {
            if !present {
                self.n_null += 1;
                continue;
            }
            self.rows.push(row);
            self.paths.push(path);
            self.labels.push(label);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_features_are_counted_and_the_others_kept_in_order() {
        let mut sink = MatrixSink::new(1, 2);
        for first in [0, 3] {
            sink.write(PartRows {
                rows: vec![first, first + 1, first + 2],
                paths: ["a", "b", "c"].map(str::to_owned).to_vec(),
                labels: vec![None, Some("x".to_owned()), Some("y".to_owned())],
                present: vec![true, false, true],
                values: vec![vec![9.0; 2], vec![first as f32, 1.0, 2.0, 3.0]],
                errors: Vec::new(),
            })
            .unwrap();
        }
        let features = sink.finish().unwrap();
        assert_eq!(features.rows, [0, 2, 3, 5]);
        assert_eq!(
            features.matrix.view().data(),
            [0.0, 1.0, 2.0, 3.0, 3.0, 1.0, 2.0, 3.0]
        );
        assert_eq!(features.labels[1].as_deref(), Some("y"));
        assert_eq!(features.n_null, 2);
    }
}
