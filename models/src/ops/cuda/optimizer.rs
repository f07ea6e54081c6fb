//! What training does to all weights of a network at once, in a launch or two however many tensors they are: AdamW with the
//! teacher's moving average, and sums of squares.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::geometry::{self, PIECE};
use super::launch::{Access, Argument, Source, launch, uninitialised};

/// One weight of a network, f32, and what a step does to it. Tensors are contiguous and change in place.
#[derive(Debug, Clone)]
pub struct AdamwUpdate<'a> {
    /// The weight.
    pub weights: &'a Tensor,
    /// Its moments and its gradient, of its shape; without them it stays as it is.
    pub moved: Option<Moved<'a>>,
    /// The weight that follows it, of its shape: `keep` times itself and `take` times the weight.
    pub follower: Option<(&'a Tensor, [f32; 2])>,
    /// The group that its gradient is clipped with, where gradients are.
    pub group: u32,
}

/// Clipping that the host need not know of. Tensors are f64.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// The sum of squares of each group of gradients ([`sums_of_squares`]), [G].
    pub squares: &'a Tensor,
    /// The largest norm of a group; infinite to leave gradients as they are.
    pub most: f64,
    /// Numbers of which each has to be finite, or nothing moves.
    pub told: &'a Tensor,
}

/// AdamW's side of a weight.
#[derive(Debug, Clone)]
pub struct Moved<'a> {
    /// Mean of gradients.
    pub first: &'a Tensor,
    /// Mean of squared gradients.
    pub second: &'a Tensor,
    /// The gradient.
    pub gradient: &'a Tensor,
    /// On the gradient; its share in the mean; what stays of the squared mean, and what of the squared gradient is added; what
    /// decay leaves of the weight; step length, root of the squared mean's correction, and what keeps it from 0.
    pub factors: [f32; 8],
}

/// Moves all weights and lets their followers follow, in one launch.
///
/// # Errors
/// Tensors that are not f32, contiguous, of one shape for one weight, on one device with kernels; a group without its sum of squares.
pub fn adamw(updates: &[AdamwUpdate], clip: Option<&Clip>) -> Result<()> {
    const NAME: &str = "adamw";
    let Some(device) = updates.first().map(|update| update.weights.device()) else {
        return Ok(());
    };
    let mut table = Vec::with_capacity(5 * updates.len());
    let mut factors: Vec<f32> = Vec::with_capacity(10 * updates.len());
    for update in updates {
        let moved = update.moved.as_ref();
        let follower = update.follower.map(|(follower, _)| follower);
        let others = moved.map(|moved| [moved.first, moved.second, moved.gradient]);
        for tensor in others.iter().flatten().chain(&follower).chain([&update.weights]) {
            if tensor.dtype() != DType::F32 || tensor.dims() != update.weights.dims() {
                bail!(
                    "{NAME}: expected {:?} of f32, found {:?} of {:?}",
                    update.weights.dims(),
                    tensor.dims(),
                    tensor.dtype()
                )
            }
        }
        table.extend([
            Some((update.weights, Access::Change)),
            moved.map(|moved| (moved.first, Access::Change)),
            moved.map(|moved| (moved.second, Access::Change)),
            moved.map(|moved| (moved.gradient, Access::Read)),
            follower.map(|follower| (follower, Access::Change)),
        ]);
        factors.extend(moved.map_or([0.; 8], |moved| moved.factors));
        factors.extend(update.follower.map_or([0.; 2], |(_, factors)| factors));
    }
    if let Some(clip) = clip {
        let groups = clip.squares.elem_count();
        if let Some(update) = updates.iter().find(|update| update.group as usize >= groups) {
            bail!("{NAME}: expected a group below {groups}, found {}", update.group)
        }
        for tensor in [clip.squares, clip.told] {
            if tensor.dtype() != DType::F64 {
                bail!("{NAME}: expected sums of f64, found {:?}", tensor.dtype())
            }
        }
    }
    let groups = clip.map(|_| {
        Tensor::new(
            updates.iter().map(|update| update.group).collect::<Vec<_>>(),
            device,
        )
    });
    let groups = groups.transpose()?;
    let most = clip.map(|clip| Tensor::new(&[clip.most], device)).transpose()?;
    let pieces = Pieces::new(updates.iter().map(|update| update.weights), device)?;
    launch(
        device,
        Source::Optimizer,
        NAME,
        &geometry::pieces(pieces.count),
        &[
            Argument::Table(table),
            Argument::Read(&Tensor::new(factors, device)?),
            Argument::Read(&pieces.sizes),
            Argument::Read(&pieces.numbers),
            Argument::Optional(groups.as_ref()),
            Argument::Optional(clip.map(|clip| clip.squares)),
            Argument::Optional(most.as_ref()),
            Argument::Optional(clip.map(|clip| clip.told)),
            Argument::Count(clip.map_or(0, |clip| clip.told.elem_count())),
        ],
    )
}

