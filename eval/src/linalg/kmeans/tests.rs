use super::*;
use crate::metrics::contingency::Contingency;
use crate::metrics::rand_index::adjusted_rand_index;
use crate::team::threads::on_team;
use linfa::prelude::{DatasetBase, Fit, Predict};
use rand::Rng;

/// `k` round clouds of `per` rows with far-off centres, interleaved.
fn clouds(k: usize, per: usize, dim: usize, spread: f32, seed: u64) -> (Matrix, Vec<u32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..k * dim).map(|_| rng.random_range(-10.0f32..10.0)).collect();
    let labels: Vec<u32> = (0..k * per).map(|row| (row % k) as u32).collect();
    let data = labels
        .iter()
        .flat_map(|&label| centres[label as usize * dim..][..dim].to_vec())
        .map(|centre| centre + rng.random_range(-spread..spread))
        .collect();
    (Matrix::new(data, k * per, dim).unwrap(), labels)
}

fn config(k: usize) -> KMeansConfig {
    KMeansConfig {
        k,
        ..KMeansConfig::default()
    }
}

fn agreement(a: &[u32], b: &[u32]) -> f64 {
    adjusted_rand_index(&Contingency::new(a, b))
}

#[test]
fn finds_clouds_as_linfa_does_and_reaches_its_inertia() {
    let (features, labels) = clouds(7, 60, 5, 1.0, 3);
    let found = kmeans(features.view(), &config(7)).unwrap();
    assert_eq!(agreement(&found.clusters, &labels), 1.0);
    assert!(found.converged);

    let rows = ndarray::Array2::from_shape_vec((420, 5), features.view().data().to_vec()).unwrap();
    let centroids = ndarray::Array2::from_shape_vec((7, 5), found.centroids.view().data().to_vec()).unwrap();
    let dataset = DatasetBase::from(rows);
    let linfa = linfa_clustering::KMeans::params(7)
        .init_method(linfa_clustering::KMeansInit::Precomputed(centroids))
        .fit(&dataset)
        .unwrap();
    let theirs: Vec<u32> = linfa
        .predict(dataset.records())
        .iter()
        .map(|&c| c as u32)
        .collect();
    assert_eq!(theirs, found.clusters);
    // linfa keeps the mean squared distance.
    let inertia = f64::from(linfa.inertia()) * 420.0;
    assert!(
        (found.inertia / inertia - 1.0).abs() < 1e-3,
        "{} {inertia}",
        found.inertia
    );
}

#[test]
fn every_row_is_with_the_nearest_of_the_final_centroids() {
    // no structure at all, more than one block of rows
    let (features, _) = clouds(1, 1_500, 3, 5.0, 1);
    let found = kmeans(features.view(), &config(40)).unwrap();
    let mut inertia = 0.0;
    for row in 0..1_500 {
        let distance = |cluster: usize| -> f64 {
            let pairs = features
                .view()
                .row(row)
                .iter()
                .zip(found.centroids.view().row(cluster));
            pairs.map(|(&x, &c)| (f64::from(x) - f64::from(c)).powi(2)).sum()
        };
        let own = distance(found.clusters[row] as usize);
        inertia += own;
        assert!((0..40).all(|cluster| own <= distance(cluster) + 1e-4));
    }
    assert!((found.inertia / inertia - 1.0).abs() < 1e-12);
    let (rows, starts) = by_cluster(&found.clusters, 40);
    for cluster in 0..40 {
        let members = &rows[starts[cluster]..starts[cluster + 1]];
        assert!(
            members.is_sorted()
                && members
                    .iter()
                    .all(|&row| found.clusters[row as usize] == cluster as u32)
        );
    }
}

#[test]
fn iterations_lower_the_inertia_and_greedy_seeding_helps() {
    let (features, _) = clouds(30, 20, 4, 2.0, 5);
    let run = |iterations| {
        let settings = KMeansConfig {
            iterations,
            ..config(30)
        };
        kmeans(features.view(), &settings).unwrap().inertia
    };
    let few: Vec<f64> = (1..6).map(run).collect();
    assert!(
        few.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-9)),
        "{few:?}"
    );
    // Clouds this far apart: a seeding that misses one pays a hundred times over.
    assert!(few[0] < 30.0 * 20.0 * 4.0 * 4.0, "{few:?}");
}

/// After every step, rows are where a plain assignment to the same centroids puts them, to the bit.
fn steps_as_plain_assignments(features: &Matrix, k: usize, steps: usize) -> u64 {
    let first: Vec<usize> = (0..k).collect();
    let mut lloyd = Lloyd::start(Share::alone(features.view()), features.view().select(&first)).unwrap();
    let mut products = 0;
    for step in 0..steps {
        products += lloyd.step().unwrap().products;
        let plain = assign(features.view(), lloyd.centroids.view()).unwrap();
        assert_eq!(plain.clusters, lloyd.clusters, "step {step}");
        assert_eq!(plain.distances, lloyd.distances, "step {step}");
    }
    products
}

