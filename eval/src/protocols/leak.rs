//! Test rows that training has seen: near-duplicates across the two sets in feature space. A leak lifts every protocol,
//! k-NN most of all.

use crate::linalg::nearest_neighbours;
use crate::linalg::normalise::l2_normalise;
use crate::protocols::checks;
use crate::{Error, MatrixView, Result};

/// A test row and the training row nearest to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearDuplicate {
    /// Row of the test set.
    pub test: usize,
    /// Row of the training set.
    pub train: usize,
    /// Their cosine similarity.
    pub similarity: f32,
}

/// The test rows whose nearest training row has a cosine similarity of at least `threshold`, in the order of the test
/// rows. Strong features put different images of one thing close as well, so these are pairs to look at, not a verdict.
///
/// # Errors
/// A threshold that is not in (0, 1], no rows, widths that differ, NaN or infinity.
pub fn near_duplicates(
    train: MatrixView<'_>,
    test: MatrixView<'_>,
    threshold: f32,
) -> Result<Vec<NearDuplicate>> {
    if !(threshold > 0.0 && threshold <= 1.0) {
        return Err(Error::config(
            "leak_check",
            format!("expected a cosine similarity above 0 and up to 1, found {threshold}"),
        ));
    }
    checks::same_width("test features", test, "in training", train)?;
    let (train, test) = (l2_normalise(train)?, l2_normalise(test)?);
    let nearest = nearest_neighbours(test.view(), train.view(), 1)?;
    let rows = nearest.similarities.iter().zip(&nearest.indices).enumerate();
    // The cosine of two equal rows may round to a little below 1.
    let found = rows.filter(|(_, (similarity, _))| **similarity >= threshold - 1e-6);
    Ok(found
        .map(|(test, (&similarity, &train))| NearDuplicate {
            test,
            train: train as usize,
            similarity,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    #[test]
    fn copies_are_found_whatever_their_length() {
        let train = Matrix::new(vec![1.0, 0.0, 0.0, 1.0, 0.3, 0.7], 3, 2).unwrap();
        let test = Matrix::new(vec![0.6, 1.4, 1.0, 0.1, -1.0, 0.0], 3, 2).unwrap();
        let pairs = |threshold| {
            let found = near_duplicates(train.view(), test.view(), threshold).unwrap();
            found
                .iter()
                .map(|pair| (pair.test, pair.train))
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(1.0), [(0, 2)]);
        assert_eq!(pairs(0.99), [(0, 2), (1, 0)]);
        for bad in [0.0, 1.5, f32::NAN] {
            assert!(near_duplicates(train.view(), test.view(), bad).is_err());
        }
    }
}
