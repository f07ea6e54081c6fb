//! The vision transformer: tokens, blocks, final norm.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::attention_pool::AttentionPooling;
use super::block::Block;
use super::layers::LayerNorm;
use super::patch_embed::PatchEmbed;
use super::position::{interpolate_grid, interpolate_table};
use super::{DropPathPlan, FinalNorm, Pool, RELATIVE_TABLE, RelativePositions, VitConfig};
use crate::ops::{Packing, Rotary, StackOptions, StackedBranch, backend};
use crate::{Error, Result, ops};

/// DINOv2 `DinoVisionTransformer`, for inference and for training.
///
/// Built from plain tensors it computes no graph; built from tensors of `Var`s every parameter that a loss depends on gets
/// its gradient. All parameters and pixels are f32.
#[derive(Debug, Clone)]
pub struct VisionTransformer {
    pub(super) config: VitConfig,
    cls_token: Option<Tensor>,
    pos_embed: Option<Tensor>,
    register_tokens: Option<Tensor>,
    mask_token: Option<Tensor>,
    patch_embed: PatchEmbed,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    /// Of tokens or of what is pooled.
    norm: Option<LayerNorm>,
    pool: Option<AttentionPooling>,
    projection: Option<Tensor>,
    projection_bias: Option<Tensor>,
    compute: DType,
    checkpoint: bool,
    packing: bool,
}

/// Tokens that enter the blocks.
struct Tokens {
    /// [B, T, D], or [rows, D] of images of two sizes.
    x: Tensor,
    packing: Packing,
    /// Of each size of images, where there are rotary positions.
    rotary: Vec<Rotary>,
    /// Rows and columns of patches, of images of one size.
    grid: (usize, usize),
}

impl Tokens {
    fn apart(x: Tensor, rotary: Option<Rotary>, grid: (usize, usize)) -> Result<Self> {
        Ok(Self {
            packing: Packing::one(x.dim(0)?, x.dim(1)?),
            x,
            rotary: rotary.into_iter().collect(),
            grid,
        })
    }

    fn packed([first, second]: &[Tensor; 2], rotary: Vec<Rotary>) -> Result<Self> {
        let (x, packing) = ops::pack(first, second)?;
        Ok(Self {
            x,
            packing,
            rotary,
            grid: (0, 0),
        })
    }
}

/// Images of one size and what a pass over them is asked for.
#[derive(Debug, Clone, Copy)]
pub struct ImageRows<'a> {
    /// [B, C, H, W], normalised.
    pub pixels: &'a Tensor,
    /// Where not 0, [B, N] u8, a patch is hidden.
    pub masks: Option<&'a Tensor>,
    /// The branches that are left out.
    pub drop_path: Option<&'a DropPathPlan>,
    /// The tokens that are asked for, as in [`VisionTransformer::forward_rows`].
    pub rows: &'a [u32],
}

/// What a forward pass gives (DINOv2 `forward_features`): class token, registers and patches after the final norm.
#[derive(Debug, Clone)]
pub struct VitOutput {
    /// Class token, [B, D]; [B, 0] where the network has none.
    pub cls: Tensor,
    /// Register tokens, [B, R, D]; R may be 0.
    pub reg: Tensor,
    /// Patch tokens row by row, [B, N, D].
    pub patch: Tensor,
    /// All tokens before the final norm, [B, 1 + R + N, D], or [B, R + N, D] without a class token.
    pub prenorm: Tensor,
    /// What is pooled, and projected where there is a projection (CLIP: the class token; SigLIP: by attention), [B, E], where the
    /// network has either.
    pub embedding: Option<Tensor>,
}

impl VitOutput {
    /// Mean of the patch tokens (registers are no patches), [B, D].
    ///
    /// # Errors
    /// When candle fails.
    pub fn patch_mean(&self) -> Result<Tensor> {
        Ok(self.patch.mean(1)?)
    }
}

