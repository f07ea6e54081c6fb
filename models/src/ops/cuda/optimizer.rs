//! What training does to all weights of a network at once, in a launch or two however many tensors they are: AdamW with the
//! teacher's moving average, and sums of squares.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::geometry::{self, PIECE};
use super::launch::{Access, Argument, Source, launch, uninitialised};
use super::upload::upload;

/// One weight of a network, f32, and what a step does to it. Tensors are contiguous and change in place.
#[derive(Debug, Clone)]
pub struct AdamwUpdate<'a> {
    /// The weight.
    pub weights: &'a Tensor,
    /// Its moments and its gradient, of its shape; without them it stays as it is.
    pub moved: Option<Moved<'a>>,
    /// The weight that averages it.
    pub average: Option<AveragedWeight<'a>>,
    /// The group that its gradient is clipped with, where gradients are.
    pub group: u32,
}

/// A weight of the teacher, which becomes `keep` times itself and `take` times the student's.
#[derive(Debug, Clone, Copy)]
pub struct AveragedWeight<'a> {
    /// The weight, of the student's shape.
    pub weights: &'a Tensor,
    /// What stays of it.
    pub keep: f32,
    /// What is added of the student's.
    pub take: f32,
}

/// Clipping that the host need not know of. Tensors are f64.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// The sum of squares of each group of gradients ([`sums_of_squares`]), [G].
    pub squares: &'a Tensor,
    /// The largest norm of a group; infinite to leave gradients as they are.
    pub max_norm: f64,
    /// Numbers of which each has to be finite, or nothing moves.
    pub checked: &'a Tensor,
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
    /// The numbers of the update.
    pub factors: AdamwFactors,
}

/// The numbers of AdamW's update of one weight `w` with gradient `g` and moments `m` and `v`, which move in this order:
///
/// ```text
/// g = g scale
/// m = m + (g - m) towards
/// v = v keep + g^2 add
/// w = w shrink - size m / (sqrt(v) / root + eps)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwFactors {
    /// On the gradient.
    pub scale: f32,
    /// Share of the gradient in the mean.
    pub towards: f32,
    /// What stays of the squared mean.
    pub keep: f32,
    /// What of the squared gradient is added to it.
    pub add: f32,
    /// What decay leaves of the weight.
    pub shrink: f32,
    /// The step length.
    pub size: f32,
    /// The root of the squared mean's correction.
    pub root: f32,
    /// What keeps the divisor from 0.
    pub eps: f32,
}

impl AdamwFactors {
    /// As the kernel reads them (`optimizer.cu`).
    fn words(self) -> [f32; 8] {
        let Self {
            scale,
            towards,
            keep,
            add,
            shrink,
            size,
            root,
            eps,
        } = self;
        [scale, towards, keep, add, shrink, size, root, eps]
    }
}

/// What a launch over the same tensors needs again: how they are cut into pieces, and other numbers that stay from step to step. They
/// lie on the device, and are made anew where the tensors are others.
#[derive(Debug, Default)]
pub struct Tables {
    pieces: Option<Pieces>,
    numbers: Vec<(Vec<u32>, Tensor)>,
    max_norm: Option<(f64, Tensor)>,
}

/// Lists of numbers that [`Tables`] keep at most.
const MAX_LISTS: usize = 4;

impl Tables {
    fn pieces(&mut self, sizes: &[u32], device: &Device) -> Result<&Pieces> {
        let known = self.pieces.take().filter(|known| known.is_of(sizes, device));
        let pieces = match known {
            Some(pieces) => pieces,
            None => Pieces::new(sizes, device)?,
        };
        Ok(self.pieces.insert(pieces))
    }

    fn numbers(&mut self, numbers: Vec<u32>, device: &Device) -> Result<Tensor> {
        let is_known =
            |(known, on): &&(Vec<u32>, Tensor)| *known == numbers && on.device().same_device(device);
        if let Some((_, known)) = self.numbers.iter().find(is_known) {
            return Ok(known.clone());
        }
        if self.numbers.len() == MAX_LISTS {
            self.numbers.remove(0);
        }
        let uploaded = upload(&numbers, numbers.len(), device)?;
        self.numbers.push((numbers, uploaded.clone()));
        Ok(uploaded)
    }

    fn max_norm(&mut self, max_norm: f64, device: &Device) -> Result<Tensor> {
        let is_known = |(known, on): &&(f64, Tensor)| {
            known.total_cmp(&max_norm).is_eq() && on.device().same_device(device)
        };
        if let Some((_, known)) = self.max_norm.as_ref().filter(is_known) {
            return Ok(known.clone());
        }
        let uploaded = upload(&[max_norm], 1, device)?;
        self.max_norm = Some((max_norm, uploaded.clone()));
        Ok(uploaded)
    }
}

