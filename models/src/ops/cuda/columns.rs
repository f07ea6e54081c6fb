//! Sums over rows, and a bias onto them.

use candle_core::{DType, Result, Tensor};

use super::geometry::{self, Chunked};
use super::launch::{Argument, Source, is_wide, launch, strips, uninitialised};

/// Partial sums [chunks, width] for a kernel to write.
pub(super) struct Partials(Tensor);

impl Partials {
    pub(super) fn new(chunks: usize, width: usize, like: &Tensor) -> Result<Self> {
        Ok(Self(uninitialised((chunks, width), DType::F32, like.device())?))
    }

    pub(super) fn argument(&self) -> Argument<'_> {
        Argument::Write(&self.0)
    }

    /// A null pointer where nothing wants them.
    pub(super) fn optional(partials: &Option<Self>) -> Argument<'_> {
        Argument::OptionalWrite(partials.as_ref().map(|partials| &partials.0))
    }

    /// Their sums, [width].
    pub(super) fn sums(&self) -> Result<Tensor> {
        let (chunks, width) = self.0.dims2()?;
        let sums = uninitialised(width, DType::F32, self.0.device())?;
        launch(
            self.0.device(),
            Source::Columns,
            "sum_partials",
            &geometry::partials(width),
            &[
                Argument::Read(&self.0),
                Argument::Write(&sums),
                Argument::Count(chunks),
                Argument::Count(width),
            ],
        )?;
        Ok(sums)
    }

    /// Their sums in two halves.
    pub(super) fn two_sums(&self) -> Result<(Tensor, Tensor)> {
        let sums = self.sums()?;
        let half = sums.elem_count() / 2;
        Ok((sums.narrow(0, 0, half)?, sums.narrow(0, half, half)?))
    }
}

/// The sums over the rows of `values` [rows, width], [width] in f32.
pub(super) fn column_sums(values: &Tensor) -> Result<Tensor> {
    let (rows, width) = values.dims2()?;
    let chunked = Chunked::with_sums(rows, width, is_wide(width, &[Some(values)]));
    let partials = Partials::new(chunked.chunks, width, values)?;
    launch(
        values.device(),
        Source::Columns,
        &strips("column_sums", values.dtype(), &chunked)?,
        &chunked.launch,
        &[
            Argument::Read(values),
            partials.argument(),
            Argument::Count(rows),
            Argument::Count(width),
            Argument::Count(chunked.chunk_rows),
            Argument::Count(chunked.across),
        ],
    )?;
    partials.sums()
}

/// Adds `bias` [width], f32, to the rows of `values` [rows, width] in their place.
pub(super) fn add_bias(values: &Tensor, bias: &Tensor) -> Result<()> {
    let (rows, width) = values.dims2()?;
    let chunked = Chunked::new(rows, width, is_wide(width, &[Some(values), Some(bias)]));
    launch(
        values.device(),
        Source::Columns,
        &strips("add_bias", values.dtype(), &chunked)?,
        &chunked.launch,
        &[
            Argument::Change(values),
            Argument::Read(bias),
            Argument::Count(rows),
            Argument::Count(width),
            Argument::Count(chunked.chunk_rows),
            Argument::Count(chunked.across),
        ],
    )
}
