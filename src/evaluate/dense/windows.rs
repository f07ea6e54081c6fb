//! The windows of an image: what a network of a fixed input sees of an image of any size. An image smaller than the window
//! is centred in it and padded, a larger one is covered by overlapping windows (mmseg's `slide_inference`).

/// First sample of each window of `window` samples over `length`, `stride` apart; the last ends with the image. Below 0
/// where the image is shorter than the window: the padding before it, the smaller half of an odd rest.
pub(super) fn starts(length: usize, window: usize, stride: usize) -> Vec<isize> {
    if length <= window {
        return vec![-(((window - length) / 2) as isize)];
    }
    let last = length - window;
    (0..=last.div_ceil(stride))
        .map(|index| (index * stride).min(last) as isize)
        .collect()
}

/// The places (top, left) of all windows, row by row; sizes are (height, width).
pub(super) fn places(
    image: (usize, usize),
    window: (usize, usize),
    stride: (usize, usize),
) -> Vec<(isize, isize)> {
    let lefts = starts(image.1, window.1, stride.1);
    let tops = starts(image.0, window.0, stride.0);
    tops.iter()
        .flat_map(|&top| lefts.iter().map(move |&left| (top, left)))
        .collect()
}

/// Appends the window at `place` of `plane` `[height, width]` to `out`, `outside` where it reaches beyond.
pub(super) fn cut<V: Copy>(
    plane: &[V],
    (height, width): (usize, usize),
    place: (isize, isize),
    window: (usize, usize),
    outside: V,
    out: &mut Vec<V>,
) {
    let before = ((-place.1).max(0) as usize).min(window.1);
    let first = place.1.max(0) as usize;
    let count = (window.1 - before).min(width.saturating_sub(first));
    for y in 0..window.0 {
        let row = y.checked_add_signed(place.0).filter(|&row| row < height);
        let start = out.len();
        match row {
            Some(row) => {
                out.resize(start + before, outside);
                out.extend_from_slice(&plane[row * width + first..row * width + first + count]);
                out.resize(start + window.1, outside);
            }
            None => out.resize(start + window.1, outside),
        }
    }
}

/// `plane` `[height, width]` at another size by the nearest sample (OpenCV's `INTER_NEAREST`).
pub(super) fn nearest<V: Copy>(plane: &[V], from: (usize, usize), to: (usize, usize)) -> Vec<V> {
    if from == to {
        return plane.to_vec();
    }
    let place = |index: usize, from: usize, to: usize| (index * from / to).min(from - 1);
    let mut out = Vec::with_capacity(to.0 * to.1);
    for y in 0..to.0 {
        let row = &plane[place(y, from.0, to.0) * from.1..][..from.1];
        out.extend((0..to.1).map(|x| row[place(x, from.1, to.1)]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_image_and_end_with_it() {
        assert_eq!(starts(683, 512, 341), [0, 171]);
        assert_eq!(starts(1200, 512, 341), [0, 341, 682, 688]);
        assert_eq!(starts(1194, 512, 341), [0, 341, 682]);
        assert_eq!(starts(512, 512, 341), [0]);
        assert_eq!(starts(9, 14, 3), [-2]); // 2 before, 3 after
        assert_eq!(places((5, 3), (3, 4), (2, 2)), [(0, 0), (2, 0)]);
    }

    #[test]
    fn what_lies_outside_is_padding() {
        let plane = [1, 2, 3, 4, 5, 6];
        let window = |place, window| {
            let mut out = Vec::new();
            cut(&plane, (2, 3), place, window, 0, &mut out);
            out
        };
        assert_eq!(window((0, 1), (2, 2)), [2, 3, 5, 6]);
        assert_eq!(
            window((-1, -1), (4, 5)),
            [0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 4, 5, 6, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn the_nearest_sample_is_opencvs() {
        assert_eq!(nearest(&[1, 2, 3], (1, 3), (1, 6)), [1, 1, 2, 2, 3, 3]);
        assert_eq!(nearest(&[1, 2, 3, 4, 5], (1, 5), (1, 2)), [1, 3]);
        assert_eq!(nearest(&[1, 2, 3, 4], (2, 2), (2, 2)), [1, 2, 3, 4]);
    }
}
