//! Sequence packing: images of two sizes in the rows of one tensor, so that what does not look beyond a row runs on all of them
//! at once (DINOv2, section 5, "Efficient training"; reference: `NestedTensorBlock`).

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::BranchSamples;
use super::node::node2;

const NAME: &str = "packing";

/// Images of one size and then, where there are any, images of another, with all tokens of an image in rows of their own: image by
/// image, token by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Images of either size.
    images: [usize; 2],
    /// Tokens of an image of either size.
    tokens: [usize; 2],
}

impl Packing {
    /// `images` of `tokens` rows each.
    pub fn one(images: usize, tokens: usize) -> Self {
        Self {
            images: [images, 0],
            tokens: [tokens, 1],
        }
    }

    /// First `first` images of `tokens` rows each, then `second` of theirs.
    pub fn two((first, tokens): (usize, usize), (second, tokens_of_second): (usize, usize)) -> Self {
        Self {
            images: [first, second],
            tokens: [tokens, tokens_of_second],
        }
    }

    /// Images of either size.
    pub fn images(&self) -> usize {
        self.images[0] + self.images[1]
    }

    /// Rows of all images.
    pub fn rows(&self) -> usize {
        self.first_rows() + self.images[1] * self.tokens[1]
    }

    /// Rows of the images of the first size.
    pub fn first_rows(&self) -> usize {
        self.images[0] * self.tokens[0]
    }

    /// Tokens of an image of either size.
    pub(super) fn tokens(&self) -> [usize; 2] {
        self.tokens
    }

    /// The image that a row belongs to.
    pub fn image_of(&self, row: usize) -> usize {
        match row.checked_sub(self.first_rows()) {
            None => row / self.tokens[0].max(1),
            Some(row) => self.images[0] + row / self.tokens[1].max(1),
        }
    }

    /// For each size that has images: which it is, their number, the tokens of one, their rows.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (usize, usize, usize, Range<usize>)> {
        let ([first, second], [tokens, tokens_of_second]) = (self.images, self.tokens);
        let (end_of_first, end) = (self.first_rows(), self.rows());
        let sizes = [
            (0, first, tokens, 0..end_of_first),
            (1, second, tokens_of_second, end_of_first..end),
        ];
        sizes.into_iter().filter(|(_, images, ..)| *images > 0)
    }

    /// The same sizes with the images that `samples` names, in its order: those of the first size have to come first.
    pub(super) fn of_samples(&self, samples: &BranchSamples) -> Result<Self> {
        let is_first = |&sample: &u32| (sample as usize) < self.images[0];
        let first = samples.kept.iter().take_while(|sample| is_first(sample)).count();
        if samples.kept[first..].iter().any(is_first) {
            bail!("{NAME}: expected the samples of the first size before those of the second")
        }
        Ok(Self {
            images: [first, samples.kept.len() - first],
            tokens: self.tokens,
        })
    }

    /// `samples` taken apart by size.
    pub(super) fn apart(&self, samples: &BranchSamples) -> Result<[BranchSamples; 2]> {
        let first = self.of_samples(samples)?.images[0];
        let part = |range: Range<usize>, before: usize| BranchSamples {
            kept: samples.kept[range.clone()]
                .iter()
                .map(|sample| sample - before as u32)
                .collect(),
            factors: samples.factors[range].to_vec(),
        };
        Ok([part(0..first, 0), part(first..samples.kept.len(), self.images[0])])
    }

    /// Images of the first size, and tokens of an image of either size: what a kernel has to know.
    pub(super) fn numbers(&self) -> [usize; 3] {
        [self.images[0], self.tokens[0], self.tokens[1]]
    }
}

/// The tokens of images of two sizes, [B, T, D] each, one image after the other: [rows, D], and where each is.
///
/// Differentiable.
///
/// # Errors
/// Tensors of another rank, type, width or device than each other's.
pub fn pack(first: &Tensor, second: &Tensor) -> Result<(Tensor, Packing)> {
    let ((images, tokens, width), (more, tokens_of_second, other)) = (first.dims3()?, second.dims3()?);
    if width != other {
        bail!("{NAME}: expected tokens of one width, found {width} and {other}")
    }
    let packing = Packing::two((images, tokens), (more, tokens_of_second));
    let rows = |tensor: &Tensor| tensor.detach().reshape(((), width));
    let packed = Tensor::cat(&[rows(first)?, rows(second)?], 0)?;
    let packed = node2(NAME, [first, second], packed, move |[first, second], _, grad| {
        let part = |like: &Tensor, start: usize| {
            let rows = like.elem_count() / width;
            grad.narrow(0, start, rows)?.reshape(like.shape())
        };
        Ok([
            first.track_op().then(|| part(first, 0)).transpose()?,
            second
                .track_op()
                .then(|| part(second, packing.first_rows()))
                .transpose()?,
        ])
    })?;
    Ok((packed, packing))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn every_row_has_its_image() {
        let packing = Packing::two((2, 3), (3, 2));
        let images: Vec<usize> = (0..packing.rows()).map(|row| packing.image_of(row)).collect();
        assert_eq!(images, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]);
        let sizes: Vec<_> = packing.sizes().collect();
        assert_eq!(sizes, [(0, 2, 3, 0..6), (1, 3, 2, 6..12)]);
        assert_eq!(Packing::one(2, 3).sizes().collect::<Vec<_>>(), [(0, 2, 3, 0..6)]);
    }

    #[test]
    fn samples_are_counted_and_taken_apart_by_size() {
        let packing = Packing::two((2, 3), (3, 2));
        let samples = BranchSamples {
            kept: vec![1, 4, 2],
            factors: vec![2., 1.5, 1.5],
        };
        assert_eq!(
            packing.of_samples(&samples).unwrap(),
            Packing::two((1, 3), (2, 2))
        );
        let [first, second] = packing.apart(&samples).unwrap();
        assert_eq!((first.kept, first.factors), (vec![1], vec![2.]));
        assert_eq!((second.kept, second.factors), (vec![2, 0], vec![1.5, 1.5]));
        let mixed = BranchSamples {
            kept: vec![4, 1],
            factors: vec![1., 1.],
        };
        assert!(packing.of_samples(&mixed).is_err());
    }

    #[test]
    fn packing_keeps_values_and_gradients_apart() {
        let values = |count: usize, from: f32| (0..count).map(|i| from + i as f32).collect::<Vec<f32>>();
        let first = Var::from_vec(values(12, 0.), (2, 3, 2), &Device::Cpu).unwrap();
        let second = Var::from_vec(values(4, 100.), (1, 2, 2), &Device::Cpu).unwrap();
        let (packed, packing) = pack(&first, &second).unwrap();
        assert_eq!((packed.dims(), packing.rows()), (&[8, 2][..], 8));
        let weights = Tensor::from_vec(values(16, 1.), (8, 2), &Device::Cpu).unwrap();
        let gradients = (&packed * &weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let of = |var: &Var| {
            let gradient = gradients.get(var).unwrap();
            gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(of(&first), values(12, 1.));
        assert_eq!(of(&second), values(4, 13.));
        assert_eq!(
            packed.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [values(12, 0.), values(4, 100.)].concat()
        );
    }
}
