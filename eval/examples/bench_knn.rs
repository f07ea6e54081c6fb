//! Times the exact neighbour search on raw f32 files and writes what it found, for `benchmarks/knn_vs_faiss.py`.
//!
//! `bench_knn QUERIES.f32 DATABASE.f32 DIM K THREADS OUT.u32`: reads a line from stdin, searches, prints the seconds;
//! again until stdin ends. The neighbours of the last search go to OUT.u32, row-major little-endian.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use macula_eval::Matrix;
use macula_eval::linalg::nearest_neighbours;

fn read(path: &str, dim: usize) -> Result<Matrix, Box<dyn Error>> {
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let data: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let rows = data.len() / dim;
    Ok(Matrix::new(data, rows, dim)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [queries, database, dim, k, threads, out] = args.as_slice() else {
        return Err("usage: bench_knn QUERIES.f32 DATABASE.f32 DIM K THREADS OUT.u32".into());
    };
    let (dim, k) = (dim.parse()?, k.parse()?);
    let (queries, database) = (read(queries, dim)?, read(database, dim)?);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .build()?;

    let mut last = None;
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let found = pool.install(|| nearest_neighbours(queries.view(), database.view(), k))?;
        println!("{:.6}", start.elapsed().as_secs_f64());
        std::io::stdout().flush()?;
        last = Some(found);
    }
    let found = last.ok_or("no search was asked for")?;
    let bytes: Vec<u8> = found.indices.iter().flat_map(|i| i.to_le_bytes()).collect();
    std::fs::write(out, bytes)?;
    Ok(())
}
