//! Images with an alpha channel over one colour.

/// `colour`, not multiplied by `alpha`, laid over `background`; where there is none, alpha is dropped. Each sample is
/// `(colour * alpha + background * (255 - alpha)) / 255`, rounded to nearest: what Pillow's `Image.alpha_composite` over an
/// opaque colour and `Image.paste` with the alpha channel as mask both give.
pub(super) fn over(colour: [u8; 3], alpha: u8, background: Option<[u8; 3]>) -> [u8; 3] {
    match background {
        None => colour,
        Some(background) => [0, 1, 2].map(|channel| blend(colour[channel], background[channel], alpha)),
    }
}

fn blend(above: u8, below: u8, alpha: u8) -> u8 {
    let sum = u32::from(above) * u32::from(alpha) + u32::from(below) * u32::from(255 - alpha);
    ((sum + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's own arithmetic: `MULDIV255`'s rounding in Paste.c, and AlphaComposite.c with its seven more bits.
    #[test]
    fn rounding_is_pillows_in_both_of_its_ways() {
        let shift = |value: u32| ((value >> 8) + value) >> 8;
        for alpha in 0..=255_u8 {
            for above in 0..=255_u8 {
                for below in (0..=255_u8).step_by(5) {
                    let (a, b) = (u32::from(alpha), 255 - u32::from(alpha));
                    let sum = u32::from(above) * a + u32::from(below) * b;
                    let ours = u32::from(blend(above, below, alpha));
                    assert_eq!(ours, shift(sum + 128), "{above} {below} {alpha}");
                    assert_eq!(
                        ours,
                        shift((sum << 7) + (128 << 7)) >> 7,
                        "{above} {below} {alpha}"
                    );
                }
            }
        }
    }

    #[test]
    fn without_a_background_alpha_is_dropped() {
        assert_eq!(over([1, 2, 3], 0, None), [1, 2, 3]);
        assert_eq!(over([1, 2, 3], 0, Some([9, 8, 7])), [9, 8, 7]);
        assert_eq!(over([1, 2, 3], 255, Some([9, 8, 7])), [1, 2, 3]);
    }
}
