//! Checkpoints: `checkpoints/step-N/` with `state.safetensors` (student, teacher, heads, optimizer, memory) and
//! `state.json` (step, versions, checksum), written beside and renamed whole. `last` and `best` are links to one of them.
//! The sampler and every generator follow from the seed and the step, so the step is all that is kept of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use macula_models::vit::VitConfig;
use macula_models::weights::{self, Layout, Tensors};
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerState;
use super::sharding::Parts;
use super::trainer::TrainerState;
use crate::files;
use crate::{Error, Result};

/// The version of the layout; later ones are refused.
const VERSION: u32 = 1;
const TENSORS: &str = "state.safetensors";
const RECORD: &str = "state.json";
const LAST: &str = "last";
const BEST: &str = "best";

/// Prefixes of the names of tensors.
const STUDENT: &str = "student.";
const TEACHER: &str = "teacher.";
const OPTIMIZER: &str = "optimizer.";
const MEMORY: &str = "memory.";

/// What `state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    step: u64,
    seed: u64,
    knn_top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label_free: Option<f64>,
    sha256: String,
    optimizer_steps: BTreeMap<String, u64>,
}

/// A checkpoint's content.
#[derive(Debug)]
pub struct Saved {
    /// The trainer's state.
    pub state: TrainerState,
    /// The best readings of the run so far.
    pub best: BestReadings,
    /// SHA-256 of its tensors' file.
    pub sha256: String,
}

/// The best readings of a run so far, of those that are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BestReadings {
    /// Of online k-NN.
    pub knn_top1: Option<f64>,
    /// Of the meter without labels that chooses the best checkpoint.
    pub label_free: Option<f64>,
}

