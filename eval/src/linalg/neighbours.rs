//! Exact nearest neighbours by inner product. A block of queries meets a block of the database in one matrix product,
//! whose rows are scanned against the k-th best similarity of each query so far.
//!
//! The similarity of a pair must not depend on where the pair falls in the blocks, or duplicates would not tie. The
//! `gemm` crate adds the products of one output in order, in runs whose length depends on the shapes of the call only
//! through the inner size, except for small or one-column outputs, which have kernels of their own. So the database block
//! has one fixed size (the last is filled up with zeros) and a query block has at least two rows; a test below holds the
//! crate to that.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Operand, Threads, matmul};
use super::normalise::norm;
use super::topk::{self, Reservoir};
use crate::{Error, MatrixView, Result};

/// Rows of the database in one product: a multiple of every kernel's tile, and more than the 64 below which the
/// product would choose its run length by another rule.
pub(super) const DATABASE_BLOCK: usize = 768;
/// Queries in one product: enough to pay for packing the database block, few enough for the product to stay in cache.
pub(crate) const QUERY_BLOCK: usize = 384;
/// Tasks for each thread that the database is split for when the queries alone are too few.
const TASKS_PER_THREAD: usize = 4;

/// The k nearest rows of a database for each query, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Neighbours of each query.
    pub k: usize,
    /// Rows of the database, `[queries, k]` row-major.
    pub indices: Vec<u32>,
    /// Inner products, `[queries, k]` row-major, descending in each row.
    pub similarities: Vec<f32>,
}

impl Neighbours {
    /// Database rows nearest to query `query`, best first. Panics past the end, like a slice.
    pub fn indices_of(&self, query: usize) -> &[u32] {
        &self.indices[query * self.k..(query + 1) * self.k]
    }

    /// Inner products that go with [`Self::indices_of`].
    pub fn similarities_of(&self, query: usize) -> &[f32] {
        &self.similarities[query * self.k..(query + 1) * self.k]
    }
}

/// The `k` rows of `database` with the greatest inner product with each row of `queries`; equal products rank by
/// ascending row. Exact, on all threads of the current rayon pool, and the same for any number of them.
///
/// # Errors
/// Widths that differ, `k` of zero or above the number of rows, NaN or infinity, and rows so long that a product could
/// overflow.
pub fn nearest_neighbours(queries: MatrixView<'_>, database: MatrixView<'_>, k: usize) -> Result<Neighbours> {
    check(queries, database, k)?;
    let n_queries = queries.rows();
    let blocks = n_queries.div_ceil(QUERY_BLOCK);
    let segments = database_segments(database.rows(), blocks);

    let tasks: Vec<(usize, Range<usize>)> = (0..blocks)
        .flat_map(|block| segments.iter().map(move |segment| (block, segment.clone())))
        .collect();
    let found: Vec<Vec<Vec<u64>>> = tasks
        .into_par_iter()
        .map(|(block, segment)| {
            let rows = block * QUERY_BLOCK..((block + 1) * QUERY_BLOCK).min(n_queries);
            search(queries, rows, database, segment, k)
        })
        .collect();

    let mut result = Neighbours {
        k,
        indices: vec![0; n_queries * k],
        similarities: vec![0.0; n_queries * k],
    };
    result
        .indices
        .par_chunks_mut(k)
        .zip(result.similarities.par_chunks_mut(k))
        .enumerate()
        .for_each(|(query, (indices, similarities))| {
            let (block, row) = (query / QUERY_BLOCK, query % QUERY_BLOCK);
            let parts = &found[block * segments.len()..(block + 1) * segments.len()];
            let mut keys: Vec<u64> = parts.iter().flat_map(|part| &part[row]).copied().collect();
            topk::keep_top(&mut keys, k);
            keys.sort_unstable_by(|a, b| b.cmp(a));
            for (place, &key) in keys.iter().enumerate() {
                indices[place] = topk::index(key);
                similarities[place] = topk::similarity(key);
            }
        });
    Ok(result)
}

fn check(queries: MatrixView<'_>, database: MatrixView<'_>, k: usize) -> Result<()> {
    if k == 0 || k > database.rows() {
        let n = database.rows();
        return Err(Error::config(
            "k",
            format!("expected 1 to {n} (the rows of the database), found {k}"),
        ));
    }
    check_pair(queries, database)
}

