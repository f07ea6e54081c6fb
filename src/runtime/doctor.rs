//! `macula doctor`: what this machine has for running and training networks, what is missing, and the command that
//! mends it. Nothing is fetched.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::cache::cache_dir;
use super::cpu::cpu_features;
use super::cuda_libraries::{CudaLibrary, cuda_libraries, lack};
use super::environment::{Runtime, RuntimeOptions};
use super::library::{Library, Origin};
use super::locate::{Candidate, Places, loader_looks_here};
use super::manifest::Depth;
use super::provision::installed;
use super::wheels::{Flavor, WHEELS, pinned};
use super::{gpu, pip, providers};
use crate::Error;

/// Something that is missing or damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// The command or step that mends it.
    pub mend: String,
}

/// What `macula doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// Version of this program.
    pub macula: &'static str,
    /// Operating system and processor, as [`std::env::consts`] names them.
    pub machine: String,
    /// Cores that this process may use.
    pub threads: usize,
    /// The wide instructions of the processor that matter for speed, as [`cpu_features`] names them.
    pub cpu_features: Vec<String>,
    /// The library that commands use.
    pub library: Option<Library>,
    /// What that library says about its build.
    pub library_build: Option<String>,
    /// The execution providers in it that macula can use.
    pub execution_providers: Vec<&'static str>,
    /// The libraries that were found, in the order in which they are tried.
    pub found: Vec<Library>,
    /// What was found and cannot be used, with the reason.
    pub passed_over: Vec<String>,
    /// The cache folder.
    pub cache: Option<PathBuf>,
    /// The builds of ONNX Runtime in the cache.
    pub installed: Vec<Flavor>,
    /// The pip that would fetch a library.
    pub pip: Option<String>,
    /// The CUDA driver's library.
    pub cuda_driver: Option<PathBuf>,
    /// The libraries that a program built to train on CUDA loads when it starts; none where there is no driver.
    pub cuda_libraries: Vec<CudaLibrary>,
    /// Whether this program was built to train on CUDA.
    pub cuda_trainer: bool,
    /// Name, driver and free memory of the GPU that it trains on.
    pub gpu: Option<String>,
    /// What is missing.
    pub missing: Vec<Missing>,
}

impl DoctorReport {
    /// Looks around. `options` are those a command would open the runtime with; `cuda_trainer` says how the program
    /// was built. Loads the library, fetches nothing.
    pub fn gather(options: &RuntimeOptions, cuda_trainer: bool) -> Self {
        let places = Places::of_this_process(options.ort_lib.clone());
        let candidates: Vec<Candidate> = Origin::ORDER
            .into_iter()
            .flat_map(|origin| places.candidates(origin, options.flavor))
            .collect();
        let opened = Runtime::open(&RuntimeOptions {
            allow_install: false,
            ..options.clone()
        });
        let runtime = opened.as_ref().ok();
        let pip = pip::find();
        let cuda_driver = providers::cuda_driver();
        let mut missing = Vec::new();
        if let Err(error) = &opened {
            let reason = match error {
                Error::Failed { reason, .. } => reason.split("; run `").next().unwrap_or(reason).to_owned(),
                other => other.to_string(),
            };
            missing.push(no_library(
                &reason,
                options.flavor.unwrap_or_default(),
                pip.is_some(),
            ));
        }
        missing.extend(unsafe_loader());
        missing.extend(no_cache());
        let (installed, damaged) = in_cache();
        missing.extend(damaged);
        let execution_providers = runtime.map_or(Vec::new(), |runtime| providers::available(runtime));
        missing.extend(no_gpu(
            &execution_providers,
            cuda_driver.is_some(),
            runtime.is_some(),
            cuda_trainer,
        ));
        let cuda_libraries = match cuda_driver.is_some() || cuda_trainer {
            true => cuda_libraries(),
            false => Vec::new(),
        };
        missing.extend(lack(&cuda_libraries).map(|(what, mend)| Missing { what, mend }));
        Self {
            macula: env!("CARGO_PKG_VERSION"),
            machine: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_features: cpu_features(),
            library: runtime.map(|runtime| runtime.library().clone()),
            library_build: runtime.map(|runtime| runtime.build_info()),
            execution_providers,
            found: candidates
                .iter()
                .filter_map(|candidate| candidate.clone().ok())
                .collect(),
            passed_over: candidates
                .iter()
                .filter_map(|c| c.as_ref().err().map(ToString::to_string))
                .collect(),
            cache: cache_dir().ok(),
            installed,
            pip: pip.map(|pip| format!("{} ({pip})", pip.version)),
            cuda_driver,
            cuda_libraries,
            cuda_trainer,
            gpu: gpu::describe(),
            missing,
        }
    }

