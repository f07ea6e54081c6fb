//! Which pixels of a depth map count, as the reference's data sets have them: borders are left out where sensors see nothing,
//! and test scores are taken on the crops of earlier work.

use std::ops::Range;
use std::str::FromStr;

use serde::Serialize;

/// A part of a depth map; what lies outside is as good as not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DepthCrop {
    /// All of it.
    #[default]
    None,
    /// Rows 45 to 470, columns 41 to 600 of 640x480 pixels (Eigen et al. 2014): test images of NYU.
    Eigen,
    /// The lower middle (Garg et al. 2016): test images of KITTI.
    Garg,
    /// Rows 45 to 471, columns 43 to 607 of 640x480 pixels: training images of NYU without their white border.
    NyuBorder,
}

/// Width and height that NYU's images have.
const NYU: (usize, usize) = (640, 480);

impl DepthCrop {
    /// The crop that test scores on `source` are published with.
    pub fn of_test(source: &str) -> Self {
        match source.starts_with("nyu:") {
            true => Self::Eigen,
            false => Self::None,
        }
    }

    /// What counts in training on `source`, where scores are taken on this crop.
    pub fn of_training(self, source: &str) -> Self {
        match source.starts_with("nyu:") && self != Self::None {
            true => Self::NyuBorder,
            false => Self::None,
        }
    }

    /// Rows and columns that count.
    ///
    /// # Errors
    /// A size that the crop is not made for.
    fn region(self, height: usize, width: usize) -> Result<(Range<usize>, Range<usize>), String> {
        let share = |share: f64, side: usize| (share * side as f64) as usize;
        let (rows, columns) = match self {
            Self::None => return Ok((0..height, 0..width)),
            Self::Garg => {
                let rows = share(0.408_108_11, height)..share(0.991_891_89, height);
                return Ok((rows, share(0.035_947_71, width)..share(0.964_052_29, width)));
            }
            Self::Eigen => (45..471, 41..601),
            Self::NyuBorder => (45..472, 43..608),
        };
        if (width, height) == NYU {
            return Ok((rows, columns));
        }
        Err(format!(
            "expected {}x{} pixels (width x height) for the crop of NYU, found {width}x{height}; --eval-crop none counts all",
            NYU.0, NYU.1
        ))
    }

    /// Puts `void` in place of what lies outside, in a map `[height, width]`.
    ///
    /// # Errors
    /// A size that the crop is not made for.
    pub(super) fn cut<V: Copy>(
        self,
        values: &mut [V],
        height: usize,
        width: usize,
        void: V,
    ) -> Result<(), String> {
        let (rows, columns) = self.region(height, width)?;
        for (y, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
            for (x, value) in row.iter_mut().enumerate() {
                if !(rows.contains(&y) && columns.contains(&x)) {
                    *value = void;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for DepthCrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "eigen" => Ok(Self::Eigen),
            "garg" => Ok(Self::Garg),
            _ => Err(format!("expected none, eigen or garg, found `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(crop: DepthCrop, height: usize, width: usize) -> Vec<(usize, usize)> {
        let mut values = vec![1.0f32; height * width];
        crop.cut(&mut values, height, width, 0.0).unwrap();
        let kept = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
        kept.map(|(place, _)| (place / width, place % width)).collect()
    }

    #[test]
    fn crops_are_the_data_sets_own() {
        let eigen = left(DepthCrop::Eigen, 480, 640);
        assert_eq!((eigen[0], eigen.len()), ((45, 41), 426 * 560));
        assert_eq!(eigen[eigen.len() - 1], (470, 600));
        let border = left(DepthCrop::NyuBorder, 480, 640);
        assert_eq!((border[0], border.len()), ((45, 43), 427 * 565));
        // int(0.40810811 * 375) = 153 to 371, int(0.03594771 * 1242) = 44 to 1197.
        let garg = left(DepthCrop::Garg, 375, 1242);
        assert_eq!((garg[0], garg.len()), ((153, 44), (371 - 153) * (1197 - 44)));
        assert_eq!(left(DepthCrop::None, 2, 3).len(), 6);
        let error = DepthCrop::Eigen.cut(&mut [0.0; 6], 2, 3, 0.0).unwrap_err();
        assert!(
            error.contains("expected 640x480") && error.contains("found 3x2"),
            "{error}"
        );
    }

    #[test]
    fn a_source_says_which() {
        assert_eq!(DepthCrop::of_test("nyu:folder#test"), DepthCrop::Eigen);
        assert_eq!(DepthCrop::of_test("list.csv"), DepthCrop::None);
        let training = |crop: DepthCrop, source| crop.of_training(source);
        assert_eq!(
            training(DepthCrop::Eigen, "nyu:folder#train"),
            DepthCrop::NyuBorder
        );
        assert_eq!(training(DepthCrop::None, "nyu:folder#train"), DepthCrop::None);
        assert_eq!(training(DepthCrop::Garg, "list.csv"), DepthCrop::None);
        assert!("Eigen".parse::<DepthCrop>().is_err());
        assert_eq!("garg".parse(), Ok(DepthCrop::Garg));
    }
}
