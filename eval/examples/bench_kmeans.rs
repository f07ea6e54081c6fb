//! Times k-means on a raw f32 file, for `benchmarks/kmeans_vs_faiss.py`.
//!
//! `bench_kmeans DATA.f32 DIM K ITERATIONS SEEDING_ROWS THREADS`: reads a line from stdin, clusters with the next seed, prints
//! the seconds and the sum of squared distances; again until stdin ends. SEEDING_ROWS of 0 means all rows.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use macula_eval::Matrix;
use macula_eval::linalg::kmeans::{KMeansConfig, kmeans};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, dim, k, iterations, seeding_rows, threads] = args.as_slice() else {
        return Err("usage: bench_kmeans DATA.f32 DIM K ITERATIONS SEEDING_ROWS THREADS".into());
    };
    let dim: usize = dim.parse()?;
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let data: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let rows = data.len() / dim;
    let data = Matrix::new(data, rows, dim)?;
    let mut config = KMeansConfig {
        k: k.parse()?,
        iterations: iterations.parse()?,
        seeding_rows: Some(seeding_rows.parse()?).filter(|&rows| rows > 0),
        seed: 0,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .build()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let found = pool.install(|| kmeans(data.view(), &config))?;
        println!("{:.6} {:.6}", start.elapsed().as_secs_f64(), found.inertia);
        std::io::stdout().flush()?;
        config.seed += 1;
    }
    Ok(())
}
