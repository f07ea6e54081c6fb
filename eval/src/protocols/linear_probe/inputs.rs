//! What a head sees: CLS tokens of the last blocks side by side, with or without the mean patch token.

use crate::{Error, Matrix, MatrixView, Result};
use std::fmt;

/// Frozen features of one set of images, all `[n, D]` after the final norm.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeFeatures {
    /// CLS token of the last blocks, oldest to newest; the last is the network's output.
    pub cls_blocks: Vec<Matrix>,
    /// Mean patch token of the last block.
    pub patch_mean: Option<Matrix>,
}

/// One choice of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Input {
    /// Number of last blocks.
    pub blocks: usize,
    /// Whether the mean patch token is appended.
    pub average_pool: bool,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_blocks_avgpool_{}", self.blocks, self.average_pool)
    }
}

impl ProbeFeatures {
    /// Number of rows, which every part shares.
    pub(super) fn check(&self, what: &str) -> Result<usize> {
        let Some(last) = self.cls_blocks.last() else {
            return Err(Error::data(
                what,
                "expected the CLS token of at least one block, found none",
            ));
        };
        let rows = last.view().rows();
        if rows == 0 {
            return Err(Error::data(what, "expected at least one row, found none"));
        }
        for (name, part) in self.parts() {
            if part.rows() != rows {
                return Err(Error::data(
                    format!("{what}, {name}"),
                    format!(
                        "expected {rows} rows as in the last CLS block, found {}",
                        part.rows()
                    ),
                ));
            }
            part.check_finite(&format!("{what}, {name}"))?;
        }
        Ok(rows)
    }

    /// Refuses test features of other parts or widths than those trained on.
    pub(super) fn check_like(&self, train: &Self) -> Result<()> {
        let shape = |features: &Self| -> Vec<(String, usize)> {
            features.parts().map(|(name, part)| (name, part.dim())).collect()
        };
        let describe = |shape: Vec<(String, usize)>| -> String {
            let parts: Vec<String> = shape
                .into_iter()
                .map(|(name, dim)| format!("{name} of width {dim}"))
                .collect();
            parts.join(", ")
        };
        let (ours, theirs) = (shape(self), shape(train));
        if ours == theirs {
            return Ok(());
        }
        Err(Error::data(
            "test features",
            format!(
                "expected {} as in training, found {}",
                describe(theirs),
                describe(ours)
            ),
        ))
    }

    fn parts(&self) -> impl Iterator<Item = (String, MatrixView<'_>)> {
        let blocks = self.cls_blocks.iter().enumerate();
        blocks
            .map(|(i, block)| (format!("CLS block {i}"), block.view()))
            .chain(
                self.patch_mean
                    .iter()
                    .map(|mean| ("mean patch token".to_owned(), mean.view())),
            )
    }

    pub(super) fn can_serve(&self, input: Input) -> bool {
        input.blocks <= self.cls_blocks.len() && (!input.average_pool || self.patch_mean.is_some())
    }

    /// The matrices of `input`, in the order in which a head sees them.
    pub(super) fn view(&self, input: Input) -> InputView<'_> {
        let blocks = &self.cls_blocks[self.cls_blocks.len() - input.blocks..];
        let mean = self.patch_mean.iter().filter(|_| input.average_pool);
        let parts: Vec<MatrixView<'_>> = blocks.iter().chain(mean).map(Matrix::view).collect();
        let dim = parts.iter().map(MatrixView::dim).sum();
        InputView { parts, dim }
    }
}

/// An [`Input`] of some [`ProbeFeatures`].
pub(super) struct InputView<'a> {
    parts: Vec<MatrixView<'a>>,
    pub(super) dim: usize,
}

impl InputView<'_> {
    /// Copies the given rows side by side into `out` `[B, F]`.
    pub(super) fn gather(&self, rows: &[usize], out: &mut Vec<f32>) {
        out.clear();
        for &row in rows {
            for part in &self.parts {
                out.extend_from_slice(part.row(row));
            }
        }
    }
}