    /// Whether models can be run.
    pub fn ready(&self) -> bool {
        self.library.is_some()
    }
}

fn no_library(reason: &str, flavor: Flavor, has_pip: bool) -> Missing {
    let mend = match pinned(flavor) {
        Ok(_) if has_pip => format!("macula runtime install --flavor {flavor}"),
        Ok(wheel) => pip::by_hand(wheel),
        Err(_) => "name a library of your own with --ort-lib FILE".to_owned(),
    };
    Missing {
        what: format!("a library of ONNX Runtime ({reason})"),
        mend,
    }
}

/// A loader's path that leads into the working directory: there, a library of any program could be a stranger's.
fn unsafe_loader() -> Option<Missing> {
    loader_looks_here().map(|variable| Missing {
        what: format!("a safe {variable} (an empty or relative element makes every program load libraries from its working directory)"),
        mend: format!("leave absolute folders in {variable}, without a colon at either end"),
    })
}

fn no_cache() -> Option<Missing> {
    cache_dir().err().map(|error| Missing {
        what: format!("a place for what is fetched ({error})"),
        mend: "set MACULA_CACHE to the absolute path of a folder".to_owned(),
    })
}

/// The whole installations in the cache, and the damaged ones with what mends them.
fn in_cache() -> (Vec<Flavor>, Vec<Missing>) {
    let Ok(cache) = cache_dir() else {
        return (Vec::new(), Vec::new());
    };
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for flavor in Flavor::ALL {
        let Ok(wheel) = pinned(flavor) else { continue };
        match installed(&cache, wheel, Depth::Everything) {
            Ok(Some(_)) => whole.push(flavor),
            Ok(None) => {}
            Err(damage) => damaged.push(Missing {
                what: format!("a whole installation of flavor {flavor} ({damage})"),
                mend: format!("macula runtime install --flavor {flavor}"),
            }),
        }
    }
    (whole, damaged)
}

