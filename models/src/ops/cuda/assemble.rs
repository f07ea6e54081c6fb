//! Token assembly: a launch forward, one or two back.

use candle_core::{DType, Result, Tensor, bail};

use super::columns::Partials;
use super::geometry::{self, Chunked};
use super::launch::{Argument, Source, launch, uninitialised};
use super::normalise::single;
use crate::ops::node::node3;

const NAME: &str = "assemble-tokens";

/// [`crate::ops::assemble_tokens`] of shapes that have been checked: `special` [in front, D] are the class token and the registers,
/// with the mask token behind them where there are masks.
pub(in crate::ops) fn assemble_tokens(
    patches: &Tensor,
    positions: &Tensor,
    special: &Tensor,
    masks: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, count, width) = patches.dims3()?;
    let in_front = special.dim(0)? - usize::from(masks.is_some());
    let rows = batch * (in_front + count);
    let masks = masks.map(Tensor::contiguous).transpose()?;
    let chunked = Chunked::new(rows, width, false);
    let out = uninitialised((batch, in_front + count, width), DType::F32, patches.device())?;
    launch(
        patches.device(),
        Source::Assemble,
        "assemble_forward",
        &chunked.launch,
        &[
            Argument::Read(&single(NAME, patches)?),
            Argument::Read(&single(NAME, positions)?),
            Argument::Read(&single(NAME, special)?),
            Argument::Optional(masks.as_ref()),
            Argument::Write(&out),
            Argument::Count(rows),
            Argument::Count(width),
            Argument::Count(in_front),
            Argument::Count(count),
            Argument::Count(chunked.chunk_rows),
            Argument::Count(chunked.across),
        ],
    )?;
    node3(
        NAME,
        [patches, positions, special],
        out,
        move |[patches, positions, special], _, grad| {
            let device = grad.device();
            let dpatches = uninitialised(patches.shape(), DType::F32, device)?;
            let of_tokens = uninitialised((in_front + count, width), DType::F32, device)?;
            let of_masked = masks
                .is_some()
                .then(|| Partials::new(count, width, grad))
                .transpose()?;
            let Some(geometry) = geometry::tokens(in_front + count, width) else {
                bail!("{NAME}: expected fewer tokens, found {}", in_front + count)
            };
            launch(
                device,
                Source::Assemble,
                "assemble_backward",
                &geometry,
                &[
                    Argument::Read(grad),
                    Argument::Optional(masks.as_ref()),
                    Argument::Write(&dpatches),
                    Argument::Write(&of_tokens),
                    Partials::optional(&of_masked),
                    Argument::Count(batch),
                    Argument::Count(width),
                    Argument::Count(in_front),
                    Argument::Count(count),
                ],
            )?;
            let dpositions = || {
                let of_patches = of_tokens.narrow(0, in_front, count)?;
                Tensor::cat(&[&of_tokens.narrow(0, 0, 1)?, &of_patches], 0)?.reshape(positions.shape())
            };
            let dspecial = || match &of_masked {
                None => of_tokens.narrow(0, 0, in_front),
                Some(of_masked) => {
                    let mask = of_masked.sums()?.reshape((1, width))?;
                    Tensor::cat(&[&of_tokens.narrow(0, 0, in_front)?, &mask], 0)
                }
            };
            Ok([
                patches.track_op().then_some(dpatches),
                positions.track_op().then(dpositions).transpose()?,
                special.track_op().then(dspecial).transpose()?,
            ])
        },
    )
}
