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
/// Tensors that are not f32, contiguous, of one shape for one weight, on one device with kernels.
pub fn adamw(updates: &[AdamwUpdate]) -> Result<()> {
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
        ],
    )
}

/// The sum of squares of each group of tensors, in two launches and one copy to the host.
///
/// # Errors
/// Tensors that are not f32, contiguous and on one device with kernels.
pub fn sums_of_squares(groups: &[Vec<&Tensor>]) -> Result<Vec<f64>> {
    const NAME: &str = "squares_of_pieces";
    let tensors: Vec<&Tensor> = groups.iter().flatten().copied().collect();
    let Some(device) = tensors.first().map(|tensor| tensor.device()) else {
        return Ok(vec![0.; groups.len()]);
    };
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
    sums.to_vec1()
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