impl VisionTransformer {
    /// Builds the network from parameters under their official names ([`VitConfig::parameters`]).
    ///
    /// # Errors
    /// A configuration that contradicts itself, a parameter that `vb` lacks or has in another shape.
    pub fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let dim = config.embed_dim;
        let rows = config.class_tokens() + config.native_grid().pow(2);
        let register_tokens = match config.num_registers {
            0 => None,
            count => Some(vb.get((1, count, dim), "register_tokens")?),
        };
        let mask_token = config
            .mask_token
            .then(|| vb.get((1, dim), "mask_token"))
            .transpose()?;
        let shared = match config.relative_positions {
            Some(RelativePositions::Shared) => {
                Some(vb.get((config.relative_rows(), config.num_heads), RELATIVE_TABLE)?)
            }
            _ => None,
        };
        let blocks = vb.pp("blocks");
        let norm = |name: &str| LayerNorm::new(dim, config.layer_norm_eps, vb.pp(name));
        Ok(Self {
            config: config.clone(),
            cls_token: config
                .class_token
                .then(|| vb.get((1, 1, dim), "cls_token"))
                .transpose()?,
            pos_embed: config
                .has_position_table()
                .then(|| vb.get((1, rows, dim), "pos_embed"))
                .transpose()?,
            register_tokens,
            mask_token,
            patch_embed: PatchEmbed::new(config, vb.pp("patch_embed"))?,
            norm_pre: config.pre_norm.then(|| norm("norm_pre")).transpose()?,
            blocks: (0..config.depth)
                .map(|i| Block::new(config, shared.as_ref(), blocks.pp(i)))
                .collect::<Result<_>>()?,
            norm: match config.final_norm {
                FinalNorm::Tokens => Some(norm("norm")?),
                FinalNorm::Pooled => Some(norm("fc_norm")?),
                FinalNorm::None => None,
            },
            pool: match config.pool {
                Pool::Attention(pool) => {
                    let vb = vb.pp("attn_pool");
                    Some(AttentionPooling::new(config, pool.ffn_hidden, vb)?)
                }
                _ => None,
            },
            projection: match config.projection {
                Some(width) => Some(vb.get((width, dim), "projection.weight")?),
                None => None,
            },
            projection_bias: match config.projection.filter(|_| config.projection_bias) {
                Some(width) => Some(vb.get(width, "projection.bias")?),
                None => None,
            },
            compute: DType::F32,
            checkpoint: false,
            packing: true,
        })
    }

    /// The same network with matrix products, attention and activations in `compute`; weights, norms and the sum over the
    /// branches stay f32. On the CPU only the factors of projections are rounded to it.
    pub fn with_compute(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// The same network that keeps of its blocks only what they ran on, and computes the rest again in the backward pass: less
    /// memory, more time, the same gradients.
    pub fn with_gradient_checkpointing(self, checkpoint: bool) -> Self {
        Self { checkpoint, ..self }
    }

    /// The same network that takes images of two sizes through its blocks together on an NVIDIA GPU (as it does to begin with), or
    /// one size after the other, as elsewhere.
    pub fn with_sequence_packing(self, packing: bool) -> Self {
        Self { packing, ..self }
    }

    /// Builds the network from named tensors, which must be exactly those of [`VitConfig::parameters`].
    ///
    /// Tensors of `Var`s keep their identity where they already are f32 on `device`, so this also serves training.
    ///
    /// # Errors
    /// Names the first tensor that is missing, misshapen or not part of the network.
    pub fn from_tensors(
        config: &VitConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let expected: BTreeMap<String, Vec<usize>> = config.parameters().into_iter().collect();
        for (name, shape) in &expected {
            let found = match tensors.get(name) {
                Some(tensor) if tensor.dims() == shape => continue,
                Some(tensor) => format!("{:?}", tensor.dims()),
                None => "no such tensor".into(),
            };
            return Err(Error::config(
                name,
                format!("expected shape {shape:?}, found {found}"),
            ));
        }
        if let Some((name, tensor)) = tensors.iter().find(|(name, _)| !expected.contains_key(*name)) {
            let found = format!("found one of shape {:?}", tensor.dims());
            return Err(Error::config(
                name,
                format!("expected no such tensor in this network, {found}"),
            ));
        }
        let tensors: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        Self::new(config, VarBuilder::from_tensors(tensors, DType::F32, device))
    }

    /// The geometry the network was built with.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The forward pass, without stochastic depth.
    ///
    /// `pixels` [B, C, H, W], normalised, with H and W multiples of the patch size. `masks` [B, N] u8: where not 0, the
    /// patch embedding is replaced by the mask token before the position is added.
    ///
    /// # Errors
    /// Pixels or masks of another shape or type; masks without a mask token.
    pub fn forward(&self, pixels: &Tensor, masks: Option<&Tensor>) -> Result<VitOutput> {
        self.forward_with(pixels, masks, None)
    }

    /// The forward pass of a student in training: as [`Self::forward`], with the branches that `drop_path` leaves out.
    ///
    /// # Errors
    /// As [`Self::forward`]; a plan for another batch size or depth.
    pub fn forward_with(
        &self,
        pixels: &Tensor,
        masks: Option<&Tensor>,
        drop_path: Option<&DropPathPlan>,
    ) -> Result<VitOutput> {
        self.output(self.forward_tokens(pixels, masks, drop_path)?)
    }

    /// Chosen tokens after the final norm, [rows, D]: all that a training step reads. The last feed-forward network and the
    /// norm run on these alone. Other arguments as in [`Self::forward_with`].
    ///
    /// Rows count over images and tokens: with T = 1 + R + N tokens, image i has its class token in row `i T`, its patch p in
    /// row `i T + 1 + R + p`.
    ///
    /// # Errors
    /// As [`Self::forward_with`]; a row that is not there, or none at all.
    pub fn forward_rows(
        &self,
        pixels: &Tensor,
        masks: Option<&Tensor>,
        drop_path: Option<&DropPathPlan>,
        rows: &[u32],
    ) -> Result<Tensor> {
        if rows.is_empty() {
            return Err(Error::config("rows", "expected at least one, found none"));
        }
        let tokens = Tokens::apart(
            self.embed(pixels, masks)?,
            self.rotary(pixels)?,
            self.grid(pixels)?,
        )?;
        self.chosen_rows(&tokens, drop_path, rows)
    }

    /// [`Self::forward_rows`] of images of two sizes. With sequence packing they go through the blocks in one sequence, as the crops
    /// of DINOv2 do (section 5, "Efficient training"); the results and the gradients are those of two passes.
    ///
    /// # Errors
    /// As [`Self::forward_rows`].
    pub fn forward_rows_of_two(&self, [first, second]: [ImageRows; 2]) -> Result<[Tensor; 2]> {
        let apart = |set: ImageRows| self.forward_rows(set.pixels, set.masks, set.drop_path, set.rows);
        let gains = backend(first.pixels.device()).packs_sequences();
        if !self.packing || self.config.has_composed_blocks() || !gains {
            return Ok([apart(first)?, apart(second)?]);
        }
        if first.rows.is_empty() || second.rows.is_empty() {
            return Err(Error::config(
                "rows",
                "expected at least one of either size, found none",
            ));
        }
        let embed = |set: ImageRows| self.embed(set.pixels, set.masks);
        let rotary = [self.rotary(first.pixels)?, self.rotary(second.pixels)?];
        let rotary = rotary.into_iter().flatten().collect();
        let tokens = Tokens::packed(&[embed(first)?, embed(second)?], rotary)?;
        let images = [first.pixels.dim(0)?, second.pixels.dim(0)?];
        let plans = [
            self.checked(first.drop_path, images[0])?,
            self.checked(second.drop_path, images[1])?,
        ];
        let plan = DropPathPlan::joined(plans, images, self.config.depth);
        let before = tokens.packing.first_rows() as u32;
        let of_second = second.rows.iter().map(|row| before + row);
        let rows: Vec<u32> = first.rows.iter().copied().chain(of_second).collect();
        let chosen = self.chosen_rows(&tokens, plan.as_ref(), &rows)?;
        let count = first.rows.len();
        Ok([
            chosen.narrow(0, 0, count)?,
            chosen.narrow(0, count, second.rows.len())?,
        ])
    }

    /// The class tokens after the final norm, [B, D], of images that are seen in part: patches that are not named in `visible`
    /// are no tokens at all, so that a pass costs as much less (patch dropout of timm, Li et al. 2023).
    ///
    /// `visible` [B V] are places in [B, N], image by image, as many of each.
    ///
    /// # Errors
    /// As [`Self::forward_with`]; places that do not belong to V patches of every image; a network with rotary positions, whose
    /// angles belong to whole grids.
    pub fn forward_visible(
        &self,
        pixels: &Tensor,
        drop_path: Option<&DropPathPlan>,
        visible: &[u32],
    ) -> Result<Tensor> {
        let whole = [
            (self.config.rope.is_some(), "rotary positions"),
            (self.config.relative_positions.is_some(), "relative positions"),
            (!self.config.class_token, "no class token"),
        ];
        if let Some((_, what)) = whole.iter().find(|(has, _)| *has) {
            let reason =
                format!("expected a network that takes a part of the patches, found one with {what}");
            return Err(Error::config("visible", reason));
        }
        let x = self.embed(pixels, None)?; // [B, T, D]
        let (batch, tokens, width) = x.dims3()?;
        let before = 1 + self.config.num_registers;
        let patches = tokens - before;
        let (count, image_of) = (visible.len() / batch.max(1), |place: u32| {
            place as usize / patches
        });
        let fits = |(i, &place): (usize, &u32)| i / count.max(1) == image_of(place);
        if count * batch != visible.len() || !visible.iter().enumerate().all(fits) {
            let reason = format!("expected as many of each of {batch} images, image by image");
            return Err(Error::config("visible", reason));
        }
        let mut rows = Vec::with_capacity(batch * (before + count));
        for image in 0..batch {
            let first = image * tokens;
            let row_of = |&place: &u32| first + before + place as usize % patches;
            rows.extend((first..first + before).map(|row| row as u32));
            rows.extend(
                visible[image * count..][..count]
                    .iter()
                    .map(|place| row_of(place) as u32),
            );
        }
        let kept = before + count;
        let visible = ops::gather_rows(&x, &rows)?.reshape((batch, kept, width))?; // [B, 1 + R + V, D]
        let class: Vec<u32> = (0..batch).map(|image| (image * kept) as u32).collect();
        let grid = self.grid(pixels)?;
        self.chosen_rows(&Tokens::apart(visible, None, grid)?, drop_path, &class)
    }

    /// `rows` of all tokens behind all blocks and the final norm, [rows, D].
    fn chosen_rows(&self, tokens: &Tokens, drop_path: Option<&DropPathPlan>, rows: &[u32]) -> Result<Tensor> {
        if self.config.has_composed_blocks() {
            return self.composed_rows(tokens, drop_path, rows);
        }
        let plan = self.checked(drop_path, tokens.packing.images())?;
        let mut branches = self.branches(0..self.blocks.len(), plan, &tokens.rotary);
        let last = branches.pop();
        let width = self.config.embed_dim;
        let x = match tokens.x.rank() {
            2 => ops::packed_residual_stack(&tokens.x, tokens.packing, &branches, self.stack_options())?,
            _ => self.run(&tokens.x, &branches)?,
        };
        let mut chosen = ops::gather_rows(&x, rows)?; // [rows, D]
        if let Some(last) = last {
            // To a feed-forward network every token is an image by itself.
            let samples = last.samples.map(|samples| samples.of_rows(rows, tokens.packing));
            let last = StackedBranch {
                samples: samples.as_ref(),
                ..last
            };
            let each = chosen.reshape((rows.len(), 1, width))?;
            chosen = self.run(&each, &[last])?.reshape((rows.len(), width))?;
        }
        self.final_norm(&chosen)
    }

    /// [`Self::chosen_rows`] of a network whose blocks are composed: all rows are computed.
    fn composed_rows(
        &self,
        tokens: &Tokens,
        drop_path: Option<&DropPathPlan>,
        rows: &[u32],
    ) -> Result<Tensor> {
        let grid = tokens.grid;
        let x = self.run_composed(
            &tokens.x,
            0..self.blocks.len(),
            (tokens.rotary.first(), grid),
            drop_path,
        )?;
        self.final_norm(&ops::gather_rows(&x, rows)?)
    }

    /// Blocks that are composed of smaller operations, on [B, T, D].
    fn run_composed(
        &self,
        x: &Tensor,
        blocks: Range<usize>,
        (rotary, grid): (Option<&Rotary>, (usize, usize)),
        drop_path: Option<&DropPathPlan>,
    ) -> Result<Tensor> {
        if drop_path.is_some() {
            let reason =
                "expected none: networks with norms within branches or relative positions are not trained";
            return Err(Error::config("drop_path", reason));
        }
        let mut x = x.clone();
        for block in &self.blocks[blocks] {
            if let Some(block) = block.composed(&self.config, self.compute) {
                x = block.forward(&x, rotary, grid)?;
            }
        }
        Ok(x)
    }

    /// All tokens before the final norm, [B, T, D].
    fn forward_tokens(
        &self,
        pixels: &Tensor,
        masks: Option<&Tensor>,
        drop_path: Option<&DropPathPlan>,
    ) -> Result<Tensor> {
        let x = self.embed(pixels, masks)?;
        let rotary = self.rotary(pixels)?;
        if self.config.has_composed_blocks() {
            let positions = (rotary.as_ref(), self.grid(pixels)?);
            return self.run_composed(&x, 0..self.blocks.len(), positions, drop_path);
        }
        let plan = self.checked(drop_path, x.dim(0)?)?;
        let branches = self.branches(0..self.blocks.len(), plan, rotary.as_slice());
        self.run(&x, &branches)
    }

    /// Fails when `plan` is for another number of images or another network.
    fn checked<'a>(&self, plan: Option<&'a DropPathPlan>, images: usize) -> Result<Option<&'a DropPathPlan>> {
        let expected = (images, self.config.depth);
        match plan.map(|plan| (plan.batch(), plan.depth())) {
            Some(found) if found != expected => {
                let text = format!("expected a plan for (batch, depth) = {expected:?}, found {found:?}");
                Err(Error::config("drop_path", text))
            }
            _ => Ok(plan),
        }
    }

    /// The tokens that enter the first block, [B, 1 + R + N, D]: class token, registers, patches row by row; behind the norm
    /// that CLIP has there.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn embed(&self, pixels: &Tensor, masks: Option<&Tensor>) -> Result<Tensor> {
        if pixels.dtype() != DType::F32 {
            return Err(Error::config(
                "pixels",
                format!("expected f32, found {:?}", pixels.dtype()),
            ));
        }
        let (rows, columns) = self.grid(pixels)?;
        let patches = self.patch_embed.forward(pixels, self.compute)?; // [B, N, D]
        if let Some(masks) = masks {
            self.check_masks(&patches, masks)?;
        }
        let tokens = match &self.cls_token {
            Some(cls) => self.assembled(cls, &patches, (rows, columns), masks)?,
            None => self.patches_alone(&patches, (rows, columns), masks)?,
        };
        match &self.norm_pre {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }

    /// Class token, registers and patches [B, N, D] with their positions, [B, 1 + R + N, D].
    fn assembled(
        &self,
        cls: &Tensor,
        patches: &Tensor,
        (rows, columns): (usize, usize),
        masks: Option<&Tensor>,
    ) -> Result<Tensor> {
        let positions = match &self.pos_embed {
            Some(table) => interpolate_table(table, self.config.position_rule, rows, columns)?,
            None => {
                let shape = (1, 1 + rows * columns, self.config.embed_dim);
                Tensor::zeros(shape, DType::F32, patches.device())?
            }
        };
        let special = ops::SpecialTokens {
            cls,
            registers: self.register_tokens.as_ref(),
            mask: self.mask_token.as_ref(),
        };
        Ok(ops::assemble_tokens(patches, &positions, special, masks)?)
    }

    /// Patches [B, N, D] with their positions behind the registers, [B, R + N, D]: a network without a class token.
    fn patches_alone(
        &self,
        patches: &Tensor,
        (rows, columns): (usize, usize),
        masks: Option<&Tensor>,
    ) -> Result<Tensor> {
        if masks.is_some() {
            return Err(Error::config(
                "masks",
                "expected none: the network has no class token",
            ));
        }
        let placed = match &self.pos_embed {
            Some(table) => patches.broadcast_add(&interpolate_grid(
                table,
                self.config.position_rule,
                rows,
                columns,
            )?)?,
            None => patches.clone(),
        };
        let Some(registers) = &self.register_tokens else {
            return Ok(placed);
        };
        let (_, count, width) = registers.dims3()?;
        let registers = registers.broadcast_as((placed.dim(0)?, count, width))?;
        Ok(Tensor::cat(&[&registers, &placed], 1)?)
    }

    /// The angles of `pixels`' tokens, where there are rotary positions.
    fn rotary(&self, pixels: &Tensor) -> Result<Option<Rotary>> {
        let Some(rope) = self.config.rope else {
            return Ok(None);
        };
        let (grid, prefix) = (self.grid(pixels)?, self.config.prefix());
        Ok(Some(rope.table(self.config.head_dim(), prefix, grid)?))
    }

    /// The patch grid (rows, columns) of `pixels`.
    pub(super) fn grid(&self, pixels: &Tensor) -> Result<(usize, usize)> {
        match *pixels.dims() {
            [_, _, height, width] => self.config.grid(height, width),
            _ => {
                let expected = format!("expected [batch, {}, height, width]", self.config.in_channels);
                Err(Error::config(
                    "pixels",
                    format!("{expected}, found {:?}", pixels.dims()),
                ))
            }
        }
    }

    /// Fails unless `masks` fits `patches` [B, N, D] and the network.
    fn check_masks(&self, patches: &Tensor, masks: &Tensor) -> Result<()> {
        if self.mask_token.is_none() {
            return Err(Error::config(
                "masks",
                "expected none: the network has no mask token",
            ));
        }
        let (batch, count, _) = patches.dims3()?;
        if masks.dims() != [batch, count] || masks.dtype() != DType::U8 {
            let found = format!("found {:?} of {:?}", masks.dims(), masks.dtype());
            return Err(Error::config(
                "masks",
                format!("expected [{batch}, {count}] of U8, {found}"),
            ));
        }
        Ok(())
    }

    /// Runs the blocks on `pixels` without stochastic depth, and hands `visit` the output of each, [B, T, D].
    pub(super) fn run_blocks(
        &self,
        pixels: &Tensor,
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (rotary, grid) = (self.rotary(pixels)?, self.grid(pixels)?);
        let mut x = self.embed(pixels, None)?;
        for i in 0..self.blocks.len() {
            x = self.run_some(&x, i..i + 1, rotary.as_ref(), grid)?;
            visit(i, &x)?;
        }
        Ok(x)
    }

    /// Some blocks on [B, T, D], without stochastic depth.
    fn run_some(
        &self,
        x: &Tensor,
        blocks: Range<usize>,
        rotary: Option<&Rotary>,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        match self.config.has_composed_blocks() {
            true => self.run_composed(x, blocks, (rotary, grid), None),
            false => self.run(
                x,
                &self.branches(blocks, None, rotary.map_or(&[], std::slice::from_ref)),
            ),
        }
    }

    /// The branches of the named blocks.
    fn branches<'a>(
        &'a self,
        blocks: Range<usize>,
        drop_path: Option<&'a DropPathPlan>,
        rotary: &'a [Rotary],
    ) -> Vec<StackedBranch<'a>> {
        let samples = |i| drop_path.map_or([None; 2], |plan| plan.block(i));
        blocks
            .flat_map(|i| self.blocks[i].branches(samples(i), rotary))
            .collect()
    }

    fn run(&self, x: &Tensor, branches: &[StackedBranch]) -> Result<Tensor> {
        Ok(ops::residual_stack(x, branches, self.stack_options())?)
    }

    fn stack_options(&self) -> StackOptions {
        StackOptions {
            eps: self.config.layer_norm_eps,
            compute: self.compute,
            checkpoint: self.checkpoint,
        }
    }

    /// What each token attends to in block `block` (from 0), [B, heads, T, T] with T = 1 + R + N in the order of the tokens;
    /// every row sums to one (DINO v1 `get_last_selfattention` for the last block). Not differentiable.
    ///
    /// # Errors
    /// As [`Self::forward`]; a block beyond the last.
    pub fn attention_probabilities(&self, pixels: &Tensor, block: usize) -> Result<Tensor> {
        let Some(last) = self.blocks.get(block) else {
            let text = format!("expected a block below {}, found {block}", self.config.depth);
            return Err(Error::config("block", text));
        };
        let (rotary, grid) = (self.rotary(pixels)?, self.grid(pixels)?);
        let x = self.run_some(&self.embed(pixels, None)?, 0..block, rotary.as_ref(), grid)?;
        match last.composed(&self.config, self.compute) {
            Some(last) => last.probabilities(&x, rotary.as_ref(), grid),
            None => last.attention_probabilities(&x, rotary.as_ref()),
        }
    }

    /// The final norm of tokens, on [.., D]; tokens as they are where it is none of theirs.
    pub(super) fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.norm, self.config.final_norm) {
            (Some(norm), FinalNorm::Tokens) => norm.forward(x),
            _ => Ok(x.clone()),
        }
    }

    /// Splits tokens [B, 1 + R + N, D] into class token [B, D], registers [B, R, D] and patches [B, N, D]; without a class token
    /// it is [B, 0].
    pub(super) fn split(&self, tokens: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let (before, registers) = (self.config.class_tokens(), self.config.num_registers);
        let patches = tokens.dim(1)? - before - registers;
        let cls = match before {
            0 => Tensor::zeros((tokens.dim(0)?, 0), tokens.dtype(), tokens.device())?,
            _ => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
        };
        Ok((
            cls,
            tokens.narrow(1, before, registers)?,
            tokens.narrow(1, before + registers, patches)?,
        ))
    }

    /// What is pooled of the tokens behind the final norm, [B, T, D], and projected: [B, E].
    fn embedding(&self, tokens: &Tensor, cls: &Tensor, patch: &Tensor) -> Result<Tensor> {
        let pooled = match (&self.pool, self.config.pool) {
            (Some(pool), _) => pool.forward(tokens)?,
            (None, Pool::Mean) => patch.mean(1)?,
            (None, _) => cls.clone(),
        };
        let pooled = match (&self.norm, self.config.final_norm) {
            (Some(norm), FinalNorm::Pooled) => norm.forward(&pooled)?,
            _ => pooled,
        };
        match &self.projection {
            Some(weight) => Ok(ops::linear(
                &pooled,
                weight,
                self.projection_bias.as_ref(),
                DType::F32,
            )?),
            None => Ok(pooled),
        }
    }

    fn output(&self, prenorm: Tensor) -> Result<VitOutput> {
        let tokens = self.final_norm(&prenorm)?;
        let (cls, reg, patch) = self.split(&tokens)?;
        let embedding = match self.config.embedding_width() {
            Some(_) => Some(self.embedding(&tokens, &cls, &patch)?),
            None => None,
        };
        Ok(VitOutput {
            embedding,
            cls,
            reg,
            patch,
            prenorm,
        })
    }
}