/// The checkpoints of a run folder.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of the run in `run`; the folder need not exist yet.
    pub fn in_folder(run: &Path) -> Self {
        Self {
            folder: run.join("checkpoints"),
        }
    }

    /// Writes a checkpoint and makes it the last one; `best` makes it the best one too. Nothing is left of one that could
    /// not be written whole, and the last one stays what it was.
    ///
    /// # Errors
    /// A folder that cannot be written, a full disk.
    pub fn save(
        &self,
        state: &TrainerState,
        vit: &VitConfig,
        seed: u64,
        readings: BestReadings,
        best: bool,
    ) -> Result<PathBuf> {
        self.save_parts(state, None, vit, seed, readings, best)
    }

    /// [`Self::save`] of a state whose optimizer's is in `parts`, where ranks divide it: the same file. The others answer meanwhile.
    ///
    /// # Errors
    /// As there; ranks that cannot reach each other.
    pub(super) fn save_parts(
        &self,
        state: &TrainerState,
        parts: Option<&Parts>,
        vit: &VitConfig,
        seed: u64,
        readings: BestReadings,
        best: bool,
    ) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let target = self.at(state.step);
        // The same step again, after a resume, replaces what has its name; its bytes are the same.
        files::write_folder(&target, |workshop| {
            let file = workshop.join(TENSORS);
            write_tensors(&file, state, parts, &weights::config_metadata(vit)?)?;
            let record = Record {
                version: VERSION,
                step: state.step,
                seed,
                knn_top1: readings.knn_top1,
                label_free: readings.label_free,
                sha256: files::sha256(&file)?,
                optimizer_steps: parts.map_or(&state.optimizer.steps, Parts::steps).clone(),
            };
            files::write_json(&workshop.join(RECORD), &record)
        })?;
        self.link(LAST, state.step)?;
        if best {
            self.link(BEST, state.step)?;
        }
        Ok(target)
    }

    /// Removes all but the `keep` latest, and the best one.
    ///
    /// # Errors
    /// A folder that cannot be listed or removed.
    pub fn prune(&self, keep: usize) -> Result<()> {
        let best = fs::read_link(self.folder.join(BEST)).ok();
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(keep);
        for step in steps.into_iter().take(old) {
            let folder = self.at(step);
            if folder.file_name() != best.as_deref().and_then(Path::file_name) {
                fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            }
        }
        Ok(())
    }

    /// The latest checkpoint that is whole; the notice says why a later one is not. None where there is none at all.
    ///
    /// # Errors
    /// Checkpoints of which none can be read: the latest one's trouble.
    pub fn load_last(&self) -> Result<Option<Saved>> {
        let mut trouble = None;
        for step in self.steps()?.into_iter().rev() {
            match load(&self.at(step)) {
                Ok(saved) => return Ok(Some(saved)),
                Err(error) => {
                    tracing::warn!("{error}; looking for an earlier checkpoint");
                    trouble.get_or_insert(error);
                }
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// The step of the latest checkpoint.
    pub fn last_step(&self) -> Option<u64> {
        self.steps().ok()?.last().copied()
    }

    /// The steps of all checkpoints, rising.
    fn steps(&self) -> Result<BTreeSet<u64>> {
        let mut steps = BTreeSet::new();
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(steps),
            Err(e) => return Err(Error::io(&self.folder, e)),
        };
        for entry in entries {
            let name = entry.map_err(|e| Error::io(&self.folder, e))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-"));
            steps.extend(step.and_then(|step| step.parse::<u64>().ok()));
        }
        Ok(steps)
    }

    fn at(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Points `name` at a step's folder, without a moment in which it points nowhere.
    #[cfg(unix)]
    fn link(&self, name: &str, step: u64) -> Result<()> {
        let beside = self.folder.join(format!("{}{name}", files::TEMPORARY_PREFIX));
        let path = self.folder.join(name);
        let linked = match fs::remove_file(&beside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => std::os::unix::fs::symlink(format!("step-{step}"), &beside),
        };
        linked
            .and_then(|()| fs::rename(&beside, &path))
            .and_then(|()| macula_files::sync_folder(&self.folder))
            .map_err(|e| Error::io(&path, e))
    }

    /// Links to folders need rights that Windows users rarely have: the name is written into a file instead.
    #[cfg(not(unix))]
    fn link(&self, name: &str, step: u64) -> Result<()> {
        files::write_bytes(&self.folder.join(name), format!("step-{step}").as_bytes())
    }
}

/// Writes the tensors of a state, those that other ranks have as they come.
fn write_tensors(
    file: &Path,
    state: &TrainerState,
    parts: Option<&Parts>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let here = tensors(state);
    let Some(parts) = parts else {
        return weights::save(file, &here, metadata).map_err(Error::from);
    };
    let mut layouts: BTreeMap<String, Layout> = here
        .iter()
        .map(|(name, tensor)| (name.clone(), Layout::of(tensor)))
        .collect();
    layouts.extend(
        parts
            .elsewhere()
            .map(|(name, layout)| (format!("{OPTIMIZER}{name}"), layout)),
    );
    weights::save_each(file, &layouts, metadata, |name| match here.get(name) {
        Some(tensor) => Ok(tensor.clone()),
        None => parts.ask(name.strip_prefix(OPTIMIZER).unwrap_or(name)),
    })?;
    parts.end()
}

/// All tensors of a state that are here, under the names of the file.
fn tensors(state: &TrainerState) -> Tensors {
    let mut all = Tensors::new();
    for (prefix, tensors) in [
        (STUDENT, &state.student),
        (TEACHER, &state.teacher),
        (OPTIMIZER, &state.optimizer.tensors),
        (MEMORY, &state.memory),
    ] {
        all.extend(
            tensors
                .iter()
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())),
        );
    }
    all
}

/// Reads the checkpoint in `folder`.
///
/// # Errors
/// A file that is missing, damaged or of a later version.
pub fn load(folder: &Path) -> Result<Saved> {
    let path = folder.join(RECORD);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let record: Record =
        serde_json::from_str(&text).map_err(|e| Error::input(path.display().to_string(), e.to_string()))?;
    if record.version > VERSION {
        let reason = format!("expected version {VERSION} at most, found {}", record.version);
        return Err(Error::input(path.display().to_string(), reason));
    }
    let path = folder.join(TENSORS);
    let sha256 = files::sha256(&path)?;
    if sha256 != record.sha256 {
        let reason = format!("damaged: expected SHA-256 {}, found {sha256}", record.sha256);
        return Err(Error::input(path.display().to_string(), reason));
    }
    let all = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)?;
    let mut all: Tensors = all.into_iter().collect();
    let mut take = |prefix: &str| {
        let (own, rest): (Tensors, Tensors) = std::mem::take(&mut all)
            .into_iter()
            .partition(|(name, _)| name.starts_with(prefix));
        all = rest;
        own.into_iter()
            .map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor))
            .collect::<Tensors>()
    };
    Ok(Saved {
        state: TrainerState {
            step: record.step,
            student: take(STUDENT),
            teacher: take(TEACHER),
            optimizer: OptimizerState {
                tensors: take(OPTIMIZER),
                steps: record.optimizer_steps,
            },
            memory: take(MEMORY),
        },
        best: BestReadings {
            knn_top1: record.knn_top1,
            label_free: record.label_free,
        },
        sha256,
    })
}
