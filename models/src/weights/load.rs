//! From a file to a checkpoint: choose a network, settle the geometry, account for every tensor, read.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::family::{PERIODS, Part};
use super::network::Network;
use super::plan::Plan;
use super::raw::{RawTensors, read_tensors};
use super::save::{CONFIG_KEY, PREPROCESS_KEY, VERSION, VERSION_KEY};
use super::stated::{self, Stated};
use super::{Checkpoint, Family, LoadOptions, Tensors, geometry, heads};
use crate::vit::{RELATIVE_TABLE, VitConfig};
use crate::{Error, Result};

/// What files with a single register are, and what goes unsaid in them.
const ONE_REGISTER: &str =
    "one register, as in TIPSv2, whose pixels are not normalised: --mean 0,0,0 --std 1,1,1 if it is one";

/// CLIP's normalisation (open_clip `OPENAI_DATASET_MEAN` and `OPENAI_DATASET_STD`).
const CLIP_PIXELS: &str = "CLIP's pixels have a mean and a deviation of their own, where no file beside it says so: \
     --mean 0.48145466,0.4578275,0.40821073 --std 0.26862954,0.26130258,0.27577711";

/// Loads a backbone from a file or folder of any known family and gives it its official names, in f32, on the CPU.
///
/// Reads safetensors and `torch.save` files (nothing in them is executed), Hugging Face folders (whole or sharded),
/// timm and open_clip files, training checkpoints under any wrapper (the teacher or another average before what it averages) and
/// macula's own files and run folders. Holds the network once, and one storage of the file beside it. What was chosen among
/// copies, passed over or assumed is said as events of `tracing`.
///
/// # Errors
/// A damaged file; one without a vision transformer that this package computes; tensors that are missing, spare or
/// misshapen (one error lists them with the shapes expected and found); a `config.json` or an option that contradicts the
/// tensors; a number of heads or an activation that neither the file, what lies beside it, nor the options tell.
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
    let mut plan = Plan::new(&network, &config).map_err(|e| refuse(network.blame(&e, Some(&config))))?;
    let mut notices = network.notices(&plan.left_out, by_macula);
    notices.extend(assumed);
    if matches!(network.table.family, Family::Timm | Family::Tips) && config.num_registers == 1 {
        notices.push(ONE_REGISTER.into());
    }
    let is_clip = matches!(
        network.table.family,
        Family::OpenClip | Family::HuggingFaceClip | Family::TimmClip
    );
    let is_named = options
        .arch
        .as_deref()
        .is_some_and(|arch| !arch.starts_with("vit-"));
    if is_clip && !is_named && !stated::has_preprocessing(&raw.files[0]) {
        notices.push(CLIP_PIXELS.into());
    }
    let (position_rows_missing, distilled) = (plan.lacks_cls_row, plan.has_distillation_row);
    let zeros = std::mem::take(&mut plan.zeros);
    let network_periods = network.in_file(PERIODS).to_owned();
    let jobs = jobs(plan, &network);
    let (family, rotation) = (network.table.family, network.table.rotation);
    let source_sha256 = raw.sha256()?;
    if let (Some(rope), true) = (config.rope, jobs.values().any(Job::is_periods)) {
        check_periods(&mut raw, &network_periods, rope.theta)?;
    }
    let shapes: BTreeMap<String, Vec<usize>> = config.parameters().into_iter().collect();
    let (mut backbone, heads) = read(&mut raw, &jobs, zeros, &shapes)?;
    if position_rows_missing {
        add_cls_row(&mut backbone, config.embed_dim)?;
    }
    if distilled {
        fold_distillation_row(&mut backbone)?;
    }
    if rotation.by_neighbours() && config.rope.is_some() {
        sort_pairs(&mut backbone, &config)?;
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
    let (mut config, said) = match stored {
        Some(config) => {
            let said = Stated {
                heads: Some((config.num_heads, CONFIG_KEY)),
                activation: Some((config.activation, CONFIG_KEY)),
            };
            (config, said)
        }
        None => {
            let derived = geometry::derive(&network.found).map_err(|e| refuse(network.blame(&e, None)))?;
            let (config, mut said) = stated::beside(network.table, &raw.files[0], derived, refuse)?;
            // A table of relative positions has a column for each head.
            let tables = network.found.tensors.iter();
            let mut tables = tables.filter(|(name, _)| name.ends_with(RELATIVE_TABLE));
            if let (Some((_, table)), None) = (tables.next(), said.heads) {
                said.heads = table.shape.get(1).map(|heads| (*heads, RELATIVE_TABLE));
            }
            // Of each head a quarter has periods.
            let periods = network.found.tensors.get(PERIODS);
            let periods = periods.and_then(|t| t.shape.first().copied());
            if let (Some(periods @ 1..), None) = (periods, said.heads) {
                said.heads = Some((config.embed_dim / 4 / periods, PERIODS));
            }
            (config, said)
        }
    };
    config.activation = stated::activation(network.table, &config, &said, options).map_err(refuse)?;
    let (num_heads, assumed) =
        heads::heads(&config, network.prefix(), said.heads, options).map_err(refuse)?;
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

impl Job {
    fn is_periods(&self) -> bool {
        matches!(self, Self::Backbone(_, Part::Periods))
    }
}

/// Fails unless the periods of a file are those of `theta`, but for having been rounded to 16 bits: what is computed are the
/// exact ones, as by transformers and timm.
fn check_periods(raw: &mut RawTensors, name: &str, theta: f64) -> Result<()> {
    let periods: Vec<f32> = raw.read(name)?.flatten_all()?.to_vec1()?;
    let count = periods.len() as f64;
    for (i, found) in periods.iter().enumerate() {
        let expected = theta.powf(i as f64 / count);
        let off = (f64::from(*found) / expected - 1.).abs();
        if off.is_nan() || off > 0.01 {
            let reason = format!("{name}: expected {theta}^({i} / {count}) = {expected}, found {found}");
            return Err(Error::corrupt(&raw.path, reason));
        }
    }
    Ok(())
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

/// Parts of tensors, such as queries, keys and values, by the name of the whole and their places in it, and how many each is.
type Shares = BTreeMap<String, BTreeMap<usize, (Tensor, usize)>>;

/// Reads every tensor that has a job; parts, such as those of `qkv`, are joined as soon as all are there.
fn read(
    raw: &mut RawTensors,
    jobs: &BTreeMap<String, Job>,
    zeros: Vec<(String, Part, Vec<usize>)>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(Tensors, Tensors)> {
    let (mut backbone, mut heads, mut masks) = (Tensors::new(), Tensors::new(), Tensors::new());
    let mut shares = Shares::new();
    for (ours, part, shape) in zeros {
        let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        place(&mut backbone, &mut shares, &ours, part, tensor)?;
    }
    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
    raw.read_each(&names, |name, tensor| {
        match &jobs[name] {
            Job::Head(head) => drop(heads.insert(head.clone(), tensor)),
            Job::Backbone(_, Part::Periods) => {}
            Job::Backbone(ours, Part::Mask) => drop(masks.insert(ours.clone(), tensor)),
            Job::Backbone(ours, part) => {
                let tensor = match (part, shapes.get(ours)) {
                    (Part::Transposed, _) => tensor.t()?.contiguous()?,
                    (Part::Axes(_), Some(shape)) => tensor.reshape(shape.as_slice())?,
                    _ => tensor,
                };
                place(&mut backbone, &mut shares, ours, *part, tensor)?;
            }
        }
        Ok(())
    })?;
    for (ours, mask) in masks {
        if let Some(bias) = backbone.get_mut(&ours) {
            *bias = masked(bias, &mask).map_err(|e| Error::corrupt(&raw.path, format!("{ours}: {e}")))?;
        }
    }
    Ok((backbone, heads))
}

/// Puts a tensor, or a part of one, in its place.
fn place(backbone: &mut Tensors, shares: &mut Shares, ours: &str, part: Part, tensor: Tensor) -> Result<()> {
    let (which, some, count) = match part {
        Part::Share(which, count) => (which, 1, count),
        Part::Run(first, some, count) => (first, some, count),
        _ => {
            backbone.insert(ours.to_owned(), tensor);
            return Ok(());
        }
    };
    let of_ours = shares.entry(ours.to_owned()).or_default();
    of_ours.insert(which, (tensor, some));
    if of_ours.values().map(|(_, some)| some).sum::<usize>() == count {
        let all: Vec<Tensor> = std::mem::take(of_ours)
            .into_values()
            .map(|(tensor, _)| tensor)
            .collect();
        backbone.insert(ours.to_owned(), Tensor::cat(&all, 0)?); // count x [D, ..] -> [count * D, ..]
    }
    Ok(())
}

/// `bias` times `mask`, and 0 where that is 0, whatever `bias` holds there.
fn masked(bias: &Tensor, mask: &Tensor) -> std::result::Result<Tensor, String> {
    let values = |tensor: &Tensor| tensor.to_vec1::<f32>().map_err(|e| e.to_string());
    let (bias, mask) = (values(bias)?, values(mask)?);
    if mask.iter().any(|factor| factor.is_nan()) {
        return Err("expected a mask of the bias of numbers, found one that is not set (NaN)".into());
    }
    let product = bias.iter().zip(&mask);
    let product: Vec<f32> = product
        .map(|(bias, mask)| if *mask == 0. { 0. } else { bias * mask })
        .collect();
    let count = product.len();
    Tensor::from_vec(product, count, &Device::Cpu).map_err(|e| e.to_string())
}

/// Puts a row of zeros before the patches: the CLS token already holds its position.
fn add_cls_row(backbone: &mut Tensors, embed_dim: usize) -> Result<()> {
    if let Some(table) = backbone.get_mut("pos_embed") {
        let row = Tensor::zeros((1, 1, embed_dim), DType::F32, &Device::Cpu)?;
        *table = Tensor::cat(&[&row, table], 1)?.contiguous()?; // [1, M*M, D] -> [1, 1 + M*M, D]
    }
    Ok(())
}

/// Adds the position of the distillation token, the second row of the table, to the token: a register has none.
fn fold_distillation_row(backbone: &mut Tensors) -> Result<()> {
    let (Some(table), Some(token)) = (backbone.get("pos_embed"), backbone.get("register_tokens")) else {
        return Ok(());
    };
    let rows = table.dim(1)?;
    let token = (token + table.narrow(1, 1, 1)?)?;
    let table = Tensor::cat(&[table.narrow(1, 0, 1)?, table.narrow(1, 2, rows - 2)?], 1)?; // [1, 1 + N, D]
    backbone.insert("register_tokens".into(), token);
    backbone.insert("pos_embed".into(), table.contiguous()?);
    Ok(())
}

/// Sorts the values of each query and key so that the pairs that are turned, (0, 1), (2, 3), .., lie half a head apart.
fn sort_pairs(backbone: &mut Tensors, config: &VitConfig) -> Result<()> {
    let (width, half) = (config.head_dim(), config.head_dim() / 2);
    let sorted = |row: usize| match row / config.embed_dim {
        2 => row, // values
        _ => row / width * width + 2 * (row % width % half) + row % width / half,
    };
    let rows: Vec<u32> = (0..3 * config.embed_dim).map(|row| sorted(row) as u32).collect();
    let rows = Tensor::from_vec(rows, 3 * config.embed_dim, &Device::Cpu)?;
    for block in 0..config.depth {
        for kind in ["weight", "bias"] {
            if let Some(tensor) = backbone.get_mut(&format!("blocks.{block}.attn.qkv.{kind}")) {
                *tensor = tensor.index_select(&rows, 0)?;
            }
        }
    }
    Ok(())
}
