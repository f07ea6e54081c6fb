use super::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let data = (0..rows * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    Matrix::new(data, rows, dim).unwrap()
}

fn small() -> HnswConfig {
    HnswConfig {
        m: 12,
        ef_construction: 60,
    }
}

fn graph(features: &Matrix) -> Index {
    Index::Hnsw(HnswIndex::build(features.view(), &small(), |_| {}).unwrap())
}

#[test]
fn a_wide_walk_finds_what_exact_search_finds() {
    let (features, queries) = (random(2_000, 12, 1), random(50, 12, 2));
    let exact = Index::Exact(ExactIndex::build(features.view()).unwrap());
    let graph = graph(&features);
    assert_eq!((graph.len(), graph.dim(), graph.kind()), (2_000, 12, "hnsw"));
    let truth = exact.search(queries.view(), 10, 10).unwrap();
    let found = graph.search(queries.view(), 10, 400).unwrap();
    let thresholds: Vec<f32> = truth.iter().map(|hits| hits[9].similarity).collect();
    assert!(recall(&found, &thresholds, 10) > 0.99);
    for (found, truth) in found.iter().zip(&truth) {
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0].similarity >= pair[1].similarity)
        );
        assert_eq!(found[0].row, truth[0].row);
        assert!((found[0].similarity - truth[0].similarity).abs() < 1e-5);
    }
    let (Index::Exact(exact), Index::Hnsw(graph)) = (&exact, &graph) else {
        panic!("one of each kind");
    };
    assert_eq!(graph.vectors(), exact.vectors());
}

#[test]
fn wider_walks_find_more() {
    let (features, queries) = (random(3_000, 24, 3), random(100, 24, 4));
    let scores = score(&graph(&features), queries.view(), 10, &[10, 40, 200]).unwrap();
    let efs: Vec<Option<usize>> = scores.iter().map(|score| score.ef).collect();
    assert_eq!(efs, [Some(10), Some(40), Some(200)]);
    assert!(
        scores[0].recall < scores[1].recall && scores[1].recall < scores[2].recall,
        "{scores:?}"
    );
    assert!(scores[2].recall > 0.9, "{scores:?}");
    let exact = Index::Exact(ExactIndex::build(features.view()).unwrap());
    let scores = score(&exact, queries.view(), 10, &[10]).unwrap();
    assert_eq!((scores.len(), scores[0].ef, scores[0].recall), (1, None, 1.0));
}

#[test]
fn copies_and_zero_rows_do_no_harm() {
    let mut data = random(1, 8, 5).into_data().repeat(300);
    data.extend([0.0; 8]);
    let features = Matrix::new(data, 301, 8).unwrap();
    let index = graph(&features);
    let found = index.search(features.view(), 5, 50).unwrap();
    assert!(
        found[0]
            .iter()
            .all(|hit| hit.row < 300 && (hit.similarity - 1.0).abs() < 1e-5)
    );
    assert!(found[300].iter().all(|hit| hit.similarity.abs() < 1e-6));
}

#[test]
fn parts_put_together_give_the_same_answers() {
    let (features, queries) = (random(500, 6, 6), random(20, 6, 7));
    let built = HnswIndex::build(features.view(), &small(), |_| {}).unwrap();
    let (vectors, words) = (built.vectors().clone(), built.link_words());
    let again = HnswIndex::from_parts(vectors.clone(), &words).unwrap();
    assert_eq!(again.link_words(), words);
    let before = Index::Hnsw(built).search(queries.view(), 5, 40).unwrap();
    assert_eq!(Index::Hnsw(again).search(queries.view(), 5, 40).unwrap(), before);

    let refused = |vectors: &Matrix, words: &[u32]| {
        HnswIndex::from_parts(vectors.clone(), words)
            .unwrap_err()
            .to_string()
    };
    let longer = [&words[..], &[7]].concat();
    assert!(refused(&vectors, &longer).contains("1 more words"));
    for cut in [0, 1, 2, words.len() / 2, words.len() - 1] {
        assert!(refused(&vectors, &words[..cut]).starts_with("links: "), "{cut}");
    }
    let mut elsewhere = words.clone();
    elsewhere[0] = 500;
    assert_eq!(
        refused(&vectors, &elsewhere),
        "links: expected rows below 500, found 500"
    );
    // The lists of another number of rows do not end where the words do.
    assert!(refused(&random(400, 6, 6), &words).starts_with("links: "));
}

#[test]
fn a_walk_of_any_width_is_ordered_and_complete() {
    let features = random(300, 5, 11);
    let index = graph(&features);
    for (k, ef) in [(1, 1), (7, 7), (7, 1), (300, 300)] {
        let found = index.search(features.view(), k, ef).unwrap();
        for hits in &found {
            let rows: std::collections::BTreeSet<u32> = hits.iter().map(|hit| hit.row).collect();
            assert_eq!((rows.len(), hits.len()), (k, k), "each row once");
            assert!(hits.is_sorted_by(|a, b| a.similarity >= b.similarity));
        }
    }
}

