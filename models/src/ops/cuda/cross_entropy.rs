//! Cross-entropies with target distributions: a launch each way. Of logits that are a product, the gradient takes the place of the
//! logits: with 65,536 prototypes those are the largest tensors of a step.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};

use super::geometry;
use super::launch::{Argument, Source, is_wide, launch, uninitialised, wide};
use super::normalise::single;
use super::upload::upload;
use crate::ops::node::{node1, node2};

const NAME: &str = "soft-cross-entropy";
const PRODUCT_NAME: &str = "product-cross-entropy";

/// [`crate::ops::soft_cross_entropy`] of shapes that have been checked.
pub(in crate::ops) fn soft_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    let values = single(NAME, logits)?;
    let targets = Targets::new(NAME, targets, target_rows, temperature)?;
    let (losses, statistics) = targets.losses(&values)?;
    node1(NAME, logits, losses, move |[logits], _, grad| {
        let dlogits = uninitialised(logits.shape(), DType::F32, logits.device())?;
        let into = Argument::Write(&dlogits);
        targets.gradients(&values, &statistics, grad, into)?;
        Ok([Some(dlogits)])
    })
}

/// [`crate::ops::product_cross_entropy`] of shapes that have been checked.
pub(in crate::ops) fn product_cross_entropy(
    points: &Tensor,
    prototypes: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    let (rows, columns) = (single(PRODUCT_NAME, points)?, single(PRODUCT_NAME, prototypes)?);
    let targets = Targets::new(PRODUCT_NAME, targets, target_rows, temperature)?;
    let logits = rows.matmul(&columns.t()?)?; // [M, K]
    let (losses, statistics) = targets.losses(&logits)?;
    // The first backward pass uses them up.
    let logits = Mutex::new(Some(logits));
    node2(
        PRODUCT_NAME,
        [points, prototypes],
        losses,
        move |[points, prototypes], _, grad| {
            let kept = logits.lock().unwrap_or_else(PoisonError::into_inner).take();
            let dlogits = match kept {
                Some(logits) => logits,
                None => rows.matmul(&columns.t()?)?,
            };
            targets.gradients(&dlogits, &statistics, grad, Argument::Change(&dlogits))?;
            let dpoints = points.track_op().then(|| dlogits.matmul(&columns));
            let dprototypes = prototypes.track_op().then(|| dlogits.t()?.matmul(&rows));
            Ok([dpoints.transpose()?, dprototypes.transpose()?])
        },
    )
}

/// Target distributions on the device.
struct Targets {
    values: Tensor, // [T, K]
    /// The row of each row of logits, [M].
    rows: Option<Tensor>,
    /// One over the temperature.
    inverse: f32,
}

impl Targets {
    fn new(name: &str, targets: &Tensor, rows: Option<&[u32]>, temperature: f64) -> Result<Self> {
        let upload = |rows: &[u32]| upload(rows, rows.len(), targets.device());
        Ok(Self {
            values: single(name, targets)?,
            rows: rows.map(upload).transpose()?,
            inverse: (1. / temperature) as f32,
        })
    }

    /// The loss of each row of `logits` [M, K], and what the backward pass needs of it.
    fn losses(&self, logits: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, classes) = logits.dims2()?;
        let losses = uninitialised(rows, DType::F32, logits.device())?;
        let statistics = uninitialised((rows, 2), DType::F32, logits.device())?;
        launch(
            logits.device(),
            Source::CrossEntropy,
            &wide(
                "cross_entropy_forward",
                DType::F32,
                is_wide(classes, &[Some(logits), Some(&self.values)]),
            )?,
            &geometry::block_rows(rows),
            &[
                Argument::Read(logits),
                Argument::Read(&self.values),
                Argument::Optional(self.rows.as_ref()),
                Argument::Write(&losses),
                Argument::Write(&statistics),
                Argument::Count(classes),
                Argument::Float(self.inverse),
            ],
        )?;
        Ok((losses, statistics))
    }

    /// Writes the gradients of `logits` into a tensor like it, or itself.
    fn gradients(&self, logits: &Tensor, statistics: &Tensor, grad: &Tensor, into: Argument) -> Result<()> {
        let (rows, classes) = logits.dims2()?;
        launch(
            logits.device(),
            Source::CrossEntropy,
            &wide(
                "cross_entropy_backward",
                DType::F32,
                is_wide(classes, &[Some(logits), Some(&self.values)]),
            )?,
            &geometry::wide_rows(rows, classes),
            &[
                Argument::Read(logits),
                Argument::Read(&self.values),
                Argument::Optional(self.rows.as_ref()),
                Argument::Read(statistics),
                Argument::Read(grad),
                into,
                Argument::Count(classes),
                Argument::Float(self.inverse),
            ],
        )
    }
}
