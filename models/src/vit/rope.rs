//! Rotary positions of patches: from the place of a patch to the angles by which its queries and keys are turned.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use crate::ops::Rotary;
use crate::{Error, Result};

/// Rotary positions of patches: [`crate::ops::Rotary`]. Of each head the first quarter of pairs follows one axis of the image,
/// the second the other: the angle is `coordinate * theta^(-4 i / d)`, with a factor of 2 pi where coordinates are centred.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Base of the periods, above 0. Default: 100.
    #[serde(default = "theta")]
    pub theta: f64,
    /// What the coordinates of patches are. Default: centred.
    #[serde(default, skip_serializing_if = "RopeGrid::is_centred")]
    pub grid: RopeGrid,
    /// Whether a position table is added to the tokens too. Default: false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub position_table: bool,
}

/// The coordinates of patches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeGrid {
    /// Centres of patches, from -1 to 1 over the image (DINOv3, section 3.2).
    #[default]
    Centred,
    /// Counted (EVA-02, PE).
    Counted(CountedGrid),
}

/// Coordinates `(i + offset) / n * reference` of the i-th of n rows or columns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountedGrid {
    /// Patches along a side of the images of pretraining, at least 1.
    pub reference: usize,
    /// What is added to a place. Default: 0.
    #[serde(default)]
    pub offset: f64,
    /// Whether the first quarter of a head follows columns, and not rows. Default: false.
    #[serde(default)]
    pub columns_first: bool,
}

fn theta() -> f64 {
    100.
}
fn is_no(value: &bool) -> bool {
    !value
}

impl RopeGrid {
    fn is_centred(&self) -> bool {
        *self == Self::Centred
    }
}

impl RopeConfig {
    /// DINOv3's, in place of a position table.
    pub fn dinov3() -> Self {
        Self {
            theta: theta(),
            grid: RopeGrid::Centred,
            position_table: false,
        }
    }

    /// EVA-02's, beside a position table.
    pub fn eva02() -> Self {
        let grid = CountedGrid {
            reference: 16,
            offset: 0.,
            columns_first: false,
        };
        Self {
            theta: 10_000.,
            grid: RopeGrid::Counted(grid),
            position_table: true,
        }
    }

    /// That of PE (Perception Encoder) for images of `reference` patches a side, beside a position table.
    pub fn perception(reference: usize) -> Self {
        let grid = CountedGrid {
            reference,
            offset: 1.,
            columns_first: true,
        };
        Self {
            grid: RopeGrid::Counted(grid),
            ..Self::eva02()
        }
    }

    /// Checks the numbers, for heads of `head_dim`.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn validate(&self, head_dim: usize) -> Result<()> {
        if !(self.theta.is_finite() && self.theta > 0.) {
            let reason = format!("expected a positive number, found {}", self.theta);
            return Err(Error::config("rope.theta", reason));
        }
        if let RopeGrid::Counted(grid) = self.grid {
            if grid.reference == 0 {
                return Err(Error::config(
                    "rope.grid.reference",
                    "expected at least 1, found 0",
                ));
            }
            if !grid.offset.is_finite() {
                let reason = format!("expected a number, found {}", grid.offset);
                return Err(Error::config("rope.grid.offset", reason));
            }
        }
        if !head_dim.is_multiple_of(4) {
            let reason = format!("expected heads of a multiple of 4 for rotary positions, found {head_dim}");
            return Err(Error::config("num_heads", reason));
        }
        Ok(())
    }

    /// The factors of a coordinate, an angle each, of one axis of a head of `head_dim`: [d / 4].
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let quarter = head_dim / 4;
        let turn = match self.grid {
            RopeGrid::Centred => TAU,
            RopeGrid::Counted(_) => 1.,
        };
        let frequency = |i: usize| turn / self.theta.powf(i as f64 / quarter as f64);
        (0..quarter).map(frequency).collect()
    }

    /// The coordinate of place `i` of `count`.
    fn coordinate(&self, i: usize, count: usize) -> f64 {
        match self.grid {
            RopeGrid::Centred => 2. * (i as f64 + 0.5) / count as f64 - 1.,
            RopeGrid::Counted(grid) => (i as f64 + grid.offset) / count as f64 * grid.reference as f64,
        }
    }

    /// Whether the first quarter of a head follows columns.
    pub fn columns_first(&self) -> bool {
        matches!(self.grid, RopeGrid::Counted(grid) if grid.columns_first)
    }

    /// The table of `prefix` tokens, which stay as they are, and of the patches of a grid of rows and columns after them.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn table(&self, head_dim: usize, prefix: usize, (rows, columns): (usize, usize)) -> Result<Rotary> {
        self.validate(head_dim)?;
        let frequencies = self.frequencies(head_dim);
        let mut angles = Vec::with_capacity(rows * columns * head_dim / 2);
        for row in 0..rows {
            for column in 0..columns {
                let mut at = [self.coordinate(row, rows), self.coordinate(column, columns)];
                if self.columns_first() {
                    at.reverse();
                }
                for at in at {
                    angles.extend(frequencies.iter().map(|frequency| at * frequency));
                }
            }
        }
        Ok(Rotary::of_angles(&angles, head_dim / 2, prefix)?)
    }
}
