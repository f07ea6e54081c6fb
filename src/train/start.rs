//! Where the weights of a run come from: nothing, its own last checkpoint, another run (heads kept), or a backbone of any
//! family (new heads).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use macula_models::vit::{VitConfig, interpolate_table};
use macula_models::weights::{Checkpoint, Tensors};

use super::checkpoint::{BestReadings, Checkpoints, Saved};
use super::config::{BackboneConfig, TrainConfig};
use super::identity::RunIdentity;
use super::network::{MASK_TOKEN, NetworkConfig};
use super::trainer::Trainer;
use crate::cluster::Ranks;
use crate::{Error, Result};

const POSITION_TABLE: &str = "backbone.pos_embed";
/// What tells crops from class tokens.
const DECODERS: [&str; 3] = ["pixel_decoder.", "hog_decoder.", "words_decoder."];

/// How a run begins.
#[derive(Debug, Clone)]
pub enum Start {
    /// From initial weights.
    Fresh,
    /// From its own last checkpoint.
    Resume,
    /// From the last checkpoint of another run, heads included, at step 0 of its own schedules.
    Run(PathBuf),
    /// From a backbone, with new heads.
    Backbone(Box<Checkpoint>),
}

impl Start {
    /// Whether the run begins with weights that have been trained elsewhere.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Backbone(_))
    }
}

/// A trainer at step 0 for any start but [`Start::Resume`].
///
/// # Errors
/// Weights that cannot be read or do not fit the configured networks.
pub fn trainer(config: &TrainConfig, start: &Start, device: &Device) -> Result<Trainer> {
    match start {
        Start::Fresh | Start::Resume => {
            if config.optimizer.lora_rank > 0 {
                let reason =
                    "expected 0 without --from: adapters move trained weights, and these are initial ones";
                return Err(Error::input("optimizer.lora_rank", reason));
            }
            Trainer::fresh(config, device)
        }
        Start::Run(folder) => {
            let Saved { state, .. } = last(folder)?;
            let network = NetworkConfig::new(config)?;
            let initial = network.initialise(config.seed)?;
            let student = fitted(completed(state.student, &initial), &network)?;
            let teacher = fitted(completed(state.teacher, &initial), &network)?;
            Trainer::with_teacher(config, &student, &teacher, device)
        }
        Start::Backbone(checkpoint) => {
            check_trainable(&checkpoint.config, config.channels())?;
            if checkpoint.config.projection.is_some() {
                tracing::info!(
                    "the projection of the class token is left out: training has heads of its own"
                );
            }
            let network = NetworkConfig::new(config)?;
            let mut all = network.initialise(config.seed)?;
            for (name, tensor) in &checkpoint.backbone {
                // A released network may have a mask token that this objective does not train.
                let name = format!("backbone.{name}");
                if all.contains_key(&name) {
                    all.insert(name, tensor.clone());
                }
            }
            Trainer::new(config, &fitted(all, &network)?, device)
        }
    }
}

/// Fails where a network has what no recipe trains yet, and what would be left out without a word, or sees images of other than
/// `channels`.
fn check_trainable(vit: &VitConfig, channels: usize) -> Result<()> {
    if vit.in_channels != channels {
        let found = vit.in_channels;
        let reason =
            format!("expected a network of {channels} channels, as the images have, found one of {found}");
        return Err(Error::setting("from", reason));
    }
    let Some(found) = vit.untrained_part() else {
        return Ok(());
    };
    let reason = format!(
        "expected a network that training can go on from, found one with {found} (it can be a teacher)"
    );
    Err(Error::setting("from", reason))
}

