//! Chosen rows: a launch each way.

use candle_core::{DType, Result, Tensor};

use super::geometry;
use super::launch::{Argument, Source, launch, uninitialised};
use super::normalise::single;
use super::upload::upload;
use crate::ops::cpu::rows_and_width;
use crate::ops::gather_rows::takers;
use crate::ops::node::node1;

const NAME: &str = "gather-rows";

/// [`crate::ops::gather_rows`] of rows that are there.
pub(in crate::ops) fn gather_rows(x: &Tensor, chosen: &[u32]) -> Result<Tensor> {
    let (available, width) = rows_and_width(NAME, x.shape())?;
    let (values, device) = (single(NAME, x)?, x.device());
    let rows = chosen.len();
    let out = uninitialised((rows, width), DType::F32, device)?;
    let upload = |numbers: &[u32]| upload(numbers, numbers.len(), device);
    launch(
        device,
        Source::GatherRows,
        "gather_rows_forward",
        &geometry::warp_rows(rows),
        &[
            Argument::Read(&values),
            Argument::Read(&upload(chosen)?),
            Argument::Write(&out),
            Argument::Count(rows),
            Argument::Count(width),
        ],
    )?;
    if !x.track_op() {
        return Ok(out);
    }
    let (starts, takers) = takers(chosen, available);
    let (starts, takers) = (upload(&starts)?, upload(&takers)?);
    node1(NAME, x, out, move |[x], _, grad| {
        let dx = uninitialised(x.shape(), DType::F32, x.device())?;
        launch(
            x.device(),
            Source::GatherRows,
            "gather_rows_backward",
            &geometry::warp_rows(available),
            &[
                Argument::Read(grad),
                Argument::Read(&starts),
                Argument::Read(&takers),
                Argument::Write(&dx),
                Argument::Count(available),
                Argument::Count(width),
            ],
        )?;
        Ok([Some(dx)])
    })
}
