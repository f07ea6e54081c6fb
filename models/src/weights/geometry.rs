//! The geometry of a network, derived from the shapes of its tensors.

use super::Family;
use super::family::{Found, Part, Rotation};
use crate::vit::{
    AttentionPool, FeedForwardKind, FinalNorm, Pool, PositionRule, RELATIVE_TABLE, RelativePositions,
    RopeConfig, VitConfig,
};

/// Largest value of any field that a file may claim; keeps arithmetic on shapes far from overflow.
const LARGEST: usize = 1 << 20;
/// Side of the images of a network without a position table, where nothing else tells.
const USUAL_SIDE: usize = 224;
/// Most blocks.
const DEEPEST: usize = 10_000;

/// What the tensors tell, with everything they do not at the family's default and `num_heads` 1.
pub(super) fn derive(found: &Found<'_>) -> Result<VitConfig, String> {
    let patch = "patch_embed.proj.weight";
    let class_token = !found.table.classless || found.shape("cls_token").is_some();
    let embed_dim = match class_token {
        true => axis(found, "cls_token", 3, 2)?,
        false => axis(found, patch, 4, 0)?,
    };
    let (in_channels, patch_size) = (axis(found, patch, 4, 1)?, axis(found, patch, 4, 3)?);
    let (feed_forward, ffn_hidden) = feed_forward(found)?;
    let relative_positions = relative_positions(found);
    let native = match (found.table.rotation, relative_positions) {
        (Rotation::Dinov3, _) => (USUAL_SIDE / patch_size).max(1),
        (_, None) => native_grid(found)?,
        (_, Some(positions)) => relative_grid(found, positions)?,
    };
    let num_registers = match found.shape("register_tokens") {
        Some(_) => axis(found, "register_tokens", 3, 1)?,
        None => 0,
    };
    let depth = depth(found)?;
    let has_layer_scale = (0..depth).any(|i| found.shape(&format!("blocks.{i}.ls1.gamma")).is_some());
    let has = |name: &str| found.shape(name).is_some();
    let final_norm = match () {
        () if !found.table.normless || has("norm.weight") || has("norm.bias") => FinalNorm::Tokens,
        () if has("fc_norm.weight") || has("fc_norm.bias") => FinalNorm::Pooled,
        () => FinalNorm::None,
    };
    let config = VitConfig {
        pre_norm: found.table.pre_norm || has("norm_pre.weight"),
        activation: found.table.activation.unwrap_or_default(),
        projection: match has("projection.weight") || has("projection.bias") {
            true => Some(axis(found, "projection.weight", 2, 0)?),
            false => None,
        },
        projection_bias: has("projection.bias") || has("projection.weight") && is_classifier(found),
        rope: match (found.table.rotation, feed_forward) {
            (Rotation::Never, _) | (Rotation::Eva, FeedForwardKind::Mlp) => None,
            (Rotation::Dinov3, _) => Some(RopeConfig::dinov3()),
            (Rotation::Eva, FeedForwardKind::Swiglu) => Some(RopeConfig::eva02()),
            (Rotation::Perception, _) => Some(RopeConfig::perception(native)),
        },
        pool: match (has("attn_pool.latent"), final_norm) {
            (true, _) => Pool::Attention(AttentionPool {
                // PE's own number; SigLIP's pooling has the heads of its blocks.
                heads: (found.table.rotation == Rotation::Perception).then_some(PERCEPTION_POOL_HEADS),
                ffn_hidden: axis(found, "attn_pool.mlp.fc1.weight", 2, 0)?,
            }),
            (false, FinalNorm::Pooled) => Pool::Mean,
            (false, _) => Pool::Class,
        },
        attention_norm: has("blocks.0.attn.norm.weight"),
        ffn_norm: has("blocks.0.mlp.norm.weight"),
        class_token,
        final_norm,
        relative_positions,
        embed_dim,
        depth,
        num_heads: 1,
        patch_size,
        image_size: native.saturating_mul(patch_size),
        in_channels,
        num_registers,
        feed_forward,
        ffn_hidden,
        layer_scale: has_layer_scale.then_some(1e-5),
        mask_token: found.table.family == Family::Official || has("mask_token"),
        layer_norm_eps: found.table.eps,
        position_rule: position_rule(found.table.family, num_registers),
    };
    Ok(config)
}

