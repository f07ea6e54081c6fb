//! t-SNE in two dimensions (van der Maaten and Hinton 2008), by linfa, on principal components. All pairs of rows are computed:
//! linfa's Barnes-Hut form takes random numbers that no seed reaches, so that no two of its maps are alike.

use linfa::traits::Transformer as _;
use linfa_tsne::TSneParams;
use ndarray::Array2;

use super::pca::Pca;
use crate::rng::{LinfaRng, stream};
use crate::{Error, Matrix, MatrixView, Result};

/// Rows at most: all pairs are kept twice, in f64, and computed in every iteration on one thread.
pub const MAX_ROWS: usize = 5_000;

/// Settings of a t-SNE.
#[derive(Debug, Clone, PartialEq)]
pub struct TsneConfig {
    /// About how many neighbours a row has, above 0 and at most a third of the other rows; 30 by default.
    pub perplexity: f64,
    /// Iterations, at least 1; 1,000 by default. The first quarter, 250 at most, exaggerates what is near.
    pub iterations: usize,
    /// Principal components that the rows are reduced to first, at least 2; 50 by default.
    pub components: usize,
    /// Seed of the first positions.
    pub seed: u64,
}

impl Default for TsneConfig {
    fn default() -> Self {
        Self {
            perplexity: 30.0,
            iterations: 1_000,
            components: 50,
            seed: 0,
        }
    }
}

/// Where each of `rows` `[n, d]` lies on a plane, `[n, 2]`. Time grows with n squared and the iterations.
///
/// # Errors
/// A setting out of range, fewer than four rows or more than [`MAX_ROWS`], rows all equal, NaN or infinity.
pub fn tsne(rows: MatrixView<'_>, config: &TsneConfig) -> Result<Matrix> {
    let n = rows.rows();
    if !(4..=MAX_ROWS).contains(&n) {
        return Err(Error::data(
            "features",
            format!("expected 4 to {MAX_ROWS} rows for t-SNE, found {n}"),
        ));
    }
    let most = (n - 1) as f64 / 3.0;
    if !(config.perplexity > 0.0 && config.perplexity <= most) {
        let reason = format!(
            "expected above 0 and at most {most:.1} (a third of the other rows), found {}",
            config.perplexity
        );
        return Err(Error::config("perplexity", reason));
    }
    if config.iterations == 0 {
        return Err(Error::config("iterations", "expected at least 1, found 0"));
    }
    if config.components < 2 {
        let reason = format!("expected at least 2, found {}", config.components);
        return Err(Error::config("components", reason));
    }
    let pca = Pca::fit(rows, config.components)?;
    let reduced = pca.project(rows)?;
    // A line is a plane of which the other side is 0.
    let width = reduced.view().dim().max(2);
    let mut points = Array2::<f64>::zeros((n, width));
    for (row, mut point) in points.rows_mut().into_iter().enumerate() {
        let values = reduced.view().row(row).iter();
        values
            .zip(point.iter_mut())
            .for_each(|(value, place)| *place = f64::from(*value));
    }
    let rng = LinfaRng(stream(config.seed, "t-sne", 0));
    let placed = TSneParams::embedding_size_with_rng(2, rng)
        .perplexity(config.perplexity)
        .approx_threshold(0.0)
        .max_iter(config.iterations)
        .preliminary_iter((config.iterations / 4).min(250))
        .transform(points)
        .map_err(|error| Error::data("features", format!("no t-SNE: {error}")))?;
    let placed = Matrix::new(placed.iter().map(|&value| value as f32).collect(), n, 2)?;
    placed.view().check_finite("t-SNE")?;
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    /// Three clouds of `n` rows each in six dimensions.
    fn clouds(n: usize) -> Matrix {
        let mut rng = stream(1, "clouds", 0);
        let data = (0..3 * n)
            .flat_map(|row| (0..6).map(move |axis| if axis == row % 3 { 4.0 } else { 0.0 }))
            .map(|centre| centre + rng.random_range(-0.5f32..0.5))
            .collect();
        Matrix::new(data, 3 * n, 6).unwrap()
    }

    fn config(seed: u64) -> TsneConfig {
        TsneConfig {
            perplexity: 10.0,
            iterations: 300,
            seed,
            ..TsneConfig::default()
        }
    }

    #[test]
    fn clouds_stay_apart_and_a_seed_is_a_map() {
        let rows = clouds(40);
        let map = tsne(rows.view(), &config(1)).unwrap();
        let place = |row: usize| map.view().row(row);
        let distance = |a: usize, b: usize| {
            let squares = place(a).iter().zip(place(b)).map(|(a, b)| (a - b) * (a - b));
            squares.sum::<f32>()
        };
        for row in 0..120 {
            let nearest = (0..120)
                .filter(|&other| other != row)
                .min_by(|&a, &b| distance(row, a).total_cmp(&distance(row, b)))
                .unwrap();
            assert_eq!(nearest % 3, row % 3, "row {row}");
        }
        assert_eq!(map, tsne(rows.view(), &config(1)).unwrap());
        assert_ne!(map, tsne(rows.view(), &config(2)).unwrap());
    }

    #[test]
    fn equal_rows_and_lines_have_a_place() {
        let data = (0..60).flat_map(|row| [(row / 3) as f32, 0.0]).collect();
        let line = Matrix::new(data, 60, 2).unwrap();
        assert_eq!(tsne(line.view(), &config(1)).unwrap().view().rows(), 60);
    }

    #[test]
    fn what_has_no_map_is_named() {
        let rows = clouds(4);
        let error = |config: TsneConfig| tsne(rows.view(), &config).unwrap_err().to_string();
        let default = TsneConfig::default();
        assert_eq!(
            error(default.clone()),
            "perplexity: expected above 0 and at most 3.7 (a third of the other rows), found 30"
        );
        let few = |change: fn(&mut TsneConfig)| {
            let mut config = config(0);
            config.perplexity = 2.0;
            change(&mut config);
            config
        };
        let many = Matrix::new(vec![0.0; MAX_ROWS + 1], MAX_ROWS + 1, 1).unwrap();
        let error_of_many = tsne(many.view(), &default).unwrap_err().to_string();
        assert_eq!(
            error_of_many,
            "features: expected 4 to 5000 rows for t-SNE, found 5001"
        );
        assert!(error(few(|config| config.iterations = 0)).starts_with("iterations"));
        assert!(error(few(|config| config.components = 1)).starts_with("components"));
        assert!(error(few(|config| config.perplexity = f64::NAN)).starts_with("perplexity"));
    }
}