/// What every search asks of its two sides: one width, finite values, rows that can be numbered, and inner products
/// that cannot overflow.
///
/// # Errors
/// The first of these that does not hold.
pub(super) fn check_pair(queries: MatrixView<'_>, database: MatrixView<'_>) -> Result<()> {
    if queries.dim() != database.dim() {
        return Err(Error::data(
            "features",
            format!(
                "queries are {} wide, the database {}",
                queries.dim(),
                database.dim()
            ),
        ));
    }
    if u32::try_from(database.rows()).is_err() {
        return Err(Error::data("database", "more than 4,294,967,295 rows"));
    }
    queries.check_finite("query features")?;
    database.check_finite("database features")?;
    // |a . b| <= |a| |b|, and so is every partial sum.
    let bound = longest(queries) * longest(database);
    if bound > f64::from(f32::MAX) / 2.0 {
        return Err(Error::data(
            "features",
            format!("inner products up to {bound:e} would overflow f32: normalise or scale the rows"),
        ));
    }
    Ok(())
}

fn longest(matrix: MatrixView<'_>) -> f64 {
    matrix
        .data()
        .par_chunks_exact(matrix.dim())
        .map(norm)
        .reduce(|| 0.0, f64::max)
}

/// Ranges of whole database blocks: one when the query blocks alone keep all threads busy, otherwise more.
fn database_segments(rows: usize, query_blocks: usize) -> Vec<Range<usize>> {
    let database_blocks = rows.div_ceil(DATABASE_BLOCK);
    let wanted = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(query_blocks.max(1));
    let step = database_blocks.div_ceil(wanted.clamp(1, database_blocks)) * DATABASE_BLOCK;
    (0..rows)
        .step_by(step)
        .map(|start| start..(start + step).min(rows))
        .collect()
}

/// Keys of the best rows of `segment` for each query of `rows`; fewer than k where the segment is shorter.
fn search(
    queries: MatrixView<'_>,
    rows: Range<usize>,
    database: MatrixView<'_>,
    segment: Range<usize>,
    k: usize,
) -> Vec<Vec<u64>> {
    let dim = queries.dim();
    let block = filled_up(&queries.data()[rows.start * dim..rows.end * dim], 2 * dim);
    let block_rows = block.len() / dim;
    let mut best: Vec<Reservoir> = rows.map(|_| Reservoir::new(k.min(segment.len()))).collect();
    let mut products = vec![0.0f32; block_rows * DATABASE_BLOCK]; // [block_rows, DATABASE_BLOCK]

    for start in segment.clone().step_by(DATABASE_BLOCK) {
        let end = (start + DATABASE_BLOCK).min(segment.end);
        let target = filled_up(&database.data()[start * dim..end * dim], DATABASE_BLOCK * dim);
        matmul(
            &mut products,
            Operand::row_major(&block, block_rows, dim),
            Operand::row_major(&target, DATABASE_BLOCK, dim).transposed(),
            Threads::One,
        );
        for (reservoir, row) in best.iter_mut().zip(products.chunks_exact(DATABASE_BLOCK)) {
            reservoir.offer(&row[..end - start], start as u32);
        }
    }
    best.into_iter().map(Reservoir::into_keys).collect()
}

