//! Execution providers: what runs a model, chosen from what the user asked for and what the library offers. What was
//! asked for by name is had or refused, never replaced.

use std::fmt;
use std::path::{Path, PathBuf};

use super::cpu::cpu_features;
use super::environment::Runtime;
use super::wheels::Flavor;
use crate::device::{COMPUTED, Device, Dtype};
use crate::{Error, Result};
use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider as _, ExecutionProvider as _, ExecutionProviderDispatch,
};

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels for the processor.
    Cpu,
    /// OpenVINO on the processor.
    OpenVino(Dtype),
    /// The GPU with this number.
    Cuda(usize),
    /// TensorRT on the GPU with this number.
    TensorRt(usize, Dtype),
}

impl Provider {
    /// ONNX Runtime's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => ep::CPU::NAME,
            Self::OpenVino(_) => ep::OpenVINO::NAME,
            Self::Cuda(_) => ep::CUDA::NAME,
            Self::TensorRt(..) => ep::TensorRT::NAME,
        }
    }

    /// What runs, before the processor, the operators that it does not have.
    pub(super) fn beside(self) -> Option<Self> {
        match self {
            Self::TensorRt(number, _) => Some(Self::Cuda(number)),
            Self::Cpu | Self::OpenVino(_) | Self::Cuda(_) => None,
        }
    }

    /// What to add to ONNX Runtime's `reason` for not running here.
    pub(super) fn hint(self, reason: &str) -> &'static str {
        match self {
            Self::Cuda(_) if reason.contains("Failed to load library") => {
                "; CUDA 13 and cuDNN 9 must be where the loader finds them, for instance through LD_LIBRARY_PATH"
            }
            Self::TensorRt(..) if reason.contains("Failed to load library") => {
                "; TensorRT 10 and CUDA 13 must be where the loader finds them, for instance through LD_LIBRARY_PATH"
            }
            _ => "",
        }
    }

    /// What is to be said about running here. OpenVINO quietly computes in f32 when the processor cannot do better.
    pub(super) fn caution(self) -> Option<String> {
        let Self::OpenVino(precision) = self else {
            return None;
        };
        let native = match precision {
            Dtype::F32 | Dtype::Int8 => return None,
            Dtype::Bf16 => ["avx512_bf16", "amx_bf16"],
            Dtype::F16 => ["avx512_fp16", "amx_fp16"],
        };
        let has = cpu_features();
        let lacking = !native
            .iter()
            .any(|feature| has.iter().any(|found| found == feature));
        lacking
            .then(|| format!("this processor has no {precision} instructions, OpenVINO may compute in f32"))
    }

    /// What ONNX Runtime is told, for `threads` threads; failing to get it is an error.
    pub(super) fn dispatch(self, threads: usize) -> ExecutionProviderDispatch {
        let provider = match self {
            Self::Cpu => ep::CPU::default().with_arena_allocator(true).build(),
            Self::OpenVino(precision) => {
                let settings = format!(
                    "{{\"CPU\":{{\"INFERENCE_PRECISION_HINT\":\"{precision}\",\"INFERENCE_NUM_THREADS\":{threads}}}}}"
                );
                ep::OpenVINO::default()
                    .with_device_type("CPU")
                    .with_arbitrary_config("load_config", settings)
                    .build()
            }
            // TF32 would change the features: single precision is meant where it is asked for.
            Self::Cuda(number) => {
                let number = i32::try_from(number).unwrap_or(i32::MAX);
                ep::CUDA::default()
                    .with_device_id(number)
                    .with_tf32(false)
                    .build()
            }
            Self::TensorRt(number, precision) => ep::TensorRT::default()
                .with_device_id(i32::try_from(number).unwrap_or(i32::MAX))
                .with_fp16(precision == Dtype::F16)
                .with_bf16(precision == Dtype::Bf16)
                .build(),
        };
        provider.error_on_failure()
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::OpenVino(precision) => write!(f, "cpu, OpenVINO at {precision}"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::TensorRt(number, precision) => write!(f, "cuda:{number}, TensorRT at {precision}"),
        }
    }
}

/// The names of the execution providers in the library that macula can use, the processor's own last. That one is
/// listed does not mean that the machine has what it needs.
pub fn available(_loaded: &Runtime) -> Vec<&'static str> {
    let offered = [
        (ep::TensorRT::NAME, ep::TensorRT::is_available()),
        (ep::CUDA::NAME, ep::CUDA::is_available()),
        (ep::OpenVINO::NAME, ep::OpenVINO::is_available()),
        (ep::CPU::NAME, ep::CPU::is_available()),
    ];
    offered
        .into_iter()
        .filter(|(_, there)| matches!(there, Ok(true)))
        .map(|(name, _)| name)
        .collect()
}

/// The providers that `device` may mean for products in `precision`: more than one only for `auto`, those expected to be faster
/// first.
///
/// # Errors
/// When the library does not offer what was asked for by name, or nothing computes in that precision.
pub fn choose(runtime: &Runtime, device: Device, precision: Dtype) -> Result<Vec<Provider>> {
    precision.check("compute", &COMPUTED)?;
    choose_from(
        &available(runtime),
        &runtime.library().path,
        device,
        precision,
        cuda_driver().is_some(),
    )
}

