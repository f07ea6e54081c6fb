//! The teacher's logits to targets: softmax around a centre in one launch, and the steps of Sinkhorn-Knopp, a launch or two each.
//! Matrices are [M, K] in f32, contiguous, with a row at least; nothing here is differentiable.

use candle_core::{DType, Result, Tensor, bail};

use super::columns::{Partials, column_sums};
use super::geometry::{self, Chunked};
use super::launch::{Argument, Source, is_wide, launch, strips, uninitialised, wide};

/// `softmax((logits - centre) inverse)` of every row, and the sums of the logits' columns [1, K]. `centre` has K values.
///
/// # Errors
/// Tensors that are not f32, contiguous and on one device with kernels; a centre of another length.
pub fn centred_softmax(logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    let (_, classes) = sizes("centred softmax", logits, &[(centre, 1)])?;
    let targets = uninitialised(logits.shape(), DType::F32, logits.device())?;
    by_row(
        "targets_centred",
        logits,
        Some(centre),
        &[
            Argument::Read(logits),
            Argument::Read(centre),
            Argument::Write(&targets),
            Argument::Count(classes),
            Argument::Float(inverse),
        ],
    )?;
    Ok((targets, column_sums(logits)?.reshape((1, classes))?))
}

/// `exp((logits - largest of the row) inverse)`, and the largest values times `inverse` [M, 1].
///
/// # Errors
/// As [`centred_softmax`].
pub fn exponentials(logits: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    let (rows, classes) = sizes("exponentials", logits, &[])?;
    let exponentials = uninitialised((rows, classes), DType::F32, logits.device())?;
    let row_max = uninitialised((rows, 1), DType::F32, logits.device())?;
    by_row(
        "targets_exponentials",
        logits,
        None,
        &[
            Argument::Read(logits),
            Argument::Write(&exponentials),
            Argument::Write(&row_max),
            Argument::Count(classes),
            Argument::Float(inverse),
        ],
    )?;
    Ok((exponentials, row_max))
}

/// The sum of all rows [1, K], each times its number of `of_row` [M, 1].
///
/// # Errors
/// As [`centred_softmax`].
pub fn weighted_sums(exponentials: &Tensor, of_row: &Tensor) -> Result<Tensor> {
    let (rows, classes) = sizes("weighted sums", exponentials, &[(of_row, 0)])?;
    let chunked = Chunked::with_sums(rows, classes, is_wide(classes, &[Some(exponentials)]));
    let partials = Partials::new(chunked.chunks, classes, exponentials)?;
    launch(
        exponentials.device(),
        Source::Targets,
        &strips("targets_weighted_sums", DType::F32, &chunked)?,
        &chunked.launch,
        &[
            Argument::Read(exponentials),
            Argument::Read(of_row),
            partials.argument(),
            Argument::Count(rows),
            Argument::Count(classes),
            Argument::Count(chunked.chunk_rows),
            Argument::Count(chunked.across),
        ],
    )?;
    partials.sums()?.reshape((1, classes))
}

/// What brings the sum of every row to 1 [M, 1], when every column is scaled by `of_prototype` [1, K].
///
/// # Errors
/// As [`centred_softmax`].
pub fn row_scales(exponentials: &Tensor, of_prototype: &Tensor) -> Result<Tensor> {
    let (rows, classes) = sizes("row scales", exponentials, &[(of_prototype, 1)])?;
    let of_row = uninitialised((rows, 1), DType::F32, exponentials.device())?;
    by_row(
        "targets_row_scales",
        exponentials,
        Some(of_prototype),
        &[
            Argument::Read(exponentials),
            Argument::Read(of_prototype),
            Argument::Write(&of_row),
            Argument::Count(classes),
        ],
    )?;
    Ok(of_row)
}

/// Scales every column by `of_prototype` [1, K] and then every row to the sum 1, in the place of `exponentials`.
///
/// # Errors
/// As [`centred_softmax`].
pub fn scale(exponentials: &Tensor, of_prototype: &Tensor) -> Result<()> {
    let (_, classes) = sizes("scaled targets", exponentials, &[(of_prototype, 1)])?;
    by_row(
        "targets_scaled",
        exponentials,
        Some(of_prototype),
        &[
            Argument::Change(exponentials),
            Argument::Read(of_prototype),
            Argument::Count(classes),
        ],
    )
}

fn by_row(kernel: &str, matrix: &Tensor, vector: Option<&Tensor>, arguments: &[Argument]) -> Result<()> {
    let (rows, classes) = matrix.dims2()?;
    launch(
        matrix.device(),
        Source::Targets,
        &wide(kernel, DType::F32, is_wide(classes, &[Some(matrix), vector]))?,
        &geometry::block_rows(rows),
        arguments,
    )
}

/// Rows and columns of `matrix`, checked together with vectors that have a number for each of its rows (0) or columns (1).
fn sizes(name: &str, matrix: &Tensor, vectors: &[(&Tensor, usize)]) -> Result<(usize, usize)> {
    let (rows, classes) = matrix.dims2()?;
    let lengths = [rows, classes];
    if rows == 0 || matrix.dtype() != DType::F32 {
        bail!(
            "{name}: expected rows of f32, found {:?} of {:?}",
            matrix.dims(),
            matrix.dtype()
        )
    }
    for (vector, of) in vectors {
        if vector.elem_count() != lengths[*of] || vector.dtype() != DType::F32 {
            bail!(
                "{name}: expected {} numbers of f32, found {:?} of {:?}",
                lengths[*of],
                vector.dims(),
                vector.dtype()
            )
        }
    }
    Ok((rows, classes))
}
