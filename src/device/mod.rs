//! Where a network runs and in what precision it computes, by the names that a user gives them, and the GPU that candle trains on
//! (`gpu`). What runs an ONNX file on such a device is `runtime`'s.

mod dtype;
mod gpu;

use std::fmt;
use std::str::FromStr;

pub use self::dtype::Dtype;
pub(crate) use self::gpu::{describe, peak_memory, set_products};
use crate::{Error, Result};

/// Whether this build trains and runs checkpoints on a GPU.
pub const CUDA_TRAINER: bool = cfg!(feature = "cuda");

/// `--device`: where a network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The fastest of what the library and the machine have, if its features are the processor's; a line says which.
    #[default]
    Auto,
    /// The processor, with ONNX Runtime's own kernels or candle.
    Cpu,
    /// The processor, with OpenVINO's kernels.
    OpenVino,
    /// The GPU with this number.
    Cuda(usize),
    /// The GPU with this number, with TensorRT's kernels, which it chooses when a model is opened.
    TensorRt(usize),
}

impl Device {
    /// The device candle runs on. `auto` is the first GPU where this build can use one and it answers, else the processor.
    ///
    /// # Errors
    /// A GPU that does not answer, or any where this build cannot use one.
    pub fn candle(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Auto if CUDA_TRAINER => Ok(gpu::open(0).unwrap_or(candle_core::Device::Cpu)),
            Self::Auto => Ok(candle_core::Device::Cpu),
            Self::OpenVino | Self::TensorRt(_) => Err(Error::setting(
                format!("device {self}"),
                "it runs ONNX files only; expected cpu or cuda here, or export to ONNX first",
            )),
            Self::Cuda(number) if CUDA_TRAINER => gpu::open(number)
                .map_err(|error| Error::failed(format!("--device {self}"), error.to_string())),
            Self::Cuda(_) => Err(Error::failed(
                format!("--device {self}"),
                "this build of macula trains and runs checkpoints on the processor only; build it with `--features cuda` (see \
                 docs/gpu.md), or export to ONNX to run on a GPU",
            )),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::OpenVino => f.write_str("openvino"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::TensorRt(0) => f.write_str("tensorrt"),
            Self::TensorRt(number) => write!(f, "tensorrt:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |digits: &str| digits.parse::<u16>().ok().map(usize::from);
        let device = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "openvino" => Some(Self::OpenVino),
            "cuda" => Some(Self::Cuda(0)),
            "tensorrt" => Some(Self::TensorRt(0)),
            other => match other.split_once(':') {
                Some((_, digits)) if digits.starts_with('+') => None,
                Some(("cuda", digits)) => number(digits).map(Self::Cuda),
                Some(("tensorrt", digits)) => number(digits).map(Self::TensorRt),
                _ => None,
            },
        };
        device.ok_or_else(|| {
            Error::setting(
                "device",
                format!("expected auto, cpu, openvino, cuda[:N] or tensorrt[:N], found `{text}`"),
            )
        })
    }
}

/// What a network's matrix products can be computed in, where a runtime or a device does.
pub const COMPUTED: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// The most memory that this process has had at a time, in bytes (`VmHWM`); 0 where the system does not say.
pub(crate) fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in [
            "auto",
            "cpu",
            "openvino",
            "cuda",
            "cuda:3",
            "tensorrt",
            "tensorrt:1",
        ] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:0".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in [
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "CUDA",
            "",
            "cuda:99999",
            "cpu:1",
        ] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("device: expected auto, cpu, openvino, cuda[:N] or tensorrt[:N], found `{text}`")
            );
        }
    }
}
