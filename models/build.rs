//! Translates the CUDA kernels to PTX where the `cuda` feature is on; nothing to do otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const KERNELS: &str = "src/ops/cuda";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    for variable in ["NVCC", "PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(reason) = translate_all() {
        println!("cargo::error={reason}");
    }
}

fn translate_all() -> Result<(), String> {
    let nvcc = nvcc()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("expected OUT_DIR, found none")?);
    let files = fs::read_dir(KERNELS).map_err(|error| format!("{KERNELS}: {error}"))?;
    for file in files {
        let path = file.map_err(|error| format!("{KERNELS}: {error}"))?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            translate(&nvcc, &path, &out)?;
        }
    }
    Ok(())
}

/// PTX for the oldest GPU asked for: the driver translates it for newer ones.
fn translate(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_default();
    let digits: String = capability.chars().filter(char::is_ascii_digit).collect();
    let digits = if digits.is_empty() { "80" } else { &digits };
    let name = source.with_extension("ptx");
    let target = out.join(name.file_name().unwrap_or_default());
    let run = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17"])
        .arg(format!("-arch=compute_{digits}"))
        .arg("-o")
        .args([&target, source])
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        let first = said
            .lines()
            .find(|line| line.contains("error"))
            .unwrap_or("no message");
        return Err(format!("nvcc failed on {}: {first}", source.display()));
    }
    Ok(())
}

/// The compiler of the CUDA toolkit: `NVCC`, on the path, or in `CUDA_HOME` or `CUDA_PATH`. Only absolute paths count: one that
/// is relative, or an empty element of `PATH`, would mean the folder that cargo happens to build in.
fn nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC").map(PathBuf::from) {
        return match nvcc.is_absolute() {
            true => Ok(nvcc),
            false => Err(format!(
                "NVCC: expected an absolute path, found `{}`",
                nvcc.display()
            )),
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let bins = roots.map(|root| Path::new(&root).join("bin"));
    let standard = PathBuf::from("/usr/local/cuda/bin");
    env::split_paths(&path)
        .chain(bins)
        .chain([standard])
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .ok_or_else(|| {
            "expected nvcc of a CUDA toolkit for --features cuda (NVCC, PATH or CUDA_HOME), found none".into()
        })
}