#[test]
fn bounds_leave_out_most_products_and_change_no_cluster() {
    let (features, _) = clouds(150, 40, 24, 9.0, 7);
    let products = steps_as_plain_assignments(&features, 150, 20);
    let all = 20 * 6_000 * 150;
    assert!(products < all / 2, "{products} of {all}");
}

#[test]
fn bounds_hold_where_rounding_decides() {
    // Far from the origin, where f32 products are coarser than the distances; on a grid, where many are equal.
    let (features, _) = clouds(8, 100, 5, 12.0, 11);
    let far: Vec<f32> = features.view().data().iter().map(|v| v + 3_000.0).collect();
    steps_as_plain_assignments(&Matrix::new(far, 800, 5).unwrap(), 120, 12);
    let grid: Vec<f32> = features.view().data().iter().map(|v| v.round()).collect();
    steps_as_plain_assignments(&Matrix::new(grid, 800, 5).unwrap(), 120, 12);
    steps_as_plain_assignments(&features, 1, 3);
    steps_as_plain_assignments(&features, 800, 2);
}

#[test]
fn threads_change_nothing_and_the_seed_does() {
    let (features, _) = clouds(1, 2_500, 6, 5.0, 2);
    let run = |threads, seed, seeding_rows| {
        let settings = KMeansConfig {
            seed,
            seeding_rows,
            iterations: 5,
            ..config(12)
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| kmeans(features.view(), &settings).unwrap())
    };
    assert_eq!(run(1, 0, None), run(3, 0, None));
    assert_eq!(run(1, 0, Some(200)), run(3, 0, Some(200)));
    assert_ne!(run(1, 0, None).centroids, run(1, 1, None).centroids);
    assert_ne!(run(1, 0, None).centroids, run(1, 0, Some(200)).centroids);
}

/// Rows without structure, so that sums in another order would soon give other clusters.
#[test]
fn processes_that_divide_the_rows_find_what_one_finds() {
    let n = 2 * Share::BLOCK + 700;
    let (features, _) = clouds(1, n, 7, 5.0, 13);
    for seeding_rows in [None, Some(4000)] {
        let settings = KMeansConfig {
            seeding_rows,
            iterations: 12,
            ..config(30)
        };
        let one = kmeans(features.view(), &settings).unwrap();
        for size in [2, 3, 5] {
            let found = on_team(size, |team| {
                kmeans_of(&Share::of_all(features.view(), team), &settings).unwrap()
            });
            let clusters: Vec<u32> = found.iter().flat_map(|found| found.clusters.clone()).collect();
            assert_eq!(clusters, one.clusters, "{size}");
            for found in found {
                assert_eq!(found.centroids, one.centroids, "{size}");
                assert_eq!(
                    (found.inertia, found.iterations, found.converged),
                    (one.inertia, one.iterations, one.converged)
                );
            }
        }
    }
}

#[test]
fn empty_clusters_keep_their_centroid() {
    // three different rows, five clusters: two stay empty
    let data = [0.0f32, 1.0, 2.0].repeat(4);
    let features = Matrix::new(data, 12, 1).unwrap();
    let found = kmeans(features.view(), &config(5)).unwrap();
    assert_eq!(found.inertia, 0.0);
    assert!(
        found
            .centroids
            .view()
            .data()
            .iter()
            .all(|v| [0.0, 1.0, 2.0].contains(v))
    );
    let used: std::collections::BTreeSet<u32> = found.clusters.iter().copied().collect();
    assert_eq!(used.len(), 3);
    let kept = means(
        &Share::alone(features.view()),
        Bins::new(2.0, 12),
        &[0; 12],
        &Matrix::new(vec![9.0, 8.0], 2, 1).unwrap(),
    )
    .unwrap();
    assert_eq!(kept.view().data(), [1.0, 8.0]);
}

#[test]
fn settings_and_data_are_checked() {
    let (features, _) = clouds(2, 3, 2, 1.0, 0);
    let error = |config: &KMeansConfig| kmeans(features.view(), config).unwrap_err().to_string();
    assert_eq!(error(&config(7)), "k: expected 1 to 6 (the rows), found 7");
    assert_eq!(error(&config(0)), "k: expected 1 to 6 (the rows), found 0");
    let few = KMeansConfig {
        seeding_rows: Some(2),
        ..config(3)
    };
    assert_eq!(error(&few), "seeding_rows: expected at least k = 3, found 2");
    let nan = Matrix::new(vec![0.0, f32::NAN], 2, 1).unwrap();
    assert!(
        kmeans(nan.view(), &config(1))
            .unwrap_err()
            .to_string()
            .contains("NaN")
    );
}
