//! Which row of a component is kept, where features decide: the one nearest to the component's centre.

use crate::MatrixView;

/// For each component the row with the greatest inner product with the sum of the component's rows, taken in f64; the
/// first of equals. `numbers` gives the component of each row of `features`, `0..count`.
pub fn central_rows(features: MatrixView<'_>, numbers: &[u32], count: usize) -> Vec<u32> {
    let mut rows_of: Vec<Vec<u32>> = vec![Vec::new(); count];
    for (row, &number) in numbers.iter().enumerate() {
        rows_of[number as usize].push(row as u32);
    }
    let central = |rows: &Vec<u32>| match rows[..] {
        // Most components are one row, or two that are equally far from their middle.
        [first] | [first, _] => first,
        _ => {
            let mut sum = vec![0.0f64; features.dim()];
            for &row in rows {
                for (sum, &value) in sum.iter_mut().zip(features.row(row as usize)) {
                    *sum += f64::from(value);
                }
            }
            let nearness = |row: u32| -> f64 {
                let pairs = features.row(row as usize).iter().zip(&sum);
                pairs.map(|(&value, sum)| f64::from(value) * sum).sum()
            };
            let scored = rows.iter().map(|&row| (nearness(row), row));
            let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
            best.map_or(0, |(_, row)| row)
        }
    };
    rows_of.iter().map(central).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_three_is_central() {
        let data = [1.0, 0.0, 0.0, 1.0, 0.8, 0.6, 0.5, 0.5, 0.1, 0.9];
        let features = MatrixView::new(&data, 5, 2).unwrap();
        assert_eq!(central_rows(features, &[0, 1, 0, 0, 1], 2), [2, 1]);
        // Rows 0, 1 and 2: the sum is (1.8, 1.6), nearest to row 2.
        assert_eq!(central_rows(features, &[0, 0, 0, 1, 2], 3), [2, 3, 4]);
    }
}
