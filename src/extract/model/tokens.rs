//! What the tokens of an ONNX file from elsewhere are: which is the class token, which are registers, which lie on the grid of
//! patches. Nothing in such a file says so; the number of tokens does, with the size of the images.

/// Tokens before those of patches, the commonest first: a class token; one and four registers; none (a network without class
/// token, or a hierarchical one); then any number of registers up to sixteen.
const BEFORE_PATCHES: [usize; 18] = [1, 5, 0, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];

/// Rows and columns of `tokens` square patches over an image of `height` x `width`.
pub fn grid_of(tokens: usize, (height, width): (usize, usize)) -> Option<(usize, usize)> {
    let side = ((height * width) as f64 / tokens.max(1) as f64).sqrt().round() as usize;
    let whole = side > 0 && height % side == 0 && width % side == 0;
    (whole && (height / side) * (width / side) == tokens).then(|| (height / side, width / side))
}

/// The tokens of one image, `[count, width]`.
pub(super) struct Tokens {
    count: usize,
    /// Tokens before those of patches; `None` where no number leaves a grid.
    before: Option<usize>,
}

/// A part of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Its first token.
    Class,
    /// The tokens from the second up to the given one.
    Registers(usize),
    /// The tokens from the given one.
    Patches(usize),
    /// Their mean.
    MeanOfPatches(usize),
}

impl Tokens {
    /// Of `count` tokens for an image of height and width `size`.
    pub(super) fn new(count: usize, size: (usize, usize)) -> Self {
        let fits = |before: &&usize| count > **before && grid_of(count - **before, size).is_some();
        Self {
            count,
            before: BEFORE_PATCHES.iter().find(fits).copied(),
        }
    }

    /// The features that can be made of the tokens, by macula's names.
    pub(super) fn parts(&self) -> Vec<(&'static str, Part)> {
        let Some(before) = self.before else {
            return vec![("cls", Part::Class)];
        };
        let mut parts = Vec::new();
        if before > 0 {
            parts.push(("cls", Part::Class));
        }
        parts.push(("patch", Part::Patches(before)));
        parts.push(("patch_mean", Part::MeanOfPatches(before)));
        if before > 1 {
            parts.push(("reg", Part::Registers(before)));
        }
        parts
    }

    /// What a part is, in words.
    pub(super) fn describe(&self, part: Part) -> String {
        let count = self.count;
        match part {
            Part::Whole => format!("all {count} tokens"),
            Part::Class if self.before.is_none() => {
                format!("the first of {count} tokens (which are no class token and a grid of patches)")
            }
            Part::Class => format!("the class token (first of {count})"),
            Part::Registers(before) => format!("tokens 2 to {before} of {count}"),
            Part::Patches(before) => format!("tokens {} to {count}", before + 1),
            Part::MeanOfPatches(before) => format!("the mean of tokens {} to {count}", before + 1),
        }
    }
}

impl Part {
    /// The shape of the part of an output of `shape`, without the batch.
    pub(super) fn shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Self::Class | Self::MeanOfPatches(_), &[_, width]) => vec![width],
            (Self::Registers(before), &[_, width]) => vec![before - 1, width],
            (Self::Patches(before), &[count, width]) => vec![count.saturating_sub(before), width],
            (_, whole) => whole.to_vec(),
        }
    }

    /// Appends the part of `values`, whose `shape` begins with `n` images.
    pub(super) fn append(self, values: &[f32], n: usize, shape: &[usize], buffer: &mut Vec<f32>) {
        let &[_, count, width] = shape else {
            buffer.extend_from_slice(values);
            return;
        };
        for image in values.chunks_exact((values.len() / n).max(1)) {
            let tokens = |first: usize, end: usize| &image[first.min(count) * width..end.min(count) * width];
            match self {
                Self::Whole => buffer.extend_from_slice(image),
                Self::Class => buffer.extend_from_slice(tokens(0, 1)),
                Self::Registers(before) => buffer.extend_from_slice(tokens(1, before)),
                Self::Patches(before) => buffer.extend_from_slice(tokens(before, count)),
                Self::MeanOfPatches(before) => buffer.extend(mean(tokens(before, count), width)),
            }
        }
    }
}

/// The mean of `tokens`, `[count, width]`, summed in f64.
fn mean(tokens: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for token in tokens.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(token) {
            *sum += f64::from(*value);
        }
    }
    let count = (tokens.len() / width).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_tokens_tells_what_they_are() {
        for (count, size, before) in [
            (197, (224, 224), Some(1)), // ViT-B/16
            (257, (224, 224), Some(1)), // ViT-B/14
            (261, (224, 224), Some(5)), // with four registers
            (196, (224, 224), Some(0)), // SigLIP: no class token
            (49, (224, 224), Some(0)),  // Swin: 7 x 7 of 32 pixels
            (198, (224, 224), Some(2)), // DeiT with its distillation token
            (265, (224, 224), Some(9)), // eight registers
            (1 + 16 * 32, (224, 448), Some(1)),
            (9, (28, 28), Some(5)),   // 3 x 3 do not divide 28
            (3, (224, 224), Some(2)), // one patch: the whole image
            (100, (224, 224), None),
        ] {
            assert_eq!(
                Tokens::new(count, size).before,
                before,
                "{count} tokens of {size:?}"
            );
        }
    }

    #[test]
    fn parts_are_cut_out_image_by_image() {
        let values: Vec<f32> = (0..2 * 4 * 2).map(|value| value as f32).collect(); // 2 images, 4 tokens, 2 wide
        let of = |part: Part| {
            let mut buffer = vec![-1.0];
            part.append(&values, 2, &[2, 4, 2], &mut buffer);
            buffer.split_off(1)
        };
        assert_eq!(of(Part::Class), [0., 1., 8., 9.]);
        assert_eq!(of(Part::Registers(2)), [2., 3., 10., 11.]);
        assert_eq!(of(Part::Patches(2)), [4., 5., 6., 7., 12., 13., 14., 15.]);
        assert_eq!(of(Part::MeanOfPatches(2)), [5., 6., 13., 14.]);
        assert_eq!(of(Part::Whole), values);
        for part in [
            Part::Class,
            Part::Registers(2),
            Part::Patches(2),
            Part::MeanOfPatches(2),
        ] {
            let width: usize = part.shape(&[4, 2]).iter().product();
            assert_eq!(of(part).len(), 2 * width, "{part:?}");
        }
    }

    #[test]
    fn what_is_no_grid_has_a_first_token_only() {
        let tokens = Tokens::new(100, (224, 224));
        assert_eq!(tokens.parts(), [("cls", Part::Class)]);
        assert!(tokens.describe(Part::Class).contains("no class token and a grid"));
        let names = |count| {
            Tokens::new(count, (224, 224))
                .parts()
                .into_iter()
                .map(|(name, _)| name)
        };
        assert_eq!(names(196).collect::<Vec<_>>(), ["patch", "patch_mean"]);
        assert_eq!(names(197).collect::<Vec<_>>(), ["cls", "patch", "patch_mean"]);
        assert_eq!(
            names(261).collect::<Vec<_>>(),
            ["cls", "patch", "patch_mean", "reg"]
        );
    }

    #[test]
    fn a_grid_has_rows_and_columns_of_square_patches() {
        assert_eq!(grid_of(16 * 32, (224, 448)), Some((16, 32)));
        assert_eq!(grid_of(784, (28, 28)), Some((28, 28))); // pixels
        assert_eq!(grid_of(1, (28, 28)), Some((1, 1)));
        for none in [0, 2, 10_000] {
            assert_eq!(grid_of(none, (28, 28)), None, "{none}");
        }
    }
}
