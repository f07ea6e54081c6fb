//! Colours of pictures.

use crate::draw::{COLORS, Color};

/// Points of matplotlib's `inferno` (CC0), from 0 to 1 in equal steps: lightness rises evenly, so that it can be read without
/// colour.
const HEAT: [[u8; 3]; 9] = [
    [0, 0, 4],
    [31, 12, 72],
    [85, 15, 109],
    [136, 34, 106],
    [186, 54, 85],
    [227, 89, 51],
    [249, 140, 10],
    [249, 201, 50],
    [252, 255, 164],
];
/// More classes than colours: another round, with another shape.
const MORE: [Color; 4] = [
    [0x6b, 0x4c, 0x9a, 0xff],
    [0x8c, 0x56, 0x4b, 0xff],
    [0x5c, 0x64, 0x6d, 0xff],
    [0xb8, 0xa9, 0x00, 0xff],
];
/// Different colours.
pub(super) const KINDS: usize = COLORS.len() + MORE.len();

/// The colour of `share`, from 0 (dark) to 1 (light).
pub(super) fn heat(share: f32) -> [u8; 3] {
    let place = share.clamp(0.0, 1.0) * (HEAT.len() - 1) as f32;
    let below = (place.floor() as usize).min(HEAT.len() - 2);
    let part = place - below as f32;
    std::array::from_fn(|channel| {
        let (low, high) = (
            f32::from(HEAT[below][channel]),
            f32::from(HEAT[below + 1][channel]),
        );
        (low + part * (high - low)).round() as u8
    })
}

/// The colour of class number `class`; they come again after [`KINDS`].
pub(super) fn class(class: usize) -> Color {
    let place = class % KINDS;
    COLORS
        .get(place)
        .copied()
        .unwrap_or_else(|| MORE[place - COLORS.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_grows_lighter() {
        assert_eq!(heat(-1.0), HEAT[0]);
        assert_eq!(heat(2.0), HEAT[8]);
        assert_eq!(heat(0.5), HEAT[4]);
        let light = |share: f32| {
            let [r, g, b] = heat(share).map(f32::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..50).all(|i| light(i as f32 / 50.0) < light((i + 1) as f32 / 50.0)));
        assert_eq!(class(0), class(KINDS));
        assert_ne!(class(6), class(7));
    }
}
