//! From a file to a checkpoint: choose a network, settle the geometry, account for every tensor, read.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::family::Part;
use super::network::Network;
use super::plan::Plan;
use super::raw::{RawTensors, read_tensors};
use super::save::{CONFIG_KEY, PREPROCESS_KEY, VERSION, VERSION_KEY};
use super::{Checkpoint, Family, LoadOptions, Tensors, geometry, heads, hf_config};
use crate::vit::VitConfig;
use crate::{Error, Result};

/// What timm's files with a single register are, and what goes unsaid in them.
const ONE_REGISTER: &str =
    "one register, as in TIPSv2, whose pixels are not normalised: --mean 0,0,0 --std 1,1,1 if it is one";

/// Loads a backbone from a file or folder of any known family and gives it its official names, in f32, on the CPU.
///
/// Reads safetensors and `torch.save` files (nothing in them is executed), Hugging Face folders (whole or sharded),
/// timm files, training checkpoints under any wrapper (the teacher or another average before what it averages) and
/// macula's own files and run folders. Holds the network once, and one storage of the file beside it. What was chosen among
/// copies, passed over or assumed is said as events of `tracing`.
///
/// # Errors
/// A damaged file; one without a vision transformer that this package computes; tensors that are missing, spare or
/// misshapen (one error lists them with the shapes expected and found); a `config.json` or an option that contradicts the
/// tensors; a number of heads that neither the file nor the options tell.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Checkpoint> {
    let mut raw = read_tensors(path)?;
    let refuse = |reason: String| Error::Checkpoint {
        path: path.into(),
        reason,
    };
    let stored = stored_config(&raw).map_err(refuse)?;
    let network = Network::choose(&raw, stored.is_some()).map_err(refuse)?;
    let by_macula = stored.is_some();
    let (config, assumed) = settle(&raw, &network, stored, options, &refuse)?;
    let plan = Plan::new(&network, &config).map_err(|e| refuse(network.blame(&e, Some(&config))))?;
    let mut notices = network.notices(&plan.left_out, by_macula);
    notices.extend(assumed);
    if network.table.family == Family::Timm && config.num_registers == 1 {
        notices.push(ONE_REGISTER.into());
    }
    let position_rows_missing = plan.lacks_cls_row;
    let jobs = jobs(plan, &network);
    let family = network.table.family;
    let source_sha256 = raw.sha256()?;
    let (mut backbone, heads) = read(&mut raw, &jobs)?;
    if position_rows_missing {
        add_cls_row(&mut backbone, config.embed_dim)?;
    }
    for notice in &notices {
        tracing::info!("{}: {notice}", path.display());
    }
    Ok(Checkpoint {
        config,
        backbone,
        heads,
        family,
        notices,
        source_sha256,
        preprocess: raw.metadata.get(PREPROCESS_KEY).cloned(),
    })
}

/// The geometry macula wrote into the file, if it did.
fn stored_config(raw: &RawTensors) -> std::result::Result<Option<VitConfig>, String> {
    if let Some(version) = raw.metadata.get(VERSION_KEY) {
        match version.parse::<u32>() {
            Ok(1..=VERSION) => {}
            _ => {
                return Err(format!(
                    "{VERSION_KEY}: expected at most {VERSION}, found `{version}`"
                ));
            }
        }
    }
    let Some(text) = raw.metadata.get(CONFIG_KEY) else {
        return Ok(None);
    };
    let config: VitConfig = serde_json::from_str(text).map_err(|e| format!("{CONFIG_KEY}: {e}"))?;
    geometry::check_bounds(&config).map_err(|e| format!("{CONFIG_KEY}: {e}"))?;
    Ok(Some(config))
}

/// The geometry: what macula stored, else what the tensors and `config.json` tell; then the options. With it a notice,
/// where the number of heads is assumed.
fn settle(
    raw: &RawTensors,
    network: &Network<'_>,
    stored: Option<VitConfig>,
    options: &LoadOptions,
    refuse: &impl Fn(String) -> Error,
) -> Result<(VitConfig, Option<String>)> {
    let (mut config, known_heads) = match stored {
        Some(config) => {
            let heads = config.num_heads;
            (config, Some((heads, CONFIG_KEY)))
        }
        None => {
            let told = geometry::derive(&network.found).map_err(|e| refuse(network.blame(&e, None)))?;
            let hf = match network.table.family {
                Family::HuggingFace => hf_config::read(&raw.files[0])?,
                _ => None,
            };
            match hf {
                Some(hf) => {
                    let heads = hf.num_heads();
                    (hf.complete(told).map_err(refuse)?, Some((heads, "config.json")))
                }
                None => (told, None),
            }
        }
    };
    let (num_heads, assumed) =
        heads::heads(&config, network.prefix(), known_heads, options).map_err(refuse)?;
    config.num_heads = num_heads;
    if let Some(rule) = options.position_rule {
        config.position_rule = rule;
    }
    geometry::check_bounds(&config).map_err(refuse)?;
    Ok((config, assumed))
}

/// What becomes of a tensor in the file.
enum Job {
    Backbone(String, Part),
    Head(String),
}

/// The jobs by the names in the file.
fn jobs(plan: Plan, network: &Network<'_>) -> BTreeMap<String, Job> {
    let backbone = plan
        .jobs
        .into_iter()
        .map(|(theirs, ours, part)| (network.in_file(&theirs).to_owned(), Job::Backbone(ours, part)));
    let heads = network
        .heads
        .iter()
        .map(|(head, full)| ((*full).to_owned(), Job::Head(head.clone())));
    backbone.chain(heads).collect()
}

/// Reads every tensor that has a job; parts, such as those of `qkv`, are joined as soon as all are there.
fn read(raw: &mut RawTensors, jobs: &BTreeMap<String, Job>) -> Result<(Tensors, Tensors)> {
    let (mut backbone, mut heads) = (Tensors::new(), Tensors::new());
    let mut parts: BTreeMap<&str, BTreeMap<usize, Tensor>> = BTreeMap::new();
    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
    raw.read_each(&names, |name, tensor| {
        match &jobs[name] {
            Job::Head(head) => drop(heads.insert(head.clone(), tensor)),
            Job::Backbone(ours, Part::Share(which, count)) => {
                let shares = parts.entry(ours).or_default();
                shares.insert(*which, tensor);
                if shares.len() == *count {
                    let shares: Vec<Tensor> = std::mem::take(shares).into_values().collect();
                    backbone.insert(ours.clone(), Tensor::cat(&shares, 0)?); // count x [D, ..] -> [count * D, ..]
                }
            }
            Job::Backbone(ours, _) => drop(backbone.insert(ours.clone(), tensor)),
        }
        Ok(())
    })?;
    Ok((backbone, heads))
}

/// Puts a row of zeros before the patches: the CLS token already holds its position.
fn add_cls_row(backbone: &mut Tensors, embed_dim: usize) -> Result<()> {
    if let Some(table) = backbone.get_mut("pos_embed") {
        let row = Tensor::zeros((1, 1, embed_dim), DType::F32, &Device::Cpu)?;
        *table = Tensor::cat(&[&row, table], 1)?.contiguous()?; // [1, M*M, D] -> [1, 1 + M*M, D]
    }
    Ok(())
}
