//! What a teacher is to the trainer, whatever runs it.

use candle_core::Tensor;
use macula_models::vit::VitConfig;

use crate::data::augment::MultiCropConfig;
use crate::data::mask::Grid;
use crate::train::config::{HeadConfig, TeacherOffer};
use crate::{Error, Result};

/// What is known of a teacher before it sees an image.
#[derive(Debug, Clone)]
pub struct TeacherFacts {
    /// What it can give.
    pub offer: TeacherOffer,
    /// SHA-256 of its weights.
    pub sha256: String,
    /// Mean and standard deviation that its pixels lack.
    pub normalisation: ([f32; 3], [f32; 3]),
    /// Side of the images it takes.
    pub size: TeacherSize,
    /// Its geometry, where it is a vision transformer that macula runs.
    pub vit: Option<VitConfig>,
    /// Its heads on class tokens and, if another one, on patches.
    pub heads: Option<(HeadConfig, Option<HeadConfig>)>,
    /// How its own training cropped images, where it is a run.
    pub crops: Option<MultiCropConfig>,
    /// What else its outputs depend on: the library that runs it.
    pub engine: String,
}

/// Sides of images that a teacher takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeacherSize {
    /// This side only.
    Fixed(usize),
    /// Every multiple of this.
    MultipleOf(usize),
}

impl TeacherSize {
    /// The side at which crops of `side` pixels are shown: `wanted`, or with 0 the least it takes that is not smaller than
    /// the crops.
    ///
    /// # Errors
    /// A wanted side that the teacher does not take.
    pub fn resolve(self, wanted: usize, side: usize) -> Result<usize> {
        let (taken, expected) = match self {
            Self::Fixed(fixed) => (fixed, format!("the {fixed} pixels that the teacher takes")),
            Self::MultipleOf(step) => {
                let min = side.div_ceil(step) * step;
                let taken = if wanted > 0 && wanted.is_multiple_of(step) {
                    wanted
                } else {
                    min
                };
                (taken, format!("a multiple of {step}"))
            }
        };
        if wanted > 0 && taken != wanted {
            let reason = format!("expected {expected}, found {wanted}");
            return Err(Error::input("distill.teacher_size", reason));
        }
        Ok(taken)
    }
}

/// Which outputs are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Class tokens.
    pub cls: bool,
    /// Patch tokens.
    pub patch: bool,
    /// Mean patch tokens.
    pub patch_mean: bool,
    /// Class scores.
    pub scores: bool,
}

/// What a teacher gave for n crops; what was not asked for is none.
#[derive(Debug, Clone, Default)]
pub struct TeacherFeatures {
    /// Class tokens [n, D].
    pub cls: Option<Tensor>,
    /// Patch tokens [n, N, D] and their grid.
    pub patch: Option<(Tensor, Grid)>,
    /// Mean patch tokens [n, D].
    pub patch_mean: Option<Tensor>,
    /// Class scores [n, K].
    pub scores: Option<Tensor>,
}

/// A network that gives targets and never learns. What it returns carries no gradient.
pub trait FrozenTeacher: Send {
    /// What is known of it.
    fn facts(&self) -> &TeacherFacts;

    /// Its outputs for `pixels` [n, 3, S, S], normalised as it expects them, at a side that it takes.
    ///
    /// # Errors
    /// Failures of what runs it.
    fn features(&mut self, pixels: &Tensor, wanted: &Wanted) -> Result<TeacherFeatures>;

    /// Its DINO head on class tokens: [n, D] to [n, K].
    ///
    /// # Errors
    /// A teacher without that head.
    fn cls_logits(&self, tokens: &Tensor) -> Result<Tensor>;

    /// Its iBOT head on patch tokens: [m, D] to [m, K].
    ///
    /// # Errors
    /// A teacher without that head.
    fn patch_logits(&self, tokens: &Tensor) -> Result<Tensor>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_teachers_side_is_one_it_takes() {
        let patches = TeacherSize::MultipleOf(14);
        assert_eq!(patches.resolve(0, 28).unwrap(), 28);
        assert_eq!(patches.resolve(0, 32).unwrap(), 42);
        assert_eq!(patches.resolve(224, 32).unwrap(), 224);
        assert_eq!(TeacherSize::Fixed(224).resolve(0, 32).unwrap(), 224);
        for (size, wanted) in [(patches, 32), (TeacherSize::Fixed(224), 112)] {
            let error = size.resolve(wanted, 28).unwrap_err().to_string();
            assert!(error.starts_with("distill.teacher_size: expected"), "{error}");
        }
    }
}
