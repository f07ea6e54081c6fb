//! Test rows whose near-duplicate is among the training rows, by path.

use std::path::Path;

use macula_eval::protocols::leak;
use polars::prelude::{CsvWriter, DataFrame, PolarsError, SerWriter as _, df};

use super::LabelledPair;
use crate::results::PAIRS_FILE;
use crate::{Error, Result, files};

/// What a leak check found.
#[derive(Debug, Clone, PartialEq)]
pub struct NearDuplicates {
    /// Test path, train path and cosine similarity of each pair.
    pub pairs: Vec<(String, String, f32)>,
    /// The similarity from which two rows count.
    pub threshold: f32,
}

/// Looks for the nearest training row of every test row.
///
/// # Errors
/// A threshold out of range, NaN or infinity.
pub fn near_duplicates(pair: &LabelledPair, threshold: f32) -> Result<NearDuplicates> {
    let found = leak::near_duplicates(pair.train.view(), pair.test.view(), threshold)?;
    let pairs = found.iter().map(|found| {
        let (test, train) = (&pair.test_paths[found.test], &pair.train_paths[found.train]);
        (test.clone(), train.clone(), found.similarity)
    });
    Ok(NearDuplicates {
        pairs: pairs.collect(),
        threshold,
    })
}

impl NearDuplicates {
    /// One line: how many of `n_test` rows, and the nearest pair.
    pub fn notice(&self, n_test: usize) -> String {
        let nearest = self.pairs.iter().max_by(|a, b| a.2.total_cmp(&b.2));
        let (n, threshold) = (self.pairs.len(), self.threshold);
        match nearest {
            None => format!("leak check: no test row has a train row at cosine {threshold} or above"),
            Some((test, train, similarity)) => format!(
                "leak check: {n} of {n_test} test rows have a train row at cosine {threshold} or above; \
                 nearest: {test} and {train} at {similarity:.4}"
            ),
        }
    }

    /// Writes the pairs into folder `out`.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn save(&self, out: &Path) -> Result<()> {
        let path = out.join(PAIRS_FILE);
        let failed = |e: PolarsError| Error::failed(path.display().to_string(), e.to_string());
        let column = |value: fn(&(String, String, f32)) -> &str| -> Vec<&str> {
            self.pairs.iter().map(value).collect()
        };
        let similarities: Vec<f32> = self.pairs.iter().map(|pair| pair.2).collect();
        let mut table: DataFrame = df!(
            "test" => column(|pair| &pair.0),
            "train" => column(|pair| &pair.1),
            "similarity" => similarities,
        )
        .map_err(failed)?;
        let mut csv = Vec::new();
        CsvWriter::new(&mut csv).finish(&mut table).map_err(failed)?;
        files::write_bytes(&path, &csv)
    }
}