/// `values`, with zeros after them if they are fewer than `min`.
pub(crate) fn filled_up(values: &[f32], min: usize) -> Cow<'_, [f32]> {
    if values.len() >= min {
        return Cow::Borrowed(values);
    }
    let mut filled = values.to_vec();
    filled.resize(min, 0.0);
    Cow::Owned(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let data = (0..rows * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        Matrix::new(data, rows, dim).unwrap()
    }

    fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(work)
    }

    /// Small whole numbers multiply exactly, so that the definition is met to the bit and ties abound.
    #[test]
    fn agrees_with_a_full_sort_on_exact_values() {
        for (n_queries, n_rows, dim, k) in [
            (1, 1, 1, 1),
            (1, 2000, 3, 7),
            (5, 767, 2, 767),
            (3, 769, 5, 20),
            (400, 1600, 8, 50),
        ] {
            let round = |m: Matrix| {
                let (rows, dim) = (m.view().rows(), m.view().dim());
                let data = m.into_data().into_iter().map(|v| (v * 3.0).round()).collect();
                Matrix::new(data, rows, dim).unwrap()
            };
            let queries = round(random(n_queries, dim, 1));
            let database = round(random(n_rows, dim, 2));
            let found = nearest_neighbours(queries.view(), database.view(), k).unwrap();
            for query in 0..n_queries {
                let mut all: Vec<(f32, u32)> = (0..n_rows)
                    .map(|row| {
                        let (a, b) = (queries.view().row(query), database.view().row(row));
                        (a.iter().zip(b).map(|(x, y)| x * y).sum(), row as u32)
                    })
                    .collect();
                all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
                let pairs: Vec<(f32, u32)> = found
                    .similarities_of(query)
                    .iter()
                    .copied()
                    .zip(found.indices_of(query).iter().copied())
                    .collect();
                assert_eq!(pairs, all[..k], "{n_queries} {n_rows} {dim} {k}: query {query}");
            }
        }
    }

    /// One vector everywhere in the database, one query everywhere in the queries: all similarities must be the same
    /// bits, whatever tile, block or thread a pair falls to, and the ties must rank by row.
    #[test]
    fn duplicates_tie_wherever_they_stand() {
        for dim in [1, 2, 3, 17, 384, 768, 1030] {
            let vector = random(1, dim, 3).into_data();
            let query = random(1, dim, 4).into_data();
            let rows = 2 * DATABASE_BLOCK + 101;
            let database = Matrix::new(vector.repeat(rows), rows, dim).unwrap();
            let single =
                nearest_neighbours(MatrixView::new(&query, 1, dim).unwrap(), database.view(), 1).unwrap();
            for n_queries in [1, 2, 7, 65, QUERY_BLOCK + 1] {
                let queries = Matrix::new(query.repeat(n_queries), n_queries, dim).unwrap();
                for threads in [1, 3] {
                    let found = with_threads(threads, || {
                        nearest_neighbours(queries.view(), database.view(), rows).unwrap()
                    });
                    let bits = single.similarities[0].to_bits();
                    assert!(
                        found.similarities.iter().all(|s| s.to_bits() == bits),
                        "dim {dim}, {n_queries} queries, {threads} threads"
                    );
                    assert!(
                        found
                            .indices
                            .chunks(rows)
                            .all(|row| row.iter().copied().eq(0..rows as u32))
                    );
                }
            }
        }
    }

    #[test]
    fn threads_and_company_change_no_bit() {
        let queries = random(QUERY_BLOCK + 30, 40, 5);
        let database = random(3000, 40, 6);
        let all = with_threads(1, || {
            nearest_neighbours(queries.view(), database.view(), 25).unwrap()
        });
        for threads in [2, 5] {
            let again = with_threads(threads, || {
                nearest_neighbours(queries.view(), database.view(), 25).unwrap()
            });
            assert_eq!(again, all);
        }
        for query in [0, QUERY_BLOCK, QUERY_BLOCK + 29] {
            let alone = queries.view().select(&[query]);
            let alone = nearest_neighbours(alone.view(), database.view(), 25).unwrap();
            assert_eq!(alone.indices, all.indices_of(query));
            assert_eq!(alone.similarities, all.similarities_of(query));
        }
    }

    #[test]
    fn what_cannot_be_searched_is_named() {
        let (a, b) = (random(3, 4, 1), random(5, 3, 2));
        let error =
            |q: &Matrix, d: &Matrix, k| nearest_neighbours(q.view(), d.view(), k).unwrap_err().to_string();
        assert_eq!(error(&a, &b, 1), "features: queries are 4 wide, the database 3");
        assert_eq!(
            error(&b, &b, 6),
            "k: expected 1 to 5 (the rows of the database), found 6"
        );
        assert!(error(&b, &b, 0).contains("found 0"));
        let huge = Matrix::new(vec![1e30; 4], 2, 2).unwrap();
        assert!(error(&huge, &huge, 1).contains("overflow"));
        let nan = Matrix::new(vec![f32::NAN, 0.0], 1, 2).unwrap();
        assert!(error(&nan, &huge, 1).starts_with("query features: expected finite"));
    }
}
