//! How a teacher is opened, whatever kind it is of.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::checkpoint_teacher::CheckpointTeacher;
use super::onnx_teacher::OnnxTeacher;
use crate::train::config::DistillConfig;
use crate::train::distillation::FrozenTeacher;
use crate::train::run;
use crate::{Error, Result};

/// Opens the teacher that `config` names. A checkpoint runs on `device`, an ONNX file as `onnx` says.
///
/// # Errors
/// Names the file, what was expected and what was found.
pub fn open(config: &DistillConfig, device: &Device, onnx: &OnnxSettings) -> Result<Box<dyn FrozenTeacher>> {
    let path = Path::new(&config.teacher);
    if !path.exists() {
        let reason = "no such file; expected a run folder, a checkpoint or an ONNX file";
        return Err(Error::setting(format!("teacher {}", config.teacher), reason));
    }
    if crate::extract::model::is_onnx_name(path) {
        return Ok(Box::new(OnnxTeacher::open(path, config, onnx)?));
    }
    let is_run = path.join(run::CONFIG).is_file() && path.join("checkpoints").is_dir();
    Ok(Box::new(match is_run {
        true => CheckpointTeacher::of_run(path, device)?,
        false => CheckpointTeacher::of_file(path, config, device)?,
    }))
}

/// Where and with what ONNX Runtime runs a teacher.
#[derive(Debug, Clone, Default)]
pub struct OnnxSettings {
    /// Library named by the user.
    pub ort_lib: Option<PathBuf>,
    /// Where it computes.
    pub device: crate::device::Device,
    /// Its threads; 0 for all cores.
    pub threads: usize,
}
