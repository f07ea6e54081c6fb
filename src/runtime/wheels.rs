//! The pinned wheels: which ONNX Runtime is fetched for which machine, and the SHA-256 its file must have.
//!
//! The checksums are those of the Python package index, as `pip install --dry-run --report` gives them. To move to
//! another version, change the lines of the table and nothing else; the oldest library the bindings accept is
//! [`OLDEST_SUPPORTED`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::{Error, Result};

/// The oldest `(major, minor)` of ONNX Runtime whose API the bindings can use (`api-24`).
pub const OLDEST_SUPPORTED: (u32, u32) = (1, 24);

/// Which build of ONNX Runtime is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Flavor {
    /// The plain build: the CPU execution provider only.
    #[default]
    Cpu,
    /// With the OpenVINO execution provider, for Intel processors.
    Openvino,
    /// With the CUDA execution provider. CUDA 13 and cuDNN 9 must be on the machine.
    Cuda,
}

impl Flavor {
    /// The build that `device` needs, if not any.
    pub fn of_device(device: Device) -> Option<Self> {
        match device {
            Device::Auto | Device::Cpu => None,
            Device::OpenVino => Some(Self::Openvino),
            Device::Cuda(_) | Device::TensorRt(_) => Some(Self::Cuda),
        }
    }

    /// All flavors, the plain one first.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Openvino, Self::Cuda];

    /// The part of a provider library's file name that tells this flavor; none for the plain one.
    pub fn provider_library(self) -> Option<&'static str> {
        match self {
            Self::Cpu => None,
            Self::Openvino => Some("onnxruntime_providers_openvino"),
            Self::Cuda => Some("onnxruntime_providers_cuda"),
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Openvino => "openvino",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for Flavor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|flavor| flavor.to_string() == text)
            .ok_or_else(|| {
                Error::setting(
                    "flavor",
                    format!("expected cpu, openvino or cuda, found `{text}`"),
                )
            })
    }
}

/// One pinned wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wheel {
    /// The build it holds.
    pub flavor: Flavor,
    /// The operating system, as [`std::env::consts::OS`] calls it.
    pub os: &'static str,
    /// The processor, as [`std::env::consts::ARCH`] calls it.
    pub arch: &'static str,
    /// The Python package.
    pub package: &'static str,
    /// Its version, which is also that of the library.
    pub version: &'static str,
    /// pip's name for the platform (`--platform`).
    pub pip_platform: &'static str,
    /// The wheel's file name.
    pub file_name: &'static str,
    /// SHA-256 of the wheel, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Size of the wheel in MB (10^6 bytes), to say what a download costs.
    pub megabytes: u32,
    /// Path of the library inside the wheel.
    pub library: &'static str,
}

impl Wheel {
    /// The library's file name, in the wheel and in the cache.
    pub fn library_name(&self) -> &'static str {
        self.library.rsplit('/').next().unwrap_or(self.library)
    }

    /// What pip is asked for: `package==version`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

const LINUX_1_32: &str = "onnxruntime/capi/libonnxruntime.so.1.32.0";
const WINDOWS_LIBRARY: &str = "onnxruntime/capi/onnxruntime.dll";

/// All pinned wheels. OpenVINO's for Windows is not among them: it brings the provider without OpenVINO itself.
pub const WHEELS: &[Wheel] = &[
    Wheel {
        flavor: Flavor::Cpu,
        os: "linux",
        arch: "x86_64",
        package: "onnxruntime",
        version: "1.32.0",
        pip_platform: "manylinux_2_28_x86_64",
        file_name: "onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
        megabytes: 28,
        library: LINUX_1_32,
    },
    Wheel {
        flavor: Flavor::Cpu,
        os: "linux",
        arch: "aarch64",
        package: "onnxruntime",
        version: "1.32.0",
        pip_platform: "manylinux_2_28_aarch64",
        file_name: "onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
        megabytes: 23,
        library: LINUX_1_32,
    },
    Wheel {
        flavor: Flavor::Cpu,
        os: "macos",
        arch: "aarch64",
        package: "onnxruntime",
        version: "1.32.0",
        pip_platform: "macosx_14_0_arm64",
        file_name: "onnxruntime-1.32.0-cp312-cp312-macosx_14_0_arm64.whl",
        sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
        megabytes: 23,
        library: "onnxruntime/capi/libonnxruntime.1.32.0.dylib",
    },
    Wheel {
        flavor: Flavor::Cpu,
        os: "windows",
        arch: "x86_64",
        package: "onnxruntime",
        version: "1.32.0",
        pip_platform: "win_amd64",
        file_name: "onnxruntime-1.32.0-cp312-cp312-win_amd64.whl",
        sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
        megabytes: 17,
        library: WINDOWS_LIBRARY,
    },
    Wheel {
        flavor: Flavor::Openvino,
        os: "linux",
        arch: "x86_64",
        package: "onnxruntime-openvino",
        version: "1.24.1",
        pip_platform: "manylinux_2_28_x86_64",
        file_name: "onnxruntime_openvino-1.24.1-cp312-cp312-manylinux_2_28_x86_64.whl",
        sha256: "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",
        megabytes: 84,
        library: "onnxruntime/capi/libonnxruntime.so.1.24.1",
    },
    Wheel {
        flavor: Flavor::Cuda,
        os: "linux",
        arch: "x86_64",
        package: "onnxruntime-gpu",
        version: "1.31.1",
        pip_platform: "manylinux_2_28_x86_64",
        file_name: "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl",
        sha256: "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
        megabytes: 256,
        library: "onnxruntime/capi/libonnxruntime.so.1.31.1",
    },
    Wheel {
        flavor: Flavor::Cuda,
        os: "windows",
        arch: "x86_64",
        package: "onnxruntime-gpu",
        version: "1.31.1",
        pip_platform: "win_amd64",
        file_name: "onnxruntime_gpu-1.31.1-cp312-cp312-win_amd64.whl",
        sha256: "2bb1e9373baba88f6415257f5b6a589d23e23c16004f7d89adf4344eada5749e",
        megabytes: 168,
        library: WINDOWS_LIBRARY,
    },
];

