//! Times the graph index on raw f32 files and writes what it found, for `benchmarks/hnsw_vs_peers.py`.
//!
//! `bench_hnsw QUERIES.f32 DATABASE.f32 DIM M EF_CONSTRUCTION K OUT.u32`: builds the graph on one thread and prints the seconds; then
//! reads a width of the walk from each line of stdin, searches, writes the rows found to OUT.u32, K a query, row-major little-endian,
//! and prints the seconds. Seconds are those that the thread ran, after a space those that passed.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use macula_eval::Matrix;
use macula_eval::index::{HnswConfig, HnswIndex, Index};

/// Number that stands for a row that was not found.
const NONE: u32 = u32::MAX;

fn read(path: &str, dim: usize) -> Result<Matrix, Box<dyn Error>> {
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let values = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&value| f32::from_le_bytes(value));
    let data: Vec<f32> = values.collect();
    let rows = data.len() / dim;
    Ok(Matrix::new(data, rows, dim)?)
}

/// Seconds that this thread has run, which others on the machine take no part of; 0 where the system does not tell.
fn own_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = told
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

/// What `work` gives and how long it took, as it is printed.
fn timed<T>(work: impl FnOnce() -> T) -> (T, String) {
    let (start, own) = (Instant::now(), own_seconds());
    let result = work();
    let passed = start.elapsed().as_secs_f64();
    (result, format!("{:.6} {passed:.6}", own_seconds() - own))
}

/// Prints a line that the script waits for.
fn tell(line: &str) -> std::io::Result<()> {
    println!("{line}");
    std::io::stdout().flush()
}

fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let [queries, database, dim, m, ef_construction, k, out] = args else {
        return Err("usage: bench_hnsw QUERIES.f32 DATABASE.f32 DIM M EF_CONSTRUCTION K OUT.u32".into());
    };
    let (dim, k) = (dim.parse()?, k.parse()?);
    let (queries, database) = (read(queries, dim)?, read(database, dim)?);
    let config = HnswConfig {
        m: m.parse()?,
        ef_construction: ef_construction.parse()?,
    };
    let (index, seconds) = timed(|| HnswIndex::build(database.view(), &config, |_| {}));
    let index = Index::Hnsw(index?);
    tell(&seconds)?;
    for line in std::io::stdin().lock().lines() {
        let width = line?.trim().parse()?;
        let (found, seconds) = timed(|| index.search(queries.view(), k, width));
        let found = found?;
        let mut rows = Vec::with_capacity(found.len() * k);
        for hits in &found {
            let missing = std::iter::repeat_n(NONE, k - hits.len());
            rows.extend(hits.iter().map(|hit| hit.row).chain(missing));
        }
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        std::fs::write(out, bytes)?;
        tell(&seconds)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    // The thread's seconds are counted on it, so everything runs there; its error may not cross threads.
    pool.install(|| run(&args).map_err(|error| error.to_string()))?;
    Ok(())
}
