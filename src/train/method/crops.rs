//! The crops of a micro-batch on the device, and what a backbone gives for them: which tokens are read, which patches are hidden
//! or left out, and how deep each image goes.

use candle_core::Tensor;
use macula_models::vit::{DropPathMode, DropPathPlan, ImageRows, VisionTransformer};
use rand::seq::index;

use super::Method;
use crate::data::loader::Batch;
use crate::data::mask::BatchMasks;
use crate::train::feed::DeviceBatch;
use crate::{Result, rng};

/// The crops of a micro-batch as tensors.
pub(super) struct Crops {
    pub(super) global: Tensor,        // [2 B, 3, S, S]
    pub(super) local: Option<Tensor>, // [L B, 3, s, s]
    pub(super) masks: Option<Masks>,
    pub(super) batch: usize,
}

pub(super) struct Masks {
    pub(super) bits: Tensor, // [2 B, N]
    /// Places in [2 B, N] of the masked patches, [M].
    pub(super) indices: Vec<u32>,
    pub(super) per_crop: Vec<usize>,
}

/// Tokens that a pass gives, after the final norm.
pub(super) struct BackboneOutput {
    pub(super) cls: Tensor,             // [B, D]
    pub(super) patches: Option<Tensor>, // [M, D], the requested ones
}

/// The student's tokens of a micro-batch's crops, after the final norm.
pub(super) struct CropOutputs {
    pub(super) global: BackboneOutput,
    pub(super) local: Option<Tensor>, // class tokens [L B, D], where requested
}

/// Which outputs of a micro-batch's crops are wanted.
pub(super) struct ForwardRequest<'a> {
    /// Where not 0, patches of global crops [2 B, N] are hidden.
    pub(super) hidden: Option<&'a Tensor>,
    /// Places in [2 B, N] of the patches that are looked at.
    pub(super) places: &'a [u32],
    /// Whether local crops are looked at.
    pub(super) locals: bool,
}

/// What decides the random choices of one pass.
pub(super) struct Pass<'a> {
    pub(super) name: &'a str,
    pub(super) crops: Side,
    pub(super) micro_batch: u64,
}

/// Which crops a pass is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Global,
    Local,
}

impl Method {
    /// The crops of `batch`, of which `on_device` lies there.
    pub(super) fn crops(&self, batch: &Batch, on_device: &DeviceBatch) -> candle_core::Result<Crops> {
        let (global, local) = on_device.crops(&self.config.crops)?;
        let crops = global.dim(0)?;
        let masks = batch.masks.as_ref().zip(on_device.masks());
        let masks = masks.map(|(masks, bits)| Masks::new(masks, bits, crops));
        Ok(Crops {
            global,
            local,
            masks: masks.transpose()?,
            batch: batch.size,
        })
    }

    /// What the student sees of all crops, with stochastic depth drawn for each side of them.
    pub(super) fn student_outputs(
        &self,
        crops: &Crops,
        request: &ForwardRequest,
        micro_batch: u64,
    ) -> Result<CropOutputs> {
        let pass = |name, crops| Pass {
            name,
            crops,
            micro_batch,
        };
        let (globals, locals) = (pass("globals", Side::Global), pass("locals", Side::Local));
        let Some(local) = crops.local.as_ref().filter(|_| request.locals) else {
            return Ok(CropOutputs {
                global: self.student_output(&crops.global, request.hidden, &globals, request.places)?,
                local: None,
            });
        };
        if self.config.backbone.patch_drop_rate > 0. {
            return Ok(CropOutputs {
                global: self.student_output(&crops.global, request.hidden, &globals, request.places)?,
                local: Some(self.student_output(local, None, &locals, &[])?.cls),
            });
        }
        let vit = &self.student.vit;
        let plans = [
            self.drop_path(&globals, &crops.global)?,
            self.drop_path(&locals, local)?,
        ];
        let rows = [
            rows_of(vit, &crops.global, request.places)?,
            rows_of(vit, local, &[])?,
        ];
        let [global, local] = vit.forward_rows_of_two([
            ImageRows {
                pixels: &crops.global,
                masks: request.hidden,
                drop_path: plans[0].as_ref(),
                rows: &rows[0],
            },
            ImageRows {
                pixels: local,
                masks: None,
                drop_path: plans[1].as_ref(),
                rows: &rows[1],
            },
        ])?;
        Ok(CropOutputs {
            global: BackboneOutput::split(&global, request.places.len())?,
            local: Some(local),
        })
    }