/// The pinned wheel of `flavor` for this machine.
///
/// # Errors
/// See [`pinned_for`].
pub fn pinned(flavor: Flavor) -> Result<&'static Wheel> {
    pinned_for(flavor, std::env::consts::OS, std::env::consts::ARCH)
}

/// The pinned wheel of `flavor` for a machine, named as [`std::env::consts`] does.
///
/// # Errors
/// An input error that names the machines the flavor exists for when this one is not among them.
pub fn pinned_for(flavor: Flavor, os: &str, arch: &str) -> Result<&'static Wheel> {
    let matching = |wheel: &&Wheel| wheel.flavor == flavor && wheel.os == os && wheel.arch == arch;
    WHEELS.iter().find(matching).ok_or_else(|| {
        let offered: Vec<String> = WHEELS
            .iter()
            .filter(|wheel| wheel.flavor == flavor)
            .map(|wheel| format!("{} {}", wheel.os, wheel.arch))
            .collect();
        Error::input(
            format!("ONNX Runtime, flavor {flavor}"),
            format!(
                "no pinned wheel for {os} {arch} (there is one for {}); name a library of your own with --ort-lib FILE",
                offered.join(", ")
            ),
        )
    })
}

/// The pinned wheel with this checksum, if any: tells which one a user brought by mistake.
pub fn with_checksum(sha256: &str) -> Option<&'static Wheel> {
    WHEELS.iter().find(|wheel| wheel.sha256 == sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_consistent() {
        for wheel in WHEELS {
            let package = wheel.package.replace('-', "_");
            assert!(
                wheel
                    .file_name
                    .starts_with(&format!("{package}-{}-cp312-cp312-", wheel.version)),
                "{wheel:?}"
            );
            assert!(
                wheel.file_name.ends_with(&format!("{}.whl", wheel.pip_platform)),
                "{wheel:?}"
            );
            assert_eq!(wheel.sha256.len(), 64);
            assert!(
                wheel
                    .sha256
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            );
            assert!(wheel.library.starts_with("onnxruntime/capi/"));
            if wheel.os != "windows" {
                assert!(wheel.library_name().contains(wheel.version), "{wheel:?}");
            }
            let minor: u32 = wheel.version.split('.').nth(1).unwrap().parse().unwrap();
            assert!(
                minor >= OLDEST_SUPPORTED.1,
                "{wheel:?} is older than the bindings accept"
            );
            assert_eq!(
                pinned_for(wheel.flavor, wheel.os, wheel.arch).unwrap(),
                wheel,
                "two lines for one machine"
            );
            assert_eq!(
                with_checksum(wheel.sha256),
                Some(wheel),
                "two lines with one checksum"
            );
        }
    }

    #[test]
    fn a_machine_without_a_wheel_is_told_where_there_is_one() {
        let error = pinned_for(Flavor::Cuda, "macos", "aarch64").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            "ONNX Runtime, flavor cuda: no pinned wheel for macos aarch64 (there is one for linux x86_64, windows \
             x86_64); name a library of your own with --ort-lib FILE"
        );
    }

    #[test]
    fn flavors_are_read_as_they_are_written() {
        for flavor in Flavor::ALL {
            assert_eq!(flavor.to_string().parse::<Flavor>().unwrap(), flavor);
        }
        let error = "gpu".parse::<Flavor>().unwrap_err().to_string();
        assert_eq!(error, "flavor: expected cpu, openvino or cuda, found `gpu`");
    }
}