/// Moves all weights and lets their followers follow, in one launch. `tables` are those of the call before, of the same weights.
///
/// # Errors
/// Tensors that are not f32, contiguous, of one shape for one weight, on one device with kernels; a group without its sum of squares.
pub fn adamw(tables: &mut Tables, updates: &[AdamwUpdate], clip: Option<&Clip>) -> Result<()> {
    const NAME: &str = "adamw";
    let Some(device) = updates.first().map(|update| update.weights.device()) else {
        return Ok(());
    };
    let mut table = Vec::with_capacity(5 * updates.len());
    let mut factors: Vec<f32> = Vec::with_capacity(10 * updates.len());
    for update in updates {
        let moved = update.moved.as_ref();
        let average = update.average.map(|average| average.weights);
        let others = moved.map(|moved| [moved.first, moved.second, moved.gradient]);
        for tensor in others.iter().flatten().chain(&average).chain([&update.weights]) {
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
            average.map(|average| (average, Access::Change)),
        ]);
        factors.extend(moved.map_or([0.; 8], |moved| moved.factors.words()));
        let shares = |average: AveragedWeight| [average.keep, average.take];
        factors.extend(update.average.map_or([0.; 2], shares));
    }
    if let Some(clip) = clip {
        let groups = clip.squares.elem_count();
        if let Some(update) = updates.iter().find(|update| update.group as usize >= groups) {
            bail!("{NAME}: expected a group below {groups}, found {}", update.group)
        }
        for tensor in [clip.squares, clip.checked] {
            if tensor.dtype() != DType::F64 {
                bail!("{NAME}: expected sums of f64, found {:?}", tensor.dtype())
            }
        }
    }
    let groups = updates.iter().map(|update| update.group).collect();
    let groups = clip.map(|_| tables.numbers(groups, device)).transpose()?;
    let max_norm = clip.map(|clip| tables.max_norm(clip.max_norm, device));
    let max_norm = max_norm.transpose()?;
    let factors = upload(&factors, factors.len(), device)?;
    let pieces = tables.pieces(&sizes(updates.iter().map(|update| update.weights))?, device)?;
    launch(
        device,
        Source::Optimizer,
        NAME,
        &geometry::pieces(pieces.count),
        &[
            Argument::Table(table),
            Argument::Read(&factors),
            Argument::Read(&pieces.sizes),
            Argument::Read(&pieces.numbers),
            Argument::Optional(groups.as_ref()),
            Argument::Optional(clip.map(|clip| clip.squares)),
            Argument::Optional(max_norm.as_ref()),
            Argument::Optional(clip.map(|clip| clip.checked)),
            Argument::Count(clip.map_or(0, |clip| clip.checked.elem_count())),
        ],
    )
}

/// The sum of squares of each group of tensors, f64, in two launches: [G]. `tables` are those of the call before, of tensors of
/// the same sizes.
///
/// # Errors
/// Tensors that are not f32, contiguous and on one device with kernels.
pub fn sums_of_squares(tables: &mut Tables, groups: &[Vec<&Tensor>], device: &Device) -> Result<Tensor> {
    const NAME: &str = "squares_of_pieces";
    let tensors: Vec<&Tensor> = groups.iter().flatten().copied().collect();
    if tensors.is_empty() {
        return Tensor::zeros(groups.len(), DType::F64, device);
    }
    if let Some(other) = tensors.iter().find(|tensor| tensor.dtype() != DType::F32) {
        bail!("{NAME}: expected f32, found {:?}", other.dtype())
    }
    let mut bounds = vec![0u32];
    for group in groups {
        let counts = sizes(group.iter().copied())?.into_iter().map(Pieces::count_in);
        bounds.push(bounds[bounds.len() - 1] + counts.sum::<u32>());
    }
    let bounds = tables.numbers(bounds, device)?;
    let pieces = tables.pieces(&sizes(tensors.iter().copied())?, device)?;
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
            Argument::Read(&bounds),
            Argument::Write(&sums),
            Argument::Count(groups.len()),
        ],
    )?;
    Ok(sums)
}

/// Values of each of `tensors`.
fn sizes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<u32>> {
    let size = |tensor: &Tensor| match u32::try_from(tensor.elem_count()) {
        Ok(size) => Ok(size),
        Err(_) => bail!(
            "expected weights of at most {} values, found {:?}",
            u32::MAX,
            tensor.dims()
        ),
    };
    tensors.map(size).collect()
}

/// Tensors cut into pieces, one for each block.
#[derive(Debug)]
struct Pieces {
    count: usize,
    of: Vec<u32>,
    /// Values of each tensor.
    sizes: Tensor,
    /// For each piece, its tensor and its number within that.
    numbers: Tensor,
}

impl Pieces {
    fn new(of: &[u32], device: &Device) -> Result<Self> {
        let mut numbers = Vec::new();
        for (tensor, &size) in (0u32..).zip(of) {
            numbers.extend((0..Self::count_in(size)).flat_map(|piece| [tensor, piece]));
        }
        Ok(Self {
            count: numbers.len() / 2,
            of: of.to_vec(),
            sizes: upload(of, of.len(), device)?,
            numbers: upload(&numbers, numbers.len(), device)?,
        })
    }

    fn is_of(&self, sizes: &[u32], device: &Device) -> bool {
        self.of == sizes && self.sizes.device().same_device(device)
    }

    /// The pieces of a tensor of `size` values.
    fn count_in(size: u32) -> u32 {
        size.div_ceil(PIECE as u32)
    }
}