/// Whether the projection is what timm has for a classifier, which always has a bias.
fn is_classifier(found: &Found<'_>) -> bool {
    found.their_name("projection.bias") == "head.bias"
}

/// Heads of PE's pooling, of every size.
const PERCEPTION_POOL_HEADS: usize = 8;

/// Where there are tables of relative positions.
fn relative_positions(found: &Found<'_>) -> Option<RelativePositions> {
    match (
        found.shape(RELATIVE_TABLE),
        found.shape(&in_block(RELATIVE_TABLE)),
    ) {
        (Some(_), _) => Some(RelativePositions::Shared),
        (None, Some(_)) => Some(RelativePositions::EachBlock),
        (None, None) => None,
    }
}

fn in_block(name: &str) -> String {
    format!("blocks.0.attn.{name}")
}

/// Side M of the native grid, from the `(2 M - 1)^2 + 3` rows of a table of relative positions.
fn relative_grid(found: &Found<'_>, positions: RelativePositions) -> Result<usize, String> {
    let name = match positions {
        RelativePositions::Shared => RELATIVE_TABLE.to_owned(),
        RelativePositions::EachBlock => in_block(RELATIVE_TABLE),
    };
    let rows = axis(found, &name, 2, 0)?;
    let offsets = rows.saturating_sub(3).isqrt();
    if offsets.is_multiple_of(2) || offsets * offsets + 3 != rows {
        return Err(format!(
            "`{}`: expected the square of an odd number and three rows, found {rows} rows",
            found.their_name(&name)
        ));
    }
    Ok(offsets.div_ceil(2))
}

/// Whether the register is a distillation token, which has a row in the table of positions.
pub(super) fn is_distilled(found: &Found<'_>) -> bool {
    let sources = found.table.sources("register_tokens");
    let mut there = sources
        .iter()
        .map(|(theirs, _)| theirs)
        .filter(|name| found.tensors.contains_key(*name));
    there.any(|name| name.contains("dist"))
}

/// The rule a family resizes its position table by.
pub(super) fn position_rule(family: Family, num_registers: usize) -> PositionRule {
    match family {
        // open_clip resizes tables as timm does.
        Family::Timm
        | Family::TimmClip
        | Family::OpenClip
        | Family::TimmSiglip
        | Family::TimmEva
        | Family::TimmPe => PositionRule::Registers,
        Family::HuggingFaceClip
        | Family::HuggingFaceVit
        | Family::HuggingFaceSiglip
        | Family::Torchvision
        | Family::IJepa => PositionRule::HuggingFace,
        Family::Tips => PositionRule::Bilinear,
        // In memory TIPSv2 has the names of DINOv2; nobody else has one register.
        Family::HuggingFace if num_registers == 1 => PositionRule::Bilinear,
        // With a distillation token it is DeiT's, which timm resizes.
        Family::DinoV1 if num_registers == 0 => PositionRule::Official,
        _ if num_registers > 0 => PositionRule::Registers,
        // Without a table no rule is of any effect.
        Family::Official
        | Family::DinoV1
        | Family::Dinov3
        | Family::HuggingFaceDinov3
        | Family::TimmDinov3
        | Family::HuggingFaceBeit
        | Family::TimmBeit => PositionRule::Official,
        // MAE's fine-tuning resizes by size, bicubic, without antialiasing (util/pos_embed.py).
        Family::HuggingFace | Family::Mae => PositionRule::HuggingFace,
    }
}

/// Refuses values that no network has, before anything is computed from them.
pub(super) fn check_bounds(config: &VitConfig) -> Result<(), String> {
    let pool_hidden = match config.pool {
        Pool::Attention(pool) => pool.ffn_hidden,
        Pool::Class | Pool::Mean => 1,
    };
    for (field, value, max) in [
        ("embed_dim", config.embed_dim, LARGEST),
        ("depth", config.depth, DEEPEST),
        ("num_heads", config.num_heads, LARGEST),
        ("patch_size", config.patch_size, LARGEST),
        ("image_size", config.image_size, LARGEST),
        ("in_channels", config.in_channels, LARGEST),
        ("num_registers", config.num_registers, LARGEST),
        ("ffn_hidden", config.ffn_hidden, LARGEST),
        ("projection", config.projection.unwrap_or(1), LARGEST),
        ("pool.ffn_hidden", pool_hidden, LARGEST),
    ] {
        if value > max {
            return Err(format!("{field}: expected at most {max}, found {value}"));
        }
    }
    if !(config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0) {
        let eps = config.layer_norm_eps;
        return Err(format!(
            "layer_norm_eps: expected a number between 0 and 1, found {eps}"
        ));
    }
    config.validate().map_err(|e| e.to_string())
}