#[test]
fn one_thread_builds_one_graph() {
    let (features, queries) = (random(800, 10, 8), random(40, 10, 9));
    let run = || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| graph(&features).search(queries.view(), 10, 15).unwrap())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_width_is_chosen_on_rows_the_graph_has_not_seen() {
    let features = random(3_000, 24, 10);
    let seen = std::cell::Cell::new(0);
    let build =
        |target| build_for_recall(features.view(), &small(), target, 10, 0, |done| seen.set(done)).unwrap();
    let (index, loose) = build(0.5);
    assert_eq!(
        (index.vectors().view().rows(), seen.get(), loose.n_queries),
        (3_000, 3_000, 300)
    );
    let (_, tight) = build(0.95);
    assert!(loose.recall >= 0.5 && tight.recall >= 0.95, "{loose:?} {tight:?}");
    assert!(tight.ef_search > loose.ef_search, "{loose:?} {tight:?}");
    // All rows are there in the end, those held back too.
    let own = Index::Hnsw(index).search(features.view(), 1, 200).unwrap();
    let found = own
        .iter()
        .enumerate()
        .filter(|(row, hits)| hits[0].row == *row as u32);
    assert!(found.count() > 2_990);
}

#[test]
fn what_cannot_be_indexed_is_named() {
    let features = random(20, 3, 0);
    let build = |config: HnswConfig| {
        HnswIndex::build(features.view(), &config, |_| {})
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        build(HnswConfig { m: 1, ..small() }),
        "m: expected 2 to 255, found 1"
    );
    assert_eq!(
        build(HnswConfig { m: 256, ..small() }),
        "m: expected 2 to 255, found 256"
    );
    let narrow = HnswConfig {
        ef_construction: 5,
        ..small()
    };
    assert_eq!(
        build(narrow),
        "ef_construction: expected m = 12 to 100000, found 5"
    );
    let nan = Matrix::new(vec![f32::NAN], 1, 1).unwrap();
    assert!(HnswIndex::build(nan.view(), &small(), |_| {}).is_err());
    assert!(ExactIndex::build(Matrix::new(vec![], 0, 3).unwrap().view()).is_err());
    let index = graph(&features);
    let error = |queries: &Matrix, k| index.search(queries.view(), k, 10).unwrap_err().to_string();
    assert_eq!(
        error(&random(1, 4, 0), 1),
        "query features: expected the index's width 3, found 4"
    );
    assert_eq!(
        error(&features, 21),
        "k: expected 1 to 20 (the rows of the index), found 21"
    );
    let short = build_for_recall(features.view(), &small(), 0.9, 19, 0, |_| {}).unwrap_err();
    assert!(short.to_string().contains("expected 1 to 18"), "{short}");
    let target = build_for_recall(features.view(), &small(), 1.5, 5, 0, |_| {}).unwrap_err();
    assert!(target.to_string().starts_with("recall: "), "{target}");
}

/// Rows of `kinds`: around one point of a few each, or all over, or equal, or zero.
fn mixture(n: usize, dim: usize, kinds: usize, seed: u64) -> Matrix {
    let (points, noise) = (random(kinds, dim, seed), random(n, dim, seed + 1));
    let data = (0..n).flat_map(|row| {
        let spread = [1.0, 0.3, 0.01, 0.0][row % 4];
        let (point, own) = (points.view().row(row % kinds), noise.view().row(row));
        let values: Vec<f32> = point
            .iter()
            .zip(own)
            .map(|(point, own)| point + spread * own)
            .collect();
        if row % 50 == 49 { vec![0.0; dim] } else { values }
    });
    Matrix::new(data.collect(), n, dim).unwrap()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn answers_are_the_exact_index_s_for_the_rows_found(
        n in 1usize..400, dim in 1usize..150, kinds in 1usize..20, k in 1usize..12, seed in 0u64..1_000,
    ) {
        let (features, k) = (mixture(n, dim, kinds, seed), k.min(n));
        let exact = Index::Exact(ExactIndex::build(features.view()).unwrap());
        let truth = exact.search(features.view(), n, n).unwrap();
        for (hits, truth) in graph(&features).search(features.view(), k, 2 * k).unwrap().iter().zip(&truth) {
            proptest::prop_assert!(!hits.is_empty() && hits.len() <= k);
            proptest::prop_assert!(hits.is_sorted_by(|a, b| a.similarity >= b.similarity));
            let rows: std::collections::BTreeSet<u32> = hits.iter().map(|hit| hit.row).collect();
            proptest::prop_assert_eq!(rows.len(), hits.len());
            for hit in hits {
                let known = truth.iter().find(|known| known.row == hit.row).unwrap();
                proptest::prop_assert!((known.similarity - hit.similarity).abs() < 2e-6);
            }
        }
    }
}

#[test]
fn walks_on_codes_find_most_and_the_same_with_any_kernel() {
    let (features, queries) = (mixture(3_000, 100, 40, 20), random(100, 100, 21));
    let unit = prepare_rows(features.view()).unwrap();
    assert!(super::codes::Codes::of(unit.view()).unwrap().is_some());
    let built = HnswIndex::build(features.view(), &small(), |_| {}).unwrap();
    let words = built.link_words();
    let other = HnswIndex::from_parts(built.vectors().clone(), &words)
        .unwrap()
        .comparing_by(super::integer::wide_dot_portable);
    let built = Index::Hnsw(built);
    let found = built.search(queries.view(), 10, 200).unwrap();
    assert_eq!(Index::Hnsw(other).search(queries.view(), 10, 200).unwrap(), found);
    let scores = score(&built, queries.view(), 10, &[200]).unwrap();
    assert!(scores[0].recall > 0.9, "{scores:?}");
}
