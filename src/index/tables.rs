//! What searches and scores look like: the table of hits a query writes, and the table of an index's quality.

use std::path::Path;

use macula_eval::index::{Hit, score};
use macula_eval::table::EvalResult;
use polars::prelude::{DataFrame, ParquetWriter, PolarsError, df};
use serde_json::json;

use super::{Kind, OpenIndex};
use crate::extract::folder::Features;
use crate::{Error, Result, files};

/// Writes one row a hit to the Parquet file `out`: `query` and `row` (places in their sources), `query_path` and `path`,
/// `rank` from 0, `similarity` (cosine), and the `label` of the hit.
///
/// # Errors
/// The system's or Polars' word with the path.
pub fn write_hits(out: &Path, index: &OpenIndex, queries: &Features, hits: &[Vec<Hit>]) -> Result<()> {
    let failed = |e: PolarsError| Error::failed(out.display().to_string(), e.to_string());
    let places = || {
        hits.iter()
            .enumerate()
            .flat_map(|(query, hits)| hits.iter().map(move |hit| (query, hit)))
    };
    let of_query = |query: usize| queries.paths[query].as_str();
    let query: Vec<u64> = places().map(|(query, _)| queries.rows[query]).collect();
    let query_paths: Vec<&str> = places().map(|(query, _)| of_query(query)).collect();
    let ranks: Vec<u32> = hits.iter().flat_map(|hits| 0..hits.len() as u32).collect();
    let rows: Vec<u64> = places().map(|(_, hit)| index.rows[hit.row as usize]).collect();
    let paths: Vec<&str> = places()
        .map(|(_, hit)| index.paths[hit.row as usize].as_str())
        .collect();
    let similarities: Vec<f32> = places().map(|(_, hit)| hit.similarity).collect();
    let labels: Vec<Option<&str>> = places()
        .map(|(_, hit)| index.labels[hit.row as usize].as_deref())
        .collect();
    let mut table: DataFrame = df!(
        "query" => query,
        "query_path" => query_paths,
        "rank" => ranks,
        "row" => rows,
        "path" => paths,
        "similarity" => similarities,
        "label" => labels,
    )
    .map_err(failed)?;
    files::write_whole(out, |file| {
        ParquetWriter::new(file).finish(&mut table).map_err(failed)?;
        Ok(())
    })
}

/// Recall and speed at every width of `efs`, with the build time and size: `kind`, `k`, `ef`, `recall`,
/// `queries_per_second`, `build_seconds`, `bytes_per_vector`.
///
/// # Errors
/// As a search.
pub fn score_table(index: &OpenIndex, queries: &Features, k: usize, efs: &[usize]) -> Result<EvalResult> {
    let mut efs: Vec<usize> = efs.iter().map(|&ef| ef.max(k)).collect();
    efs.sort_unstable();
    efs.dedup();
    let scores = score(&index.index, queries.matrix.view(), k, &efs)?;
    let n = scores.len();
    let manifest = &index.manifest;
    let ef: Vec<Option<u64>> = scores.iter().map(|score| score.ef.map(|ef| ef as u64)).collect();
    let recalls: Vec<f64> = scores.iter().map(|score| score.recall).collect();
    let speeds: Vec<f64> = scores.iter().map(|score| score.queries_per_second).collect();
    let table = df!(
        "kind" => vec![index.index.kind(); n],
        "k" => vec![k as u64; n],
        "ef" => ef,
        "recall" => recalls,
        "queries_per_second" => speeds,
        "build_seconds" => vec![manifest.build_seconds; n],
        "bytes_per_vector" => vec![manifest.bytes_per_vector(); n],
    )
    .map_err(macula_eval::Error::from)?;
    let settings = json!({
        "index": index.path.display().to_string(),
        "source": manifest.source,
        "column": manifest.column,
        "parameters": manifest.parameters,
        "ef_search": if manifest.kind != Kind::Exact { manifest.ef_search } else { None },
        "recall": "share of the k nearest rows by exact search, of equal rows any",
        "threads": rayon::current_num_threads(),
    });
    Ok(EvalResult::new(
        "index-score",
        settings,
        manifest.count,
        queries.rows.len(),
        table,
    )?)
}