/// One axis of a tensor that has to be there with `rank` axes.
fn axis(found: &Found<'_>, ours: &str, rank: usize, axis: usize) -> Result<usize, String> {
    let name = || found.their_name(ours);
    match found.shape(ours) {
        None => Err(format!("missing tensor `{}`, which tells the geometry", name())),
        Some(shape) if shape.len() != rank || shape[axis] == 0 || shape[axis] > LARGEST => Err(format!(
            "`{}`: expected {rank} axes, none empty, found shape {shape:?}",
            name()
        )),
        Some(shape) => Ok(shape[axis]),
    }
}

/// Side M of the native grid, from the rows of the position table: M*M patches and mostly one for CLS.
fn native_grid(found: &Found<'_>) -> Result<usize, String> {
    let rows = axis(found, "pos_embed", 3, 1)?;
    let before = usize::from(cls_row(found, rows)) + usize::from(is_distilled(found));
    let patches = rows.saturating_sub(before);
    let side = patches.isqrt();
    if side == 0 || side * side != patches {
        let of_tokens = match before {
            0 => "",
            1 => "one row for CLS and ",
            _ => "two rows for CLS and distillation and ",
        };
        return Err(format!(
            "`{}`: expected {of_tokens}a square number of rows, found {rows} rows",
            found.their_name("pos_embed")
        ));
    }
    Ok(side)
}

/// Whether the position table has a row for CLS. No positive square is followed by another, so its size tells.
pub(super) fn cls_row(found: &Found<'_>, rows: usize) -> bool {
    if found.table.classless && found.shape("cls_token").is_none() {
        return false;
    }
    let may_lack = found
        .table
        .all_rows()
        .any(|(_, ours, part)| *ours == "pos_embed" && *part == Part::PositionTable);
    !(may_lack && !is_distilled(found) && rows.isqrt().pow(2) == rows && rows > 1)
}

fn depth(found: &Found<'_>) -> Result<usize, String> {
    let prefix = found.table.blocks;
    let mut depth = 0;
    for name in found.tensors.keys() {
        let Some((index, _)) = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let index = index.parse().ok().filter(|index| *index < DEEPEST);
        let index: usize = index.ok_or_else(|| format!("`{name}`: expected a block below {DEEPEST}"))?;
        depth = depth.max(index + 1);
    }
    Ok(depth)
}

/// Kind and hidden width, from block 0. Packed SwiGLU weights are twice as wide going in as coming out, whatever
/// they are called.
fn feed_forward(found: &Found<'_>) -> Result<(FeedForwardKind, usize), String> {
    let first = |ours: &str| found.shape(ours).map(|_| axis(found, ours, 2, 0)).transpose();
    let second = |ours: &str| found.shape(ours).map(|_| axis(found, ours, 2, 1)).transpose();
    let (fc1, fc2) = (
        first("blocks.0.mlp.fc1.weight")?,
        second("blocks.0.mlp.fc2.weight")?,
    );
    let (w12, w3) = (
        first("blocks.0.mlp.w12.weight")?,
        second("blocks.0.mlp.w3.weight")?,
    );
    match (fc1, fc2, w12, w3) {
        // Gate and value of a gated one may be called as the layers of an MLP are.
        (_, _, Some(w12), _) if found.has_all_shares("blocks.0.mlp.w12.weight") => {
            Ok((FeedForwardKind::Swiglu, w12 / 2))
        }
        (Some(fc1), Some(fc2), _, _) if fc1 == fc2 => Ok((FeedForwardKind::Mlp, fc1)),
        (_, _, Some(w12), Some(w3)) if w12 == 2 * w3 => Ok((FeedForwardKind::Swiglu, w3)),
        // A misshapen one is reported with the others, once there is a geometry to compare with.
        (Some(hidden), _, _, _) => Ok((FeedForwardKind::Mlp, hidden)),
        (_, _, Some(twice), _) => Ok((FeedForwardKind::Swiglu, twice / 2)),
        _ => Err(format!(
            "missing tensor `{}`, which tells the geometry",
            found.their_name("blocks.0.mlp.fc1.weight")
        )),
    }
}