/// The sum of squares of each group of tensors, f64, in two launches: [G].
///
/// # Errors
/// Tensors that are not f32, contiguous and on one device with kernels.
pub fn sums_of_squares(groups: &[Vec<&Tensor>], device: &Device) -> Result<Tensor> {
    const NAME: &str = "squares_of_pieces";
    let tensors: Vec<&Tensor> = groups.iter().flatten().copied().collect();
    if tensors.is_empty() {
        return Tensor::zeros(groups.len(), DType::F64, device);
    }
    if let Some(other) = tensors.iter().find(|tensor| tensor.dtype() != DType::F32) {
        bail!("{NAME}: expected f32, found {:?}", other.dtype())
    }
    let pieces = Pieces::new(tensors.iter().copied(), device)?;
    let mut bounds = vec![0u32];
    for group in groups {
        let count: usize = group.iter().map(|tensor| Pieces::of(tensor)).sum();
        bounds.push(bounds[bounds.len() - 1] + count as u32);
    }
    let partials = uninitialised(pieces.count, DType::F64, device)?;
    let entries = tensors.iter().map(|tensor| Some((*tensor, Access::Read)));
    launch(
        device,
        Source::Optimizer,
        NAME,
        &geometry::pieces(pieces.count),
        &[
            Argument::Table(entries.collect()),
            Argument::Read(&pieces.sizes),
            Argument::Read(&pieces.numbers),
            Argument::Write(&partials),
        ],
    )?;
    let sums = uninitialised(groups.len(), DType::F64, device)?;
    launch(
        device,
        Source::Optimizer,
        "squares_of_groups",
        &geometry::warp_rows(groups.len()),
        &[
            Argument::Read(&partials),
            Argument::Read(&Tensor::new(bounds, device)?),
            Argument::Write(&sums),
            Argument::Count(groups.len()),
        ],
    )?;
    Ok(sums)
}

/// Tensors cut into pieces, one for each block.
struct Pieces {
    count: usize,
    /// Values of each tensor.
    sizes: Tensor,
    /// For each piece, its tensor and its number within that.
    numbers: Tensor,
}

impl Pieces {
    fn new<'a>(tensors: impl Iterator<Item = &'a Tensor>, device: &Device) -> Result<Self> {
        let (mut sizes, mut numbers) = (Vec::new(), Vec::new());
        for (number, tensor) in (0u32..).zip(tensors) {
            let Ok(size) = u32::try_from(tensor.elem_count()) else {
                bail!(
                    "expected weights of at most {} values, found {:?}",
                    u32::MAX,
                    tensor.dims()
                )
            };
            sizes.push(size);
            numbers.extend((0..Self::of(tensor) as u32).flat_map(|piece| [number, piece]));
        }
        Ok(Self {
            count: numbers.len() / 2,
            sizes: Tensor::new(sizes, device)?,
            numbers: Tensor::new(numbers, device)?,
        })
    }

    fn of(tensor: &Tensor) -> usize {
        tensor.elem_count().div_ceil(PIECE)
    }
}
