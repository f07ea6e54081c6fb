//! Rows of a component at the size of the image, as libjpeg makes them: between samples of half the width or height by
//! weights of 3/4 and 1/4 ("fancy"), else by repeating samples.

/// How samples of a component become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upsampling {
    /// A sample a pixel.
    None,
    /// Each sample fills a box.
    Box { across: usize, down: usize },
    /// Between samples of half the width.
    Across,
    /// Between samples of half the height.
    Down,
    /// Between samples of half the width and height.
    Both,
}

impl Upsampling {
    /// Chooses from the samples that a component has for `max` (columns, rows) pixels. `fancy` is off at an eighth of
    /// the size, and a component of one or two columns is never interpolated across. `None` where no whole number of pixels
    /// comes to a sample.
    pub(super) fn new(
        samples: (usize, usize),
        max: (usize, usize),
        fancy: bool,
        width: usize,
    ) -> Option<Self> {
        let ((across, down), (max_across, max_down)) = (samples, max);
        let halves = (across * 2 == max_across, down * 2 == max_down);
        let wide = fancy && width > 2;
        if samples == max {
            Some(Self::None)
        } else if halves.0 && down == max_down && wide {
            Some(Self::Across)
        } else if halves.1 && across == max_across && fancy {
            Some(Self::Down)
        } else if halves == (true, true) && wide {
            Some(Self::Both)
        } else if max_across.is_multiple_of(across) && max_down.is_multiple_of(down) {
            Some(Self::Box {
                across: max_across / across,
                down: max_down / down,
            })
        } else {
            None
        }
    }

    /// Whether a row is made of two rows of samples.
    pub(super) fn needs_neighbours(self) -> bool {
        matches!(self, Self::Down | Self::Both)
    }

    /// The row of samples nearest to row `y` of the image, and for [`Self::needs_neighbours`] the next nearest, where there
    /// are `height`.
    pub(super) fn rows(self, y: usize, height: usize) -> (usize, usize) {
        match self {
            Self::None | Self::Across => (y, y),
            Self::Box { down, .. } => (y / down, y / down),
            Self::Down | Self::Both => {
                let near = y / 2;
                let far = if y.is_multiple_of(2) {
                    near.saturating_sub(1)
                } else {
                    near + 1
                };
                (near.min(height - 1), far.min(height - 1))
            }
        }
    }

    /// Makes row `y` of the image from its rows of `width` samples; `sums` is room to work in.
    pub(super) fn run(
        self,
        y: usize,
        near: &[u8],
        far: &[u8],
        width: usize,
        sums: &mut Vec<u16>,
        out: &mut [u8],
    ) {
        match self {
            Self::None => out.copy_from_slice(&near[..out.len()]),
            Self::Box { across: 1, .. } => out.copy_from_slice(&near[..out.len()]),
            Self::Box { across, .. } => {
                for (pixels, &sample) in out.chunks_mut(across).zip(near) {
                    pixels.fill(sample);
                }
            }
            Self::Down => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((pixel, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *pixel = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Self::Across => {
                let samples = near[..width].iter().map(|&sample| u16::from(sample));
                widen::<1, 2>(samples, sums, out);
            }
            Self::Both => {
                let both = near[..width].iter().zip(&far[..width]);
                let samples = both.map(|(&near, &far)| u16::from(near) * 3 + u16::from(far));
                widen::<8, 4>(samples, sums, out);
            }
        }
    }
}

/// Two pixels a sample: three parts of it and one of the sample to the left or right, the outermost standing for what lies
/// beyond. Rounding alternates, so that a half is not always rounded up: `BIAS` to the left, and to the right one more or
/// less.
fn widen<const BIAS: u16, const SHIFT: u32>(
    samples: impl ExactSizeIterator<Item = u16>,
    sums: &mut Vec<u16>,
    out: &mut [u8],
) {
    let width = samples.len();
    sums.clear();
    sums.push(0);
    sums.extend(samples);
    sums.push(0);
    sums[0] = sums[1];
    sums[width + 1] = sums[width];
    let right_bias = if BIAS == 1 { 2 } else { 7 };
    let neighbours = sums[..width].iter().zip(&sums[1..=width]).zip(&sums[2..]);
    let (pairs, last) = out.as_chunks_mut::<2>();
    let of = |((&left, &this), &right): ((&u16, &u16), &u16)| {
        let this = this * 3;
        ((this + left + BIAS) >> SHIFT) | (((this + right + right_bias) >> SHIFT) << 8)
    };
    if let [last] = last {
        // An odd row ends with the left half of a pair.
        let at = pairs.len();
        *last = of(((&sums[at], &sums[at + 1]), &sums[at + 2])).to_le_bytes()[0];
    }
    for (pair, around) in pairs.iter_mut().zip(neighbours) {
        *pair = of(around).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(how: Upsampling, y: usize, near: &[u8], far: &[u8], columns: usize) -> Vec<u8> {
        let mut out = vec![0; columns];
        how.run(y, near, far, near.len(), &mut Vec::new(), &mut out);
        out
    }

    #[test]
    fn rows_between_samples() {
        let (near, far) = ([10, 20, 40], [30, 30, 30]);
        assert_eq!(
            run(Upsampling::Across, 0, &near, &near, 6),
            [10, 13, 17, 25, 35, 40]
        );
        assert_eq!(run(Upsampling::Across, 0, &near, &near, 5), [10, 13, 17, 25, 35]);
        assert_eq!(run(Upsampling::Down, 0, &near, &far, 3), [15, 22, 37]);
        assert_eq!(run(Upsampling::Down, 1, &near, &far, 3), [15, 23, 38]);
        // Sums 60, 90, 150, and the same weights across.
        assert_eq!(run(Upsampling::Both, 0, &near, &far, 6), [15, 17, 21, 26, 34, 37]);
        assert_eq!(
            run(Upsampling::Box { across: 3, down: 1 }, 0, &near, &near, 7),
            [10, 10, 10, 20, 20, 20, 40]
        );
    }

    #[test]
    fn the_choice_is_libjpegs() {
        use Upsampling as U;
        let boxed = |across, down| Some(U::Box { across, down });
        for (samples, max, fancy, width, expected) in [
            ((2, 2), (2, 2), true, 9, Some(U::None)),
            ((1, 2), (2, 2), true, 9, Some(U::Across)),
            ((1, 2), (2, 2), true, 2, boxed(2, 1)),
            ((2, 1), (2, 2), true, 2, Some(U::Down)),
            ((2, 1), (2, 2), false, 9, boxed(1, 2)),
            ((1, 1), (2, 2), true, 9, Some(U::Both)),
            ((1, 1), (2, 2), true, 2, boxed(2, 2)),
            ((1, 1), (3, 1), true, 9, boxed(3, 1)),
            ((2, 2), (4, 4), true, 9, Some(U::Both)),
            ((2, 1), (3, 1), true, 9, None),
        ] {
            assert_eq!(
                U::new(samples, max, fancy, width),
                expected,
                "{samples:?} of {max:?}"
            );
        }
    }
}
