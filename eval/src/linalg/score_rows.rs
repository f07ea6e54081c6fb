//! Whole rows of the similarity matrix, one query at a time: for rankings that need every row of the database and not
//! only the nearest. The matrix itself never exists.

use rayon::prelude::*;

use super::gemm::{Operand, Threads, matmul};
use super::neighbours::{DATABASE_BLOCK, check_pair, filled_up};
use crate::{MatrixView, Result};

/// Scores that one thread holds at a time, 64 MiB.
const SCORES_IN_MEMORY: usize = 1 << 24;
/// Most queries in one product.
const QUERY_BLOCK: usize = 128;

/// `read(query, scores)` for every query, where `scores` are its inner products with every row of `database`, in order;
/// results in the order of the queries. On all threads of the current rayon pool, the same for any number of them, and
/// equal rows of the database have equal scores to the bit.
///
/// # Errors
/// Widths that differ, NaN or infinity, rows so long that a product could overflow; the first error of `read`.
pub fn score_rows<T: Send>(
    queries: MatrixView<'_>,
    database: MatrixView<'_>,
    read: impl Fn(usize, &[f32]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    check_pair(queries, database)?;
    let (dim, n_rows) = (queries.dim(), database.rows());
    let block = (SCORES_IN_MEMORY / n_rows.max(1)).clamp(2, QUERY_BLOCK);
    let blocks: Vec<Vec<T>> = queries
        .data()
        .par_chunks(block * dim)
        .enumerate()
        .map(|(number, chunk)| {
            let scores = block_scores(chunk, database); // [block, n_rows]
            let first = number * block;
            (0..chunk.len() / dim)
                .map(|row| read(first + row, &scores[row * n_rows..(row + 1) * n_rows]))
                .collect()
        })
        .collect::<Result<_>>()?;
    Ok(blocks.into_iter().flatten().collect())
}

/// Inner products of a block of queries with every row, `[queries, n_rows]`; see `neighbours` for why the blocks of the
/// database have one size.
fn block_scores(queries: &[f32], database: MatrixView<'_>) -> Vec<f32> {
    let (dim, n_rows) = (database.dim(), database.rows());
    let n_queries = queries.len() / dim;
    let block = filled_up(queries, 2 * dim);
    let block_rows = block.len() / dim;
    let mut products = vec![0.0f32; block_rows * DATABASE_BLOCK]; // [block_rows, DATABASE_BLOCK]
    let mut scores = vec![0.0f32; n_queries * n_rows];
    for start in (0..n_rows).step_by(DATABASE_BLOCK) {
        let end = (start + DATABASE_BLOCK).min(n_rows);
        let target = filled_up(&database.data()[start * dim..end * dim], DATABASE_BLOCK * dim);
        matmul(
            &mut products,
            Operand::row_major(&block, block_rows, dim),
            Operand::row_major(&target, DATABASE_BLOCK, dim).transposed(),
            Threads::One,
        );
        for (row, products) in scores
            .chunks_exact_mut(n_rows)
            .zip(products.chunks_exact(DATABASE_BLOCK))
        {
            row[start..end].copy_from_slice(&products[..end - start]);
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Matrix, linalg::nearest_neighbours};
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn agrees_with_the_nearest_neighbours_to_the_bit() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut random = |rows: usize| {
            let data = (0..rows * 9).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            Matrix::new(data, rows, 9).unwrap()
        };
        let (queries, database) = (random(2 * QUERY_BLOCK + 1), random(DATABASE_BLOCK + 13));
        let n = database.view().rows();
        let rows = score_rows(queries.view(), database.view(), |query, scores| {
            Ok((query, scores.to_vec()))
        })
        .unwrap();
        let nearest = nearest_neighbours(queries.view(), database.view(), n).unwrap();
        assert_eq!(rows.len(), 2 * QUERY_BLOCK + 1);
        for (place, (query, scores)) in rows.iter().enumerate() {
            assert_eq!(place, *query);
            let pairs = nearest
                .indices_of(place)
                .iter()
                .zip(nearest.similarities_of(place));
            for (&row, &similarity) in pairs {
                assert_eq!(scores[row as usize], similarity);
            }
        }
    }
}