fn choose_from(
    available: &[&str],
    library: &Path,
    device: Device,
    precision: Dtype,
    has_driver: bool,
) -> Result<Vec<Provider>> {
    let has = |provider: Provider| available.contains(&provider.name());
    let had = |flavor: Flavor, provider: Provider| {
        if has(provider) {
            return Ok(vec![provider]);
        }
        let found = format!(
            "expected a library with the {}, found {}",
            provider.name(),
            library.display()
        );
        let mend = format!("run `macula runtime install --flavor {flavor}` or name one with --ort-lib FILE");
        Err(Error::setting(
            format!("device {device}"),
            format!("{found} with {}; {mend}", available.join(", ")),
        ))
    };
    let openvino = Provider::OpenVino(precision);
    match (device, precision) {
        (Device::OpenVino, _) => had(Flavor::Openvino, openvino),
        (Device::TensorRt(number), _) => had(Flavor::Cuda, Provider::TensorRt(number, precision)),
        // What else there is computes in single precision only.
        (Device::Auto, Dtype::Bf16 | Dtype::F16) if has(openvino) => Ok(vec![openvino]),
        (_, Dtype::Bf16 | Dtype::F16 | Dtype::Int8) => Err(Error::setting(
            format!("compute {precision}"),
            format!(
                "expected --device openvino, tensorrt or a checkpoint with it, found an ONNX file with --device {device}, which computes in \
                 f32"
            ),
        )),
        (Device::Cuda(number), Dtype::F32) => had(Flavor::Cuda, Provider::Cuda(number)),
        (Device::Cpu, Dtype::F32) => Ok(vec![Provider::Cpu]),
        (Device::Auto, Dtype::F32) => {
            let faster = [Provider::Cuda(0), openvino].into_iter();
            let usable = faster.filter(|&provider| has(provider) && (has_driver || provider == openvino));
            Ok(usable.chain([Provider::Cpu]).collect())
        }
    }
}

/// The CUDA driver's library, where the machine has one.
pub fn cuda_driver() -> Option<PathBuf> {
    let (name, fixed): (&str, &[&str]) = match std::env::consts::OS {
        "windows" => ("nvcuda.dll", &["C:\\Windows\\System32"]),
        _ => {
            let folders = &[
                "/usr/lib/x86_64-linux-gnu",
                "/usr/lib/aarch64-linux-gnu",
                "/usr/lib64",
                "/usr/lib",
                "/usr/lib/wsl/lib",
            ];
            ("libcuda.so.1", folders)
        }
    };
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::env::split_paths(&listed).filter(|folder| folder.is_absolute());
    folders
        .chain(fixed.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU_ONLY: &[&str] = &["CPUExecutionProvider"];
    const WITH_CUDA: &[&str] = &["CUDAExecutionProvider", "CPUExecutionProvider"];
    const WITH_ALL: &[&str] = &[
        "CUDAExecutionProvider",
        "OpenVINOExecutionProvider",
        "CPUExecutionProvider",
    ];

    fn chosen(available: &[&str], device: &str, precision: Dtype, driver: bool) -> Result<Vec<Provider>> {
        choose_from(
            available,
            Path::new("/lib/libonnxruntime.so"),
            device.parse()?,
            precision,
            driver,
        )
    }

    #[test]
    fn what_was_requested_by_name_is_never_replaced() {
        let error = chosen(CPU_ONLY, "cuda:1", Dtype::F32, true).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            "device cuda:1: expected a library with the CUDAExecutionProvider, found /lib/libonnxruntime.so with \
             CPUExecutionProvider; run `macula runtime install --flavor cuda` or name one with --ort-lib FILE"
        );
        let error = chosen(WITH_CUDA, "tensorrt", Dtype::F16, true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("with the TensorrtExecutionProvider"), "{error}");
        for precision in [Dtype::F32, Dtype::Bf16] {
            let error = chosen(CPU_ONLY, "openvino", precision, true)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("`macula runtime install --flavor openvino`"),
                "{error}"
            );
        }
        // Without a driver the attempt is made and fails with ONNX Runtime's own reason.
        assert_eq!(
            chosen(WITH_CUDA, "cuda:1", Dtype::F32, false).unwrap(),
            [Provider::Cuda(1)]
        );
    }

    #[test]
    fn only_openvino_computes_an_onnx_file_in_less_than_f32() {
        let openvino = [Provider::OpenVino(Dtype::Bf16)];
        for device in ["openvino", "auto"] {
            assert_eq!(chosen(WITH_ALL, device, Dtype::Bf16, true).unwrap(), openvino);
        }
        for (available, device) in [(WITH_ALL, "cpu"), (WITH_ALL, "cuda"), (WITH_CUDA, "auto")] {
            let error = chosen(available, device, Dtype::Bf16, true)
                .unwrap_err()
                .to_string();
            let expected = format!(
                "compute bf16: expected --device openvino, tensorrt or a checkpoint with it, found an ONNX file with --device {device}"
            );
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn auto_considers_what_library_and_machine_have() {
        let openvino = Provider::OpenVino(Dtype::F32);
        let auto = |available, driver| chosen(available, "auto", Dtype::F32, driver).unwrap();
        assert_eq!(auto(WITH_CUDA, true), [Provider::Cuda(0), Provider::Cpu]);
        assert_eq!(auto(WITH_ALL, true), [Provider::Cuda(0), openvino, Provider::Cpu]);
        assert_eq!(auto(WITH_ALL, false), [openvino, Provider::Cpu]);
        assert_eq!(auto(WITH_CUDA, false), [Provider::Cpu]);
        assert_eq!(auto(CPU_ONLY, true), [Provider::Cpu]);
        assert_eq!(
            chosen(WITH_ALL, "cpu", Dtype::F32, true).unwrap(),
            [Provider::Cpu]
        );
    }
}