    /// What the student sees of one size of crops: class tokens, and the patches at `places`.
    pub(super) fn student_output(
        &self,
        pixels: &Tensor,
        hidden: Option<&Tensor>,
        pass: &Pass,
        places: &[u32],
    ) -> Result<BackboneOutput> {
        let plan = self.drop_path(pass, pixels)?;
        if pass.crops == Side::Global && self.config.backbone.patch_drop_rate > 0. {
            let visible = self.visible_patches(pixels.dim(0)?, pass)?;
            let cls = self
                .student
                .vit
                .forward_visible(pixels, plan.as_ref(), &visible)?;
            return Ok(BackboneOutput { cls, patches: None });
        }
        BackboneOutput::forward(&self.student.vit, pixels, hidden, plan.as_ref(), places)
    }

    /// Stochastic depth of a pass over `pixels`, where there is any.
    fn drop_path(&self, pass: &Pass, pixels: &Tensor) -> Result<Option<DropPathPlan>> {
        let backbone = &self.config.backbone;
        if backbone.drop_path_rate == 0. {
            return Ok(None);
        }
        let stream = self.of_rank(format!("drop path of {}", pass.name));
        let plan = DropPathPlan::draw(
            backbone.drop_path_rate,
            backbone.drop_path_schedule(),
            DropPathMode::BatchSubset,
            backbone.depth,
            pixels.dim(0)?,
            &mut rng::stream(self.config.seed, &stream, pass.micro_batch),
        );
        Ok(Some(plan?))
    }

    /// The stream that this rank draws from where it draws for its own images: the first rank's is that of a run of one process.
    fn of_rank(&self, stream: String) -> String {
        match self.ranks.rank() {
            0 => stream,
            rank => format!("{stream} on rank {rank}"),
        }
    }

    /// The patches of `crops` global crops that a pass sees, as places in [crops, N], rising, as many of each crop.
    fn visible_patches(&self, crops: usize, pass: &Pass) -> Result<Vec<u32>> {
        let stream = self.of_rank(format!("patch drop of {}", pass.name));
        let mut rng = rng::stream(self.config.seed, &stream, pass.micro_batch);
        let patches = self.config.grid()?.patches();
        let kept = patches as f64 * (1. - self.config.backbone.patch_drop_rate);
        let kept = (kept.round() as usize).clamp(1, patches);
        let of_crop = |crop: usize| {
            let mut visible = index::sample(&mut rng, patches, kept).into_vec();
            visible.sort_unstable();
            visible
                .into_iter()
                .map(move |patch| (crop * patches + patch) as u32)
        };
        Ok((0..crops).flat_map(of_crop).collect())
    }
}

impl Masks {
    /// Those of `crops` global crops, whose `bits` lie on the device.
    fn new(masks: &BatchMasks, bits: &Tensor, crops: usize) -> candle_core::Result<Self> {
        let patches = masks.masks.len() / crops.max(1);
        let ones = |crop: &[u8]| crop.iter().filter(|&&bit| bit == 1).count();
        Ok(Self {
            bits: bits.reshape((crops, patches))?,
            indices: masks.indices.clone(),
            per_crop: masks.masks.chunks_exact(patches).map(ones).collect(),
        })
    }
}

impl BackboneOutput {
    /// What `vit` sees of `pixels`, hidden where `hidden` says so: class tokens, and the patches at `places` in [B, N].
    pub(super) fn forward(
        vit: &VisionTransformer,
        pixels: &Tensor,
        hidden: Option<&Tensor>,
        plan: Option<&DropPathPlan>,
        places: &[u32],
    ) -> Result<Self> {
        let rows = rows_of(vit, pixels, places)?;
        Self::split(&vit.forward_rows(pixels, hidden, plan, &rows)?, places.len())
    }

    /// `normed` [B + M, D] taken apart, M = `patches`.
    fn split(normed: &Tensor, patches: usize) -> Result<Self> {
        let images = normed.dim(0)? - patches;
        let cls = normed.narrow(0, 0, images)?;
        let patches = match patches {
            0 => None,
            count => Some(normed.narrow(0, images, count)?),
        };
        Ok(Self { cls, patches })
    }
}

/// The rows of class tokens, and of the patches at `places` in [B, N], among all tokens of `pixels`.
fn rows_of(vit: &VisionTransformer, pixels: &Tensor, places: &[u32]) -> Result<Vec<u32>> {
    let (batch, _, height, width) = pixels.dims4()?;
    let (rows, columns) = vit.config().grid(height, width)?;
    let (patches, before) = (rows * columns, 1 + vit.config().num_registers);
    let tokens = before + patches;
    let class = (0..batch).map(|image| image * tokens);
    let of_patch = places.iter().map(|&place| {
        let place = place as usize;
        place / patches * tokens + before + place % patches
    });
    Ok(class.chain(of_patch).map(|row| row as u32).collect())
}

/// Places of hidden patches in [2 B, N].
pub(super) fn places(masks: Option<&Masks>) -> &[u32] {
    masks.map_or(&[], |masks| &masks.indices)
}
