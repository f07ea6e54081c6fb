//! An order of rows that puts like ones side by side, and the order in which they enter a graph.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::codes::Codes;

/// Rows that are no longer divided.
const LEAF: usize = 16;
/// One place in so many enters a graph before the others.
const SPANNING: usize = 32;

/// All rows, like ones side by side. The same for the same rows.
pub(super) fn likes_together(codes: &Codes) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..codes.len() as u32).collect();
    gather(&mut rows, codes, &mut ChaCha8Rng::seed_from_u64(0));
    rows
}

/// Halves rows by which of two of them is nearer, and the halves again.
fn gather(rows: &mut [u32], codes: &Codes, rng: &mut ChaCha8Rng) {
    if rows.len() <= LEAF {
        return;
    }
    let [one, other] = [(); 2].map(|()| rows[rng.random_range(0..rows.len())]);
    let mut sides: Vec<(f32, u32)> = rows
        .iter()
        .map(|&row| (codes.similarity(row, other) - codes.similarity(row, one), row))
        .collect();
    let half = rows.len() / 2;
    sides.select_nth_unstable_by(half, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.iter_mut().zip(&sides).for_each(|(row, side)| *row = side.1);
    let (near, far) = rows.split_at_mut(half);
    gather(near, codes, rng);
    gather(far, codes, rng);
}

/// Ascending places in the order in which they enter a graph: some that span it, then the others one after another, so that what
/// the walk of one insertion read is in the cache for the next.
pub(super) fn entering(places: &[u32]) -> Vec<u32> {
    let spans = |place: usize| place % SPANNING == SPANNING / 2;
    let pick = |wanted: bool| (0..places.len()).filter(move |&place| spans(place) == wanted);
    pick(true).chain(pick(false)).map(|place| places[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    #[test]
    fn orders_hold_every_row_once_and_put_likes_together() {
        // Ten kinds of rows, taking turns.
        let value = |row: usize, column: usize| {
            let own = (row * 131 + column * 71) % 97;
            let kind = (row % 10 * 37 + column * 53) % 101;
            kind as f32 / 50.0 - 1.0 + own as f32 / 1_000.0
        };
        let data: Vec<f32> = (0..1_000)
            .flat_map(|row| (0..64).map(move |column| value(row, column)))
            .collect();
        let features = Matrix::new(data, 1_000, 64).unwrap();
        let unit = crate::linalg::normalise::l2_normalise(features.view()).unwrap();
        let order = likes_together(&Codes::new(unit.view()));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1_000));
        let alike = order
            .windows(2)
            .filter(|pair| pair[0] % 10 == pair[1] % 10)
            .count();
        assert!(alike > 700, "{alike}");

        let mut entered = entering(&sorted);
        assert_eq!(entered[..3], [16, 48, 80]);
        entered.sort_unstable();
        assert_eq!(entered, sorted);
    }
}
