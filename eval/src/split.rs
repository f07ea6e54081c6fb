//! A random part of the training rows held out, on which settings are chosen so that the test rows are touched once.

use crate::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Stream of the seed that draws the split, apart from those that shuffle and initialise.
const STREAM: u64 = u64::MAX;

/// Rows to fit on and rows to choose on, each ascending; together every row once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Rows to fit on.
    pub fit: Vec<usize>,
    /// Rows to choose on.
    pub held_out: Vec<usize>,
}

/// Holds out `fraction` of `rows` rows, rounded down: the first of a random permutation, whatever their labels
/// (dinov2 eval/log_regression.py).
///
/// # Errors
/// A fraction that is not between 0 and 1, or that leaves either part without a row.
pub fn hold_out(rows: usize, fraction: f64, seed: u64) -> Result<Split> {
    check_fraction(fraction)?;
    // The product of 10 and 0.1 must give 1 however 0.1 is rounded.
    let count = (rows as f64 * fraction * (1.0 + 1e-12)).floor() as usize;
    if count == 0 || count >= rows {
        return Err(Error::config(
            "val_fraction",
            format!(
                "expected at least one row on each side of the split, found {count} of {rows} held out by {fraction}"
            ),
        ));
    }
    let mut order: Vec<usize> = (0..rows).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(STREAM);
    order.shuffle(&mut rng);
    let mut fit = order.split_off(count);
    fit.sort_unstable();
    order.sort_unstable();
    Ok(Split { fit, held_out: order })
}

/// Checks a held-out share.
///
/// # Errors
/// A fraction that is not between 0 and 1.
pub fn check_fraction(fraction: f64) -> Result<()> {
    // Written so that NaN is refused as well.
    if fraction > 0.0 && fraction < 1.0 {
        return Ok(());
    }
    Err(Error::config(
        "val_fraction",
        format!("expected a number between 0 and 1, found {fraction}"),
    ))
}

/// How a table names the split: `train split 10 %`.
pub fn split_name(fraction: f64) -> String {
    let percent = (fraction * 1e8).round() / 1e6;
    format!("train split {percent} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_lands_on_one_side_and_the_seed_decides() {
        let split = hold_out(103, 0.1, 7).unwrap();
        assert_eq!(split.held_out.len(), 10);
        let mut all = [split.fit.clone(), split.held_out.clone()].concat();
        assert!(split.fit.is_sorted() && split.held_out.is_sorted());
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!(split, hold_out(103, 0.1, 7).unwrap());
        assert_ne!(split, hold_out(103, 0.1, 8).unwrap());
        for tens in 1..200 {
            assert_eq!(hold_out(10 * tens, 0.1, 0).unwrap().held_out.len(), tens);
        }
    }

    #[test]
    fn a_split_without_rows_is_refused() {
        assert_eq!(
            hold_out(9, 0.1, 0).unwrap_err().to_string(),
            "val_fraction: expected at least one row on each side of the split, found 0 of 9 held out by 0.1"
        );
        for fraction in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(
                hold_out(100, fraction, 0)
                    .unwrap_err()
                    .to_string()
                    .starts_with("val_fraction: expected a number")
            );
        }
        assert!(hold_out(0, 0.5, 0).is_err());
    }

    #[test]
    fn the_name_says_the_percentage() {
        assert_eq!(split_name(0.1), "train split 10 %");
        assert_eq!(split_name(0.125), "train split 12.5 %");
    }
}
