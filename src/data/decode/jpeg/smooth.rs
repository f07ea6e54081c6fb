//! Progressive images whose last scans are missing: libjpeg estimates the first nine coefficients after the mean from the
//! means of the blocks around, as long as they are 0 and not known to the last bit. So does this, by the same weights.

use super::frame::{Component, Frame};
use super::idct::Block;
use super::scan::Coefficients;

/// How far coefficients are known, in zigzag order: -1 not at all, else the bits that are missing.
pub(super) type Known = [i32; 64];

/// The nine coefficients, row by row, in zigzag order.
const PLACES: [usize; 10] = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24];

/// Weights of the means of a window of 5x5 blocks, row by row.
type Weights = [i64; 25];

/// For images that have nothing but means: coefficients 1 to 9 in zigzag order, and the mean itself.
#[rustfmt::skip]
const MEANS_ONLY: [Weights; 10] = [
    [-2, -6, -8, -6, -2, -6, 6, 42, 6, -6, -8, 42, 152, 42, -8, -6, 6, 42, 6, -6, -2, -6, -8, -6, -2],
    [-1, -1, 0, 1, 1, -3, 13, 0, -13, 3, -3, 38, 0, -38, 3, -3, 13, 0, -13, 3, -1, -1, 0, 1, 1],
    [-1, -3, -3, -3, -1, -1, 13, 38, 13, -1, 0, 0, 0, 0, 0, 1, -13, -38, -13, 1, 1, 3, 3, 3, 1],
    [0, 0, 1, 0, 0, 0, 2, 7, 2, 0, 0, -5, -14, -5, 0, 0, 2, 7, 2, 0, 0, 0, 1, 0, 0],
    [-1, 0, 0, 0, 1, 0, 9, 0, -9, 0, 0, 0, 0, 0, 0, 0, -9, 0, 9, 0, 1, 0, 0, 0, -1],
    [0, 0, 0, 0, 0, 0, 2, -5, 2, 0, 1, 7, -14, 7, 1, 0, 2, -5, 2, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, 2, 0, -2, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, -3, 1, 0, 0, 0, 0, 0, 0, 0, -1, 3, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, -3, 0, 3, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, -1, -2, -1, 0, 0, 0, 0, 0, 0],
];

/// For images of which something else is known: coefficients 1 to 5 in zigzag order.
#[rustfmt::skip]
const OTHERS: [Weights; 5] = [
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -7, 50, 0, -50, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, -7, 0, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0, -50, 0, 0, 0, 0, 7, 0, 0],
    [0, 0, -1, 0, 0, 0, 0, 13, 0, 0, 0, 0, -24, 0, 0, 0, 0, 13, 0, 0, 0, 0, -1, 0, 0],
    [0, -1, 0, 1, 0, -1, 10, 0, -10, 1, 0, 0, 0, 0, 0, 1, -10, 0, 10, -1, 0, 1, 0, -1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 13, -24, 13, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Whether estimates are made: all means are known, some other of the first coefficients is not, and no factor is 0.
pub(super) fn is_useful(frame: &Frame, known: &[Known]) -> bool {
    let is_possible = frame.components.iter().zip(known).all(|(component, known)| {
        let has_factors = |factors: [u16; 64]| PLACES.iter().all(|&place| factors[place] != 0);
        component.factors.is_some_and(has_factors) && known[0] >= 0
    });
    is_possible
        && known
            .iter()
            .any(|known| known[1..10].iter().any(|&bits| bits != 0))
}

/// Rows of blocks that stand for those above and below row `y`, two each way, and `y` between them. The picture's edge stands for
/// what lies beyond, except that libjpeg looks into the padding below where the row of units is not the last.
fn rows_around(frame: &Frame, component: &Component, y: usize) -> [usize; 5] {
    let down = component.sampling.1;
    let (row, within) = (y / down, y % down);
    let is_last = row + 1 == frame.mcus.1;
    let in_row = match (is_last, component.blocks.1 % down) {
        (true, 1..) => component.blocks.1 % down,
        _ => down,
    };
    // Counted as if each row of units had as many rows as this one.
    let (place, count) = (row * in_row + within, frame.mcus.1 * in_row);
    let above = if place > 0 { y - 1 } else { y };
    let above_that = if place > 1 { y - 2 } else { above };
    let below = if place + 1 < count { y + 1 } else { y };
    let below_that = if place + 2 < count { y + 2 } else { below };
    [above_that, above, y, below, below_that]
}

/// The blocks of row `y`, with estimates: `put` gets each with its column.
pub(super) fn smooth_row(
    frame: &Frame,
    component: &Component,
    coefficients: &Coefficients,
    known: &Known,
    y: usize,
    mut put: impl FnMut(usize, &Block),
) {
    let rows = rows_around(frame, component, y);
    let last = component.blocks.0 - 1;
    let means_only = known[1..10].iter().all(|&bits| bits == -1);
    let factors = component.factors.unwrap_or([1; 64]).map(i64::from);
    let mut window = [0_i64; 25];
    for x in 0..=last {
        for (row, &block_row) in rows.iter().enumerate() {
            for column in 0..5_usize {
                let at = (x + column).saturating_sub(2).min(last);
                window[row * 5 + column] = coefficients.at(at, block_row)[0].into();
            }
        }
        let estimate = |weights: &Weights, place: usize| {
            let sum: i64 = weights
                .iter()
                .zip(&window)
                .map(|(weight, mean)| weight * mean)
                .sum();
            let (sum, factor) = (sum * factors[0], factors[place]);
            (((factor << 7) + sum.abs()) / (factor << 8)) * sum.signum()
        };
        let mut block = *coefficients.at(x, y);
        let weights = if means_only { &MEANS_ONLY[1..] } else { &OTHERS[..] };
        for (at, weights) in (1..).zip(weights) {
            let (bits, place) = (known[at], PLACES[at]);
            if bits == 0 || block[place] != 0 {
                continue;
            }
            let mut value = estimate(weights, place);
            if bits > 0 {
                let max = (1 << bits) - 1;
                value = value.clamp(-max, max);
            }
            block[place] = value as i16;
        }
        if means_only {
            block[0] = estimate(&MEANS_ONLY[0], 0) as i16;
        }
        put(x, &block);
    }
}