/// What keeps a machine that has a CUDA driver from using it. A machine without one misses nothing.
fn no_gpu(providers: &[&str], has_driver: bool, has_library: bool, cuda_trainer: bool) -> Vec<Missing> {
    let mut missing = Vec::new();
    let pinned_here = |wheel: &super::wheels::Wheel| {
        wheel.os == std::env::consts::OS && wheel.arch == std::env::consts::ARCH
    };
    let on_offer = WHEELS
        .iter()
        .any(|wheel| wheel.flavor == Flavor::Cuda && pinned_here(wheel));
    if has_driver && has_library && on_offer && !providers.contains(&"CUDAExecutionProvider") {
        missing.push(Missing {
            what: "an ONNX Runtime library for the GPU (extract runs on the processor)".to_owned(),
            mend: "macula runtime install --flavor cuda, then --device cuda; CUDA 13 and cuDNN 9 are needed"
                .to_owned(),
        });
    }
    if has_driver && !cuda_trainer {
        missing.push(Missing {
            what: "training on the GPU (this program was built without it)".to_owned(),
            mend: "build it with `cargo build --release --features cuda`".to_owned(),
        });
    }
    missing
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map_or("none".to_owned(), |path| path.display().to_string())
        };
        let list = |items: &[String]| {
            if items.is_empty() {
                "none".to_owned()
            } else {
                items.join(", ")
            }
        };
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<20} {value}");
        line("macula", self.macula)?;
        line("machine", &format!("{}, {} threads", self.machine, self.threads))?;
        line("processor features", &list(&self.cpu_features))?;
        match &self.library {
            Some(library) => {
                line("ONNX Runtime", &describe(library))?;
                line("  library", &library.path.display().to_string())?;
                line("  build", self.library_build.as_deref().unwrap_or("unknown"))?;
                line("  providers", &self.execution_providers.join(", "))?;
            }
            None => line("ONNX Runtime", "none")?,
        }
        for other in self
            .found
            .iter()
            .filter(|&found| Some(found) != self.library.as_ref())
        {
            line(
                "  also found",
                &format!("{}, {}", other.path.display(), describe(other)),
            )?;
        }
        for rejected in &self.passed_over {
            line("  passed over", rejected)?;
        }
        line("cache", &path(&self.cache))?;
        line(
            "  installed",
            &list(&self.installed.iter().map(ToString::to_string).collect::<Vec<_>>()),
        )?;
        line("pip", self.pip.as_deref().unwrap_or("none"))?;
        line("CUDA driver", &path(&self.cuda_driver))?;
        line(
            "CUDA trainer",
            if self.cuda_trainer {
                "built in"
            } else {
                "not built in"
            },
        )?;
        for library in self
            .cuda_libraries
            .iter()
            .filter(|library| library.path.is_some())
        {
            line("  loads", &path(&library.path))?;
        }
        if let Some(gpu) = &self.gpu {
            line("  trains on", gpu)?;
        }
        for missing in &self.missing {
            writeln!(f, "\nmissing: {}\n  mend:  {}", missing.what, missing.mend)?;
        }
        Ok(())
    }
}

fn describe(library: &Library) -> String {
    let version = library
        .version
        .map_or("version unknown".to_owned(), |version| version.to_string());
    format!("{version}, from {}", library.origin)
}

#[cfg(test)]
mod tests {
    use super::super::environment::runtime_for_tests;
    use super::*;

    #[test]
    fn the_report_names_the_library_in_use() {
        let runtime = runtime_for_tests();
        let report = DoctorReport::gather(&RuntimeOptions::default(), false);
        assert!(report.ready());
        assert_eq!(report.library.as_ref(), Some(runtime.library()));
        assert_eq!(report.execution_providers.last(), Some(&"CPUExecutionProvider"));
        assert!(report.threads >= 1);
        let text = report.to_string();
        assert!(
            text.contains(&runtime.library().path.display().to_string()),
            "{text}"
        );
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["library"]["path"],
            runtime.library().path.display().to_string()
        );
        assert_eq!(json["cuda_trainer"], false);
        println!("{text}");
    }

    #[test]
    fn what_is_missing_comes_with_what_mends_it() {
        let missing = no_library("none found", Flavor::Cpu, true);
        assert_eq!(missing.what, "a library of ONNX Runtime (none found)");
        assert_eq!(missing.mend, "macula runtime install --flavor cpu");
        assert!(
            no_library("none found", Flavor::Cpu, false)
                .mend
                .contains("--wheel")
        );

        assert_eq!(no_gpu(&["CPUExecutionProvider"], false, true, false), []);
        let trainer = no_gpu(&["CUDAExecutionProvider"], true, true, false);
        assert_eq!(trainer.len(), 1);
        assert!(trainer[0].mend.contains("--features cuda"));
        assert_eq!(no_gpu(&["CUDAExecutionProvider"], true, true, true), []);
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let library = no_gpu(&["CPUExecutionProvider"], true, true, true);
            assert!(
                library[0]
                    .mend
                    .starts_with("macula runtime install --flavor cuda")
            );
        }
    }
}
