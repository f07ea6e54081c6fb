//! Rows of unit length, and weight normalisation: a launch each way.

use candle_core::{DType, Result, Tensor, bail};

use super::geometry;
use super::launch::{Argument, Source, launch, uninitialised};
use crate::ops::cpu::rows_and_width;
use crate::ops::node::{node1, node2};

/// [`crate::ops::l2_normalize`].
pub(in crate::ops) fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    const NAME: &str = "l2-normalize";
    let (rows, width) = rows_and_width(NAME, x.shape())?;
    let eps = eps as f32;
    let values = single(NAME, x)?;
    let device = x.device();
    let out = uninitialised(x.shape(), DType::F32, device)?;
    let lengths = uninitialised(rows, DType::F32, device)?;
    launch(
        device,
        Source::Normalise,
        "l2_normalize_forward",
        &geometry::warp_rows(rows),
        &[
            Argument::Read(&values),
            Argument::Write(&out),
            Argument::Write(&lengths),
            Argument::Count(rows),
            Argument::Count(width),
            Argument::Float(eps),
        ],
    )?;
    node1(NAME, x, out, move |[x], y, grad| {
        let dx = uninitialised(x.shape(), DType::F32, x.device())?;
        launch(
            x.device(),
            Source::Normalise,
            "l2_normalize_backward",
            &geometry::warp_rows(rows),
            &[
                Argument::Read(y),
                Argument::Read(grad),
                Argument::Read(&lengths),
                Argument::Write(&dx),
                Argument::Count(rows),
                Argument::Count(width),
                Argument::Float(eps),
            ],
        )?;
        Ok([Some(dx)])
    })
}

/// [`crate::ops::weight_norm`] of shapes that have been checked.
pub(in crate::ops) fn weight_norm(directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
    const NAME: &str = "weight-norm";
    let (rows, width) = directions.dims2()?;
    let (values, gains) = (single(NAME, directions)?, single(NAME, gain)?);
    let device = directions.device();
    let out = uninitialised((rows, width), DType::F32, device)?;
    let lengths = uninitialised(rows, DType::F32, device)?;
    launch(
        device,
        Source::Normalise,
        "weight_norm_forward",
        &geometry::warp_rows(rows),
        &[
            Argument::Read(&values),
            Argument::Read(&gains),
            Argument::Write(&out),
            Argument::Write(&lengths),
            Argument::Count(rows),
            Argument::Count(width),
        ],
    )?;
    node2(NAME, [directions, gain], out, move |[_, gain], _, grad| {
        let device = grad.device();
        let ddirections = uninitialised((rows, width), DType::F32, device)?;
        let dgain = uninitialised((rows, 1), DType::F32, device)?;
        launch(
            device,
            Source::Normalise,
            "weight_norm_backward",
            &geometry::warp_rows(rows),
            &[
                Argument::Read(&values),
                Argument::Read(&gains),
                Argument::Read(&lengths),
                Argument::Read(grad),
                Argument::Write(&ddirections),
                Argument::Write(&dgain),
                Argument::Count(rows),
                Argument::Count(width),
            ],
        )?;
        Ok([Some(ddirections), gain.track_op().then_some(dgain)])
    })
}

/// The values of a tensor for a kernel to read.
pub(super) fn single(name: &str, tensor: &Tensor) -> Result<Tensor> {
    if tensor.dtype() != DType::F32 {
        bail!("{name}: expected f32, found {:?}", tensor.dtype())
    }
    tensor.detach().contiguous()
}