/// The trainer of the last checkpoint of the run in `folder` as one of `ranks`, and the best readings so far; a run that had not
/// reached a checkpoint begins anew.
///
/// # Errors
/// Checkpoints that cannot be read, or do not fit the configuration; none where the run began with weights from elsewhere; as
/// [`Trainer::share_with`].
pub fn restored(
    config: &TrainConfig,
    folder: &Path,
    device: &Device,
    ranks: &Arc<dyn Ranks>,
) -> Result<(Trainer, BestReadings)> {
    match Checkpoints::in_folder(folder).load_last()? {
        None if RunIdentity::read(folder)?.is_some_and(|began| began.from_elsewhere) => {
            let reason = "expected a checkpoint, found none: the run began with --from and was stopped before it had kept \
                          those weights; start it again, with --from and --force";
            Err(Error::input(folder.display().to_string(), reason))
        }
        None => {
            tracing::info!("no checkpoint yet: starting from step 0");
            let mut trainer = trainer(config, &Start::Fresh, device)?;
            trainer.share_with(ranks)?;
            Ok((trainer, BestReadings::default()))
        }
        Some(saved) => {
            tracing::info!("resuming from step {}", saved.state.step);
            let trainer = Trainer::resume_on(config, &saved.state, device, ranks)?;
            Ok((trainer, saved.best))
        }
    }
}

fn last(folder: &Path) -> Result<Saved> {
    Checkpoints::in_folder(folder).load_last()?.ok_or_else(|| {
        let reason = "expected a run with a checkpoint, found none";
        Error::input(folder.display().to_string(), reason)
    })
}

/// `tensors` with the mask token that a run which hid no patches lacks, and with new decoders where there were none or those of
/// crops of another size.
fn completed(mut tensors: Tensors, initial: &Tensors) -> Tensors {
    for decoder in DECODERS {
        let shape = |tensors: &Tensors| {
            let last = tensors.get(&format!("{decoder}mlp.2.weight"));
            last.map(|weight| weight.dims().to_vec())
        };
        if shape(&tensors) != shape(initial) {
            tensors.retain(|name, _| !name.starts_with(decoder));
        }
    }
    for (name, tensor) in initial {
        let is_decoder = DECODERS.iter().any(|decoder| name.starts_with(decoder));
        if (name == MASK_TOKEN || is_decoder) && !tensors.contains_key(name) {
            tensors.insert(name.clone(), tensor.clone());
        }
    }
    tensors
}

/// `tensors` with the position table brought to the network's own grid; parts that the network lacks are left out.
fn fitted(mut tensors: Tensors, network: &NetworkConfig) -> Result<Tensors> {
    let vit = &network.vit;
    let side = vit.native_grid();
    if let Some(table) = tensors.get(POSITION_TABLE)
        && table.dims() != [1, 1 + side * side, vit.embed_dim]
    {
        let table = interpolate_table(table, vit.position_rule, side, side)?;
        tensors.insert(POSITION_TABLE.to_owned(), table);
    }
    let expected: Vec<String> = network.parameters().into_iter().map(|(name, _)| name).collect();
    tensors.retain(|name, _| expected.contains(name));
    Ok(tensors)
}

/// The backbone settings of a network read from a file, for a run that goes on from it.
pub fn backbone_config(vit: &VitConfig, recipe: &BackboneConfig) -> BackboneConfig {
    BackboneConfig {
        embed_dim: vit.embed_dim,
        depth: vit.depth,
        num_heads: vit.num_heads,
        patch_size: vit.patch_size,
        num_registers: vit.num_registers,
        feed_forward: vit.feed_forward,
        ffn_hidden: vit.ffn_hidden,
        layer_scale: vit.layer_scale.unwrap_or(0.),
        drop_path_rate: recipe.drop_path_rate,
        drop_path_uniform: recipe.drop_path_uniform,
        // Their angles belong to whole grids of patches.
        patch_drop_rate: match vit.rope {
            Some(_) => 0.,
            None => recipe.patch_drop_rate,
        },
        activation: vit.activation,
        layer_norm_eps: vit.layer_norm_eps,
        pre_norm: vit.pre_norm,
        rope: vit.rope,
        stem: vit.stem.clone(),
        initial_weights: recipe.initial_weights,
    }
}
