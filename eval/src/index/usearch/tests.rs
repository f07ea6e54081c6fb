use std::fs;
use std::path::PathBuf;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::Matrix;
use crate::index::{ExactIndex, Index, score};

const CONFIG: HnswConfig = HnswConfig {
    m: 12,
    ef_construction: 60,
};

fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let data = (0..rows * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    Matrix::new(data, rows, dim).unwrap()
}

fn built(features: &Matrix, scalar: Scalar) -> UsearchIndex {
    UsearchIndex::build(features.view(), &CONFIG, scalar, |_| {}).unwrap()
}

/// A file of an index over 200 rows of width 8, and the folder that it lies in.
fn file(scalar: Scalar) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.usearch");
    built(&random(200, 8, 1), scalar).save(&path).unwrap();
    (folder, path)
}

fn refused(path: &Path) -> String {
    let error = UsearchIndex::view(path, 200, 8, Scalar::F32)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_wide_walk_over_the_file_finds_what_exact_search_finds() {
    let (features, queries) = (random(3_000, 16, 1), random(100, 16, 2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.usearch");
    let in_memory = built(&features, Scalar::F32);
    in_memory.save(&path).unwrap();
    let in_file = Index::Usearch(UsearchIndex::view(&path, 3_000, 16, Scalar::F32).unwrap());
    assert_eq!(
        (in_file.len(), in_file.dim(), in_file.kind()),
        (3_000, 16, "usearch")
    );
    let found = in_file.search(queries.view(), 10, 300).unwrap();
    assert_eq!(
        Index::Usearch(in_memory).search(queries.view(), 10, 300).unwrap(),
        found
    );

    let exact = Index::Exact(ExactIndex::build(features.view()).unwrap());
    let truth = exact.search(queries.view(), 10, 10).unwrap();
    let thresholds: Vec<f32> = truth.iter().map(|hits| hits[9].similarity).collect();
    assert!(recall(&found, &thresholds, 10) > 0.99);
    for (found, truth) in found.iter().zip(&truth) {
        assert!(found.is_sorted_by(|a, b| a.similarity >= b.similarity));
        assert_eq!((found.len(), found[0].row), (10, truth[0].row));
        assert!((found[0].similarity - truth[0].similarity).abs() < 1e-5);
    }
}

#[test]
fn wider_walks_find_more_and_the_width_is_chosen_for_a_recall() {
    let (features, queries) = (random(3_000, 24, 3), random(100, 24, 4));
    let asked = (0.95, 10, 0);
    let build = UsearchIndex::build_for_recall(features.view(), &CONFIG, Scalar::F32, asked, |_| {});
    let (index, tuning) = build.unwrap();
    assert!(tuning.recall >= 0.95 && tuning.n_queries == 300, "{tuning:?}");
    let index = Index::Usearch(index);
    let scores = score(&index, queries.view(), 10, &[10, tuning.ef_search, 400]).unwrap();
    let recalls: Vec<f64> = scores.iter().map(|score| score.recall).collect();
    assert!(
        recalls[0] < recalls[1] && recalls[1] > 0.9 && recalls[2] > 0.98,
        "{scores:?}"
    );
    // Also the rows that served as queries are found, each by its own number.
    let found = index.search(features.view(), 1, 200).unwrap();
    let themselves = found
        .iter()
        .enumerate()
        .filter(|(row, hits)| hits[0].row as usize == *row);
    assert!(themselves.count() > 2_980);
}

#[test]
fn fewer_bytes_a_number_find_nearly_the_same() {
    let (features, queries) = (random(2_000, 32, 5), random(50, 32, 6));
    let exact = Index::Exact(ExactIndex::build(features.view()).unwrap());
    let truth = exact.search(queries.view(), 10, 10).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    for (scalar, apart, share) in [
        (Scalar::F32, 1e-5, 0.99),
        (Scalar::F16, 1e-3, 0.97),
        (Scalar::I8, 2e-2, 0.85),
    ] {
        let path = folder.path().join(scalar.to_string());
        built(&features, scalar).save(&path).unwrap();
        sizes.push(fs::metadata(&path).unwrap().len());
        let index = Index::Usearch(UsearchIndex::view(&path, 2_000, 32, scalar).unwrap());
        let found = index.search(queries.view(), 10, 400).unwrap();
        let mut same = 0;
        for (found, truth) in found.iter().zip(&truth) {
            assert!(
                (found[0].similarity - truth[0].similarity).abs() < apart,
                "{scalar}"
            );
            let rows: Vec<u32> = truth.iter().map(|hit| hit.row).collect();
            same += found.iter().filter(|hit| rows.contains(&hit.row)).count();
        }
        assert!(same as f64 >= share * 500.0, "{scalar}: {same} of 500");
    }
    // What the numbers take is gone; the links of a few rows are one layer more or less from build to build.
    assert!(
        sizes[0] - sizes[1] > 2_000 * 60 && sizes[1] - sizes[2] > 2_000 * 28,
        "{sizes:?}"
    );
}

#[test]
fn copies_and_zeros_do_no_harm() {
    let mut data = random(1, 8, 5).into_data().repeat(300);
    data.extend([0.0; 8]);
    let features = Matrix::new(data, 301, 8).unwrap();
    let index = Index::Usearch(built(&features, Scalar::F32));
    let found = index.search(features.view(), 5, 50).unwrap();
    let alike = |hit: &Hit| hit.row < 300 && (hit.similarity - 1.0).abs() < 1e-5;
    assert!(found[0].iter().all(alike));
    assert!(found[300].iter().all(|hit| hit.similarity == 0.0));
}

#[test]
fn one_thread_builds_one_file() {
    let features = random(400, 8, 7);
    let folder = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        pool.install(|| built(&features, Scalar::F32).save(&path).unwrap());
        fs::read(path).unwrap()
    };
    assert_eq!(write("a"), write("b"));
}

#[test]
fn more_threads_than_the_index_has_room_for_wait() {
    let (_folder, path) = file(Scalar::F32);
    let queries = random(500, 8, 9);
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    let index = pool(1).install(|| UsearchIndex::view(&path, 200, 8, Scalar::F32).unwrap());
    let index = Index::Usearch(index);
    let alone = pool(1).install(|| index.search(queries.view(), 3, 50).unwrap());
    assert_eq!(
        pool(32).install(|| index.search(queries.view(), 3, 50).unwrap()),
        alone
    );
}

#[test]
fn another_file_than_expected_is_refused_by_field() {
    let (_folder, path) = file(Scalar::F32);
    let view = |rows, dim, scalar| {
        UsearchIndex::view(&path, rows, dim, scalar)
            .unwrap_err()
            .to_string()
    };
    assert!(view(199, 8, Scalar::F32).ends_with("vectors: expected 199, found 200"));
    assert!(view(200, 9, Scalar::F32).ends_with("bytes of a vector: expected 36, found 32"));
    assert!(view(200, 16, Scalar::F16).ends_with("scalar: expected 12, found 11"));
    assert!(view(200, usize::MAX / 2 + 5, Scalar::F32).contains("width: expected a vector of up to"));
    let nowhere = UsearchIndex::view(&path.with_extension("no"), 200, 8, Scalar::F32);
    assert!(matches!(nowhere, Err(Error::Io { .. })));
    let small = UsearchIndex::build(
        random(3, 2, 1).view(),
        &HnswConfig { m: 1, ..CONFIG },
        Scalar::F32,
        |_| {},
    );
    assert!(small.unwrap_err().to_string().starts_with("m: "));
}

#[test]
fn a_damaged_file_is_refused_or_searched_but_never_followed_out_of_it() {
    let (_folder, path) = file(Scalar::F32);
    let whole = fs::read(&path).unwrap();
    let graph = 8 + 200 * 32;
    for length in (0..whole.len())
        .step_by(97)
        .chain([7, 8, graph, graph + 64, graph + 104, whole.len() - 1])
    {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(refused(&path).ends_with("cut off"), "{length}");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(refused(&path).ends_with("end: expected nothing behind the last slot, found more"));

    let queries = random(20, 8, 2);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut refusals, mut searches) = (0, 0);
    for _ in 0..600 {
        let mut damaged = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let place = rng.random_range(graph..whole.len());
            damaged[place] = rng.random();
        }
        fs::write(&path, &damaged).unwrap();
        match UsearchIndex::view(&path, 200, 8, Scalar::F32) {
            Err(_) => refusals += usize::from(refused(&path).contains(": expected ")),
            Ok(index) => {
                let found = Index::Usearch(index).search(queries.view(), 5, 50).unwrap();
                assert!(found.iter().flatten().all(|hit| hit.row < 200));
                searches += 1;
            }
        }
    }
    assert!(
        refusals > 100 && searches > 20,
        "{refusals} refused, {searches} searched"
    );
}
