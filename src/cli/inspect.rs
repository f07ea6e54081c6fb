//! `macula inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use macula_models::{onnx, weights};
use serde_json::{Value, json};

use super::args::{CheckpointArgs, INPUT, JsonArgs, examples};
use super::output;
use crate::extract::{FeatureFolder, Meta};
use crate::{Error, Result};

/// Arguments of `macula inspect`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula inspect dinov2_vits14_pretrain.pth",
    "macula inspect m.onnx --json",
    "macula inspect features/train",
]))]
pub struct InspectArgs {
    /// Checkpoint, ONNX file or feature folder
    #[arg(help_heading = INPUT)]
    file: PathBuf,
    #[command(flatten)]
    geometry: CheckpointArgs,
    #[command(flatten)]
    print: JsonArgs,
}

impl InspectArgs {
    /// Prints what the file holds.
    pub fn run(&self) -> Result<()> {
        let found = self.describe()?;
        if self.print.json {
            return output::print_json(&found);
        }
        let mut lines = Vec::new();
        flatten("", &found, &mut lines);
        output::print(&lines.join("\n"))
    }

    fn describe(&self) -> Result<Value> {
        let path = &self.file;
        if !path.exists() {
            return Err(Error::input(path.display().to_string(), "no such file or folder"));
        }
        if crate::extract::model::is_onnx_name(path) {
            return onnx_file(path);
        }
        let is_features = path.join(crate::extract::folder::META_FILE).is_file()
            || (path.is_dir() && FeatureFolder::open(path).is_ok());
        if is_features {
            return features(path);
        }
        self.checkpoint(path)
    }

    /// What the weight file holds, and the network in it or why there is none that macula computes.
    fn checkpoint(&self, path: &Path) -> Result<Value> {
        let raw = weights::read_tensors(path)?;
        let known = weights::recognise(&raw);
        let mut found = match weights::load(path, &self.geometry.load_options()) {
            Ok(checkpoint) => checkpoint_facts(&checkpoint),
            Err(error) => json!({ "kind": "weights", "why": error.to_string() }),
        };
        if let Value::Object(found) = &mut found {
            found.insert("architecture".into(), json!(known.architecture));
            found.insert("prefix".into(), json!(known.prefix));
            found.insert("other_networks".into(), json!(known.others));
            found.insert("stored".into(), stored(&raw));
        }
        Ok(found)
    }
}

fn checkpoint_facts(checkpoint: &weights::Checkpoint) -> Value {
    let heads: Vec<String> = checkpoint
        .heads
        .iter()
        .map(|(name, tensor)| format!("{name} {:?}", tensor.dims()))
        .collect();
    json!({
        "kind": "checkpoint",
        "family": format!("{:?}", checkpoint.family),
        "sha256": checkpoint.source_sha256,
        "parameters": checkpoint.config.parameter_count(),
        "tensors": checkpoint.backbone.len(),
        "config": checkpoint.config,
        "heads": heads,
    })
}

/// Every tensor of the file by name: `f32 [1, 1, 384]`, or why it cannot be read.
fn stored(raw: &weights::RawTensors) -> Value {
    let tensors = raw
        .tensors
        .iter()
        .map(|(name, tensor)| (name, format!("{} {:?}", tensor.element, tensor.shape)));
    let unreadable = raw
        .unreadable
        .iter()
        .map(|(name, reason)| (name, format!("not read: {reason}")));
    let all = tensors.chain(unreadable);
    Value::Object(all.map(|(name, what)| (name.clone(), what.into())).collect())
}

fn onnx_file(path: &Path) -> Result<Value> {
    let file = onnx::describe(path)?;
    Ok(json!({ "kind": "onnx", "file": file }))
}

fn features(path: &Path) -> Result<Value> {
    // An unfinished folder is worth a look too, so a folder that cannot be opened is described from meta.json alone.
    let (meta, complete): (Meta, bool) = match FeatureFolder::open(path) {
        Ok(folder) => {
            return Ok(json!({
                "kind": "features",
                "complete": true,
                "n_written": folder.n_written(),
                "n_failed": folder.n_failed(),
                "meta": folder.meta(),
            }));
        }
        Err(_) => (Meta::read(path)?, false),
    };
    Ok(json!({ "kind": "features", "complete": complete, "meta": meta }))
}

/// One line a value: `config.embed_dim: 384`.
fn flatten(prefix: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&key, value, lines);
            }
        }
        Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_string()) => {
            for (index, item) in list.iter().enumerate() {
                flatten(&format!("{prefix}[{index}]"), item, lines);
            }
        }
        Value::String(text) => lines.push(format!("{prefix}: {text}")),
        other => lines.push(format!("{prefix}: {other}")),
    }
}
