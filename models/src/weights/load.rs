//! From a file to a checkpoint: tell the family, settle the geometry, account for every tensor, read.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::family::{Found, Part, Table, detect};
use super::geometry::{self, HEAD_DIM};
use super::raw::{RawTensor, RawTensors, read_tensors};
use super::save::{CONFIG_KEY, PREPROCESS_KEY, VERSION, VERSION_KEY};
use super::{Checkpoint, Family, LoadOptions, Tensors, hf_config, official, wrappers};
use crate::vit::VitConfig;
use crate::{Error, Result};

/// Loads a backbone from a file or folder of any known family and gives it its official names, in f32, on the CPU.
///
/// Reads safetensors and `torch.save` files (nothing in them is executed), Hugging Face folders (whole or sharded),
/// timm files, training checkpoints (the teacher before the student) and macula's own files and run folders.
/// Holds the network once, and one storage of the file beside it.
///
/// # Errors
/// A damaged file; one without a vision transformer; tensors that are missing, spare or misshapen (one error lists
/// them with the shapes expected and found); a `config.json` or an option that contradicts the tensors; a number of
/// heads that neither the file nor the options tell.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Checkpoint> {
    let mut raw = read_tensors(path)?;
    let refuse = |reason: String| Error::Checkpoint {
        path: path.into(),
        reason,
    };
    let stored = stored_config(&raw).map_err(refuse)?;
    let names = wrappers::unwrap(&raw)?;
    let table = match stored {
        Some(_) => &official::TABLE,
        None => detect(names.keys().map(String::as_str)).ok_or_else(|| refuse(no_network(&raw)))?,
    };
    let (found, heads) = split(table, &names, &raw);
    let config = settle(&raw, &found, stored, options, &refuse)?;
    let plan = plan(&found, &config).map_err(refuse)?;
    let position_rows_missing = plan.lacks_cls_row;
    let jobs = jobs(plan, heads, &names);
    let source_sha256 = raw.sha256()?;
    let (mut backbone, heads) = read(&mut raw, &jobs)?;
    if position_rows_missing {
        add_cls_row(&mut backbone, config.embed_dim)?;
    }
    Ok(Checkpoint {
        config,
        backbone,
        heads,
        family: table.family,
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

fn no_network(raw: &RawTensors) -> String {
    let some: Vec<&str> = raw.tensors.keys().take(3).map(String::as_str).collect();
    format!(
        "expected a vision transformer with `cls_token` or `embeddings.cls_token`, found {} tensors: {}",
        raw.tensors.len(),
        some.join(", ")
    )
}

/// The tensors of the backbone, and the names of those of heads: official name and name without wrappers.
fn split<'a>(
    table: &'static Table,
    names: &'a BTreeMap<String, String>,
    raw: &'a RawTensors,
) -> (Found<'a>, Vec<(String, &'a str)>) {
    let mut tensors = BTreeMap::new();
    let mut heads = Vec::new();
    for (name, full) in names {
        let tensor = &raw.tensors[full];
        match table.head_name(name) {
            // Counters of a head are no weights.
            Some(head) if tensor.element.is_float() => heads.push((head, name.as_str())),
            Some(_) => {}
            None => drop(tensors.insert(name.as_str(), tensor)),
        }
    }
    (Found { table, tensors }, heads)
}

