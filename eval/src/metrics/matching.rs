//! Accuracy of a clustering under the best one-to-one assignment of clusters to classes (Kuhn 1955).

use super::contingency::Contingency;

/// The class of each cluster in the one-to-one matching with the most rows in place. With more clusters than classes those
/// left over have none.
pub fn best_matching(table: &Contingency) -> Vec<Option<usize>> {
    let n = table.n_clusters.max(table.n_classes);
    // The square problem with costs: what a pair does not have in common.
    let max = table.counts.iter().max().copied().unwrap_or(0);
    let count = |cluster: usize, class: usize| {
        let inside = cluster < table.n_clusters && class < table.n_classes;
        if inside {
            table.counts[cluster * table.n_classes + class]
        } else {
            0
        }
    };
    let matched = cheapest_assignment(n, |cluster, class| (max - count(cluster, class)) as i64);
    let classes = matched.into_iter().take(table.n_clusters);
    classes
        .map(|class| (class < table.n_classes).then_some(class))
        .collect()
}

/// The column of each row in the cheapest perfect assignment of an `n x n` problem: shortest augmenting paths with
/// potentials, O(n^3) time and O(n) memory beside the costs (Jonker & Volgenant 1987).
fn cheapest_assignment(n: usize, cost: impl Fn(usize, usize) -> i64) -> Vec<usize> {
    // Column `n` is the root of every search; `rows[column]` is the row assigned to a column, `n` for none.
    let mut rows = vec![n; n + 1];
    let (mut of_row, mut of_column) = (vec![0i64; n], vec![0i64; n + 1]);
    for row in 0..n {
        let mut distance = vec![i64::MAX; n];
        let mut came_from = vec![n; n];
        let mut done = vec![false; n + 1];
        let mut column = n;
        rows[n] = row;
        while rows[column] != n {
            done[column] = true;
            let current = rows[column];
            let (mut step, mut next) = (i64::MAX, n);
            for candidate in (0..n).filter(|&candidate| !done[candidate]) {
                let reduced = cost(current, candidate) - of_row[current] - of_column[candidate];
                if reduced < distance[candidate] {
                    distance[candidate] = reduced;
                    came_from[candidate] = column;
                }
                if distance[candidate] < step {
                    (step, next) = (distance[candidate], candidate);
                }
            }
            for visited in 0..=n {
                if done[visited] {
                    of_row[rows[visited]] += step;
                    of_column[visited] -= step;
                } else {
                    distance[visited] -= step;
                }
            }
            column = next;
        }
        // Back along the path: every column takes the row of the one before it.
        while column != n {
            let before = came_from[column];
            rows[column] = rows[before];
            column = before;
        }
    }
    let mut columns = vec![0; n];
    for (column, &row) in rows[..n].iter().enumerate() {
        columns[row] = column;
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Share of rows whose cluster is matched to their class, under the matching that maximises it ([`best_matching`]).
    fn hungarian_accuracy(table: &Contingency) -> f64 {
        let matched = best_matching(table).into_iter().enumerate();
        let right: u64 = matched
            .filter_map(|(cluster, class)| Some(table.counts[cluster * table.n_classes + class?]))
            .sum();
        right as f64 / table.total as f64
    }

    #[test]
    fn left_over_clusters_are_wrong() {
        let score =
            |clusters: &[u32], classes: &[u32]| hungarian_accuracy(&Contingency::new(clusters, classes));
        assert_eq!(score(&[2, 2, 0, 0, 1, 1], &[0, 0, 1, 1, 2, 2]), 1.0);
        // greedy would give cluster 0 to class 0 (3 rows) and leave 1 row: best is 2 + 3
        let clusters = [0, 0, 0, 0, 0, 1, 1, 1, 1];
        let classes = [0, 0, 0, 1, 1, 0, 0, 0, 1];
        assert_eq!(score(&clusters, &classes), 5.0 / 9.0);
        assert_eq!(score(&[0, 1, 2, 3], &[0, 0, 0, 0]), 0.25);
        assert_eq!(score(&[0, 0, 0, 0], &[0, 1, 2, 3]), 0.25);
        // the cluster that is matched is not the first, nor is the class
        assert_eq!(score(&[0, 1, 1, 1], &[0, 0, 0, 0]), 0.75);
        assert_eq!(score(&[0, 0, 0, 0], &[0, 1, 1, 1]), 0.75);
    }

    fn cheapest_by_trying(costs: &[Vec<i64>], used: &mut Vec<bool>, row: usize) -> i64 {
        if row == costs.len() {
            return 0;
        }
        let mut best = i64::MAX;
        for column in 0..costs.len() {
            if !used[column] {
                used[column] = true;
                best = best.min(costs[row][column] + cheapest_by_trying(costs, used, row + 1));
                used[column] = false;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_assignment_is_cheaper(n in 1usize..7, values in prop::collection::vec(0i64..20, 36)) {
            let costs: Vec<Vec<i64>> = (0..n).map(|row| values[row * n..(row + 1) * n].to_vec()).collect();
            let columns = cheapest_assignment(n, |row, column| costs[row][column]);
            let mut sorted = columns.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let found: i64 = (0..n).map(|row| costs[row][columns[row]]).sum();
            prop_assert_eq!(found, cheapest_by_trying(&costs, &mut vec![false; n], 0));
        }
    }
}