/// The geometry: what macula stored, else what the tensors and `config.json` tell; then the options.
fn settle(
    raw: &RawTensors,
    found: &Found<'_>,
    stored: Option<VitConfig>,
    options: &LoadOptions,
    refuse: &impl Fn(String) -> Error,
) -> Result<VitConfig> {
    let (mut config, known_heads) = match stored {
        Some(config) => {
            let heads = config.num_heads;
            (config, Some((heads, CONFIG_KEY)))
        }
        None => {
            let told = geometry::derive(found).map_err(refuse)?;
            let hf = match found.table.family {
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
    config.num_heads = heads(&config, known_heads, options).map_err(refuse)?;
    if let Some(rule) = options.position_rule {
        config.position_rule = rule;
    }
    geometry::check_bounds(&config).map_err(refuse)?;
    Ok(config)
}

/// The number of heads, on which everyone who names one has to agree.
fn heads(
    config: &VitConfig,
    known: Option<(usize, &'static str)>,
    options: &LoadOptions,
) -> std::result::Result<usize, String> {
    let arch = match &options.arch {
        Some(arch) => Some((arch_heads(arch, config)?, "the architecture")),
        None => None,
    };
    let given = options
        .num_heads
        .map(|heads| (heads, "the given number of heads"));
    let mut said = [known, arch, given].into_iter().flatten();
    let Some((heads, by)) = said.next() else {
        if config.embed_dim.is_multiple_of(HEAD_DIM) {
            return Ok(config.embed_dim / HEAD_DIM);
        }
        return Err(format!(
            "the file does not tell the number of heads and the width {} is no multiple of {HEAD_DIM}: \
             give the number of heads or the architecture",
            config.embed_dim
        ));
    };
    match said.find(|(other, _)| *other != heads) {
        Some((other, by_other)) => Err(format!("num_heads: {by} says {heads}, {by_other} says {other}")),
        None => Ok(heads),
    }
}

/// The heads of a named architecture, once its tensors are the ones found.
fn arch_heads(arch: &str, config: &VitConfig) -> std::result::Result<usize, String> {
    let patch_size = match arch.split_once('/') {
        Some((_, patch)) => patch.split('-').next().and_then(|p| p.parse().ok()).unwrap_or(0),
        None => 14,
    };
    let image_size = config.native_grid().saturating_mul(patch_size);
    let named = VitConfig::named(arch, image_size).map_err(|e| e.to_string())?;
    let differing: Vec<String> = [
        ("width", named.embed_dim.to_string(), config.embed_dim.to_string()),
        ("depth", named.depth.to_string(), config.depth.to_string()),
        (
            "patch size",
            named.patch_size.to_string(),
            config.patch_size.to_string(),
        ),
        (
            "registers",
            named.num_registers.to_string(),
            config.num_registers.to_string(),
        ),
        (
            "feed-forward",
            format!("{:?}", named.feed_forward),
            format!("{:?}", config.feed_forward),
        ),
        (
            "hidden width",
            named.ffn_hidden.to_string(),
            config.ffn_hidden.to_string(),
        ),
    ]
    .into_iter()
    .filter(|(_, named, found)| named != found)
    .map(|(field, named, found)| format!("{field} {named}, found {found}"))
    .collect();
    if differing.is_empty() {
        Ok(named.num_heads)
    } else {
        Err(format!("{arch}: expected {}", differing.join("; ")))
    }
}

/// Which of their tensors becomes which of ours.
struct Plan {
    /// Their name, our name, and what one is of the other.
    jobs: Vec<(String, String, Part)>,
    lacks_cls_row: bool,
}

/// Most faults that one error lists.
const MOST_LISTED: usize = 8;

/// Accounts for every tensor of the network and of the file.
fn plan(found: &Found<'_>, config: &VitConfig) -> std::result::Result<Plan, String> {
    let mut jobs = Vec::new();
    let mut faults = Vec::new();
    let mut unused = found.tensors.clone();
    let mut lacks_cls_row = false;
    for (ours, shape) in config.parameters() {
        let sources = found.table.sources(&ours);
        if sources.is_empty() {
            faults.push(format!(
                "missing `{ours}` {shape:?}, which this family has no name for"
            ));
        }
        for (theirs, part) in sources {
            let mut expected = shape.clone();
            match part {
                Part::Whole => {}
                Part::Third(_) => expected[0] /= 3,
                Part::PositionTable => {
                    let rows = found
                        .tensors
                        .get(theirs.as_str())
                        .and_then(|t| t.shape.get(1).copied());
                    lacks_cls_row = rows.is_some_and(|rows| !geometry::cls_row(found, rows));
                    expected[1] -= usize::from(lacks_cls_row);
                }
            }
            match unused.remove(theirs.as_str()) {
                None => faults.push(format!("missing `{theirs}` {expected:?}")),
                Some(tensor) => faults.extend(misfit(&theirs, tensor, &expected)),
            }
            jobs.push((theirs, ours.clone(), part));
        }
    }
    faults.extend(
        unused
            .iter()
            .map(|(name, tensor)| format!("spare `{name}` {:?}", tensor.shape)),
    );
    if faults.is_empty() {
        return Ok(Plan { jobs, lacks_cls_row });
    }
    let count = faults.len();
    let more = match count.saturating_sub(MOST_LISTED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    faults.truncate(MOST_LISTED);
    let tensors = if count == 1 { "tensor does" } else { "tensors do" };
    Err(format!(
        "{count} {tensors} not fit the network: {}{more}",
        faults.join("; ")
    ))
}

fn misfit(name: &str, tensor: &RawTensor, expected: &[usize]) -> Option<String> {
    if tensor.shape != expected {
        Some(format!(
            "`{name}` expected {expected:?}, found {:?}",
            tensor.shape
        ))
    } else if !tensor.element.is_float() {
        Some(format!("`{name}` expected floats, found {}", tensor.element))
    } else {
        None
    }
}

/// What becomes of a tensor in the file.
enum Job {
    Backbone(String, Part),
    Head(String),
}

/// The jobs by the names in the file.
fn jobs(plan: Plan, heads: Vec<(String, &str)>, names: &BTreeMap<String, String>) -> BTreeMap<String, Job> {
    let backbone = plan
        .jobs
        .into_iter()
        .map(|(theirs, ours, part)| (names[&theirs].clone(), Job::Backbone(ours, part)));
    let heads = heads
        .into_iter()
        .map(|(head, name)| (names[name].clone(), Job::Head(head)));
    backbone.chain(heads).collect()
}

/// Reads every tensor that has a job; the parts of `qkv` are joined as soon as the three are there.
fn read(raw: &mut RawTensors, jobs: &BTreeMap<String, Job>) -> Result<(Tensors, Tensors)> {
    let (mut backbone, mut heads) = (Tensors::new(), Tensors::new());
    let mut parts: BTreeMap<&str, BTreeMap<usize, Tensor>> = BTreeMap::new();
    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
    raw.read_each(&names, |name, tensor| {
        match &jobs[name] {
            Job::Head(head) => drop(heads.insert(head.clone(), tensor)),
            Job::Backbone(ours, Part::Third(which)) => {
                let three = parts.entry(ours).or_default();
                three.insert(*which, tensor);
                if three.len() == 3 {
                    let three: Vec<Tensor> = std::mem::take(three).into_values().collect();
                    backbone.insert(ours.clone(), Tensor::cat(&three, 0)?); // 3 x [D, ..] -> [3D, ..]
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
