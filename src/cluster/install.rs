//! The pinned build of MPI in macula's cache, for machines without one: MPICH's wheel from the Python package index, which needs no
//! rights and brings its own `mpiexec`. Checked by its SHA-256 and put in place whole, as ONNX Runtime is.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::runtime::cache::cache_dir;
use crate::runtime::pip::{self, Asked};
use crate::{Error, Result, files};

/// The pinned wheel, for one kind of machine.
struct Build {
    os: &'static str,
    arch: &'static str,
    package: &'static str,
    version: &'static str,
    platform: &'static str,
    file_name: &'static str,
    sha256: &'static str,
}

/// All of them. The checksum is that of the Python package index.
const BUILDS: [Build; 1] = [Build {
    os: "linux",
    arch: "x86_64",
    package: "mpich",
    version: "5.0.2",
    platform: "manylinux_2_28_x86_64",
    file_name: "mpich-5.0.2-py3-none-manylinux_2_28_x86_64.whl",
    sha256: "8fed465ebff269ea2ebac179a25de02671ddf8df476e0f115be089015015cfd4",
}];

/// The library in an installation.
const LIBRARY: &str = "lib/libmpi_abi.so.1";
/// The launcher in an installation.
const LAUNCHER: &str = "bin/mpiexec";

fn build() -> Option<&'static Build> {
    let fits = |build: &&Build| build.os == std::env::consts::OS && build.arch == std::env::consts::ARCH;
    BUILDS.iter().find(fits)
}

impl Build {
    fn asked(&self) -> Asked {
        Asked {
            requirement: format!("{}=={}", self.package, self.version),
            platform: self.platform,
            file_name: self.file_name,
            flavor: "mpi".to_owned(),
            otherwise: "use the MPI of your cluster, which needs no installation",
        }
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache
            .join("mpi")
            .join(format!("{}-{}", self.package, self.version))
    }
}

/// The file `name` of the pinned build, where that is installed.
fn installed(name: &str) -> Option<PathBuf> {
    let folder = build()?.folder(&cache_dir().ok()?);
    Some(folder.join(name)).filter(|path| path.is_file())
}

/// The folder of the pinned build's library, where it is installed.
pub(super) fn library_folder() -> Option<PathBuf> {
    installed(LIBRARY)?.parent().map(Path::to_path_buf)
}

/// The `mpiexec` of the pinned build, where it is installed.
pub fn mpiexec() -> Option<PathBuf> {
    installed(LAUNCHER)
}

/// Installs the pinned build into the cache, from the file `wheel` where one is given, else fetched with pip; what is installed already
/// stays. Gives the path of its `mpiexec`.
///
/// # Errors
/// A machine that there is no build for, a wheel that cannot be fetched (the error says what to do by hand) or is another, a cache that
/// cannot be written.
pub fn install(wheel: Option<&Path>) -> Result<PathBuf> {
    let Some(build) = build() else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let reason = format!("no pinned build for {os} {arch}; use the MPI of your system or cluster");
        return Err(Error::input("MPI", reason));
    };
    let cache = cache_dir()?;
    let target = build.folder(&cache);
    if let Some(wheel) = wheel {
        // Also where the installation is whole already: a wrong file must not pass for installed.
        check(wheel, build)?;
    }
    if let Some(mpiexec) = mpiexec() {
        return Ok(mpiexec);
    }
    let place = cache.join("mpi");
    std::fs::create_dir_all(&place).map_err(|e| Error::io(&place, e))?;
    let workshop = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(&place)
        .map_err(|e| Error::io(&place, e))?;
    let file = match wheel {
        Some(file) => file.to_path_buf(),
        None => {
            tracing::info!("fetching {} with pip", build.asked().requirement);
            pip::download_asked(&build.asked(), workshop.path(), &[])?
        }
    };
    let copy = checked_copy(&file, build, workshop.path())?;
    let unpacked = workshop.path().join("unpacked");
    unpack(copy, &file, &unpacked)?;
    match std::fs::rename(&unpacked, &target) {
        Ok(()) => {}
        // Another process was faster.
        Err(_) if mpiexec().is_some() => {}
        Err(error) => return Err(Error::io(&target, error)),
    }
    mpiexec().ok_or_else(|| {
        Error::failed(
            target.display().to_string(),
            format!("expected {LAUNCHER}, found none"),
        )
    })
}

fn check(file: &Path, build: &Build) -> Result<()> {
    match files::sha256(file)? {
        found if found == build.sha256 => Ok(()),
        found => Err(other_wheel(file, build, &found)),
    }
}

fn other_wheel(file: &Path, build: &Build, found: &str) -> Error {
    let reason = format!(
        "expected {} with SHA-256 {}, found SHA-256 {found}; nothing was installed",
        build.file_name, build.sha256
    );
    Error::input(file.display().to_string(), reason)
}

/// A nameless copy in `folder` of what `file` held when its checksum was taken.
fn checked_copy(file: &Path, build: &Build, folder: &Path) -> Result<File> {
    let (copy, found) = files::nameless_copy(file, folder)?;
    match found == build.sha256 {
        true => Ok(copy),
        false => Err(other_wheel(file, build, &found)),
    }
}

/// Where a member of the wheel belongs in an installation: programs, libraries and licences.
fn place_of(name: &str) -> Option<PathBuf> {
    let (_, inside) = name
        .split_once(".data/data/")
        .or_else(|| name.split_once(".dist-info/"))?;
    let wanted = ["bin/", "lib/", "licenses/"]
        .iter()
        .any(|folder| inside.starts_with(folder));
    let safe = inside.split('/').all(|part| !part.is_empty() && part != "..");
    (wanted && safe).then(|| PathBuf::from(inside))
}

fn unpack(reader: File, file: &Path, target: &Path) -> Result<()> {
    let bad = |reason: String| Error::input(file.display().to_string(), reason);
    let mut archive = zip::ZipArchive::new(reader).map_err(|e| bad(format!("not a wheel: {e}")))?;
    for index in 0..archive.len() {
        let mut member = archive
            .by_index(index)
            .map_err(|e| bad(format!("member {index}: {e}")))?;
        let name = member
            .name()
            .map_err(|e| bad(format!("member {index}: {e}")))?
            .into_owned();
        let Some(inside) = place_of(&name) else { continue };
        let path = target.join(&inside);
        let folder = path.parent().unwrap_or(target);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut out = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        std::io::copy(&mut member, &mut out)
            .map_err(|e| bad(format!("{name} could not be unpacked: {e}")))?;
        if inside.starts_with("bin") {
            make_executable(&path)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, permissions).map_err(|e| Error::io(path, e))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_libraries_and_licences_are_unpacked() {
        for (name, place) in [
            ("mpich-5.0.2.data/data/bin/mpiexec", Some("bin/mpiexec")),
            (
                "mpich-5.0.2.data/data/lib/mpich/ucx/libuct.so.0",
                Some("lib/mpich/ucx/libuct.so.0"),
            ),
            ("mpich-5.0.2.dist-info/licenses/LICENSE", Some("licenses/LICENSE")),
            ("mpich-5.0.2.data/data/include/mpi.h", None),
            ("mpich-5.0.2.data/data/lib/../../../evil", None),
            ("mpich-5.0.2.dist-info/RECORD", None),
        ] {
            assert_eq!(place_of(name), place.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn another_wheel_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("other.whl");
        std::fs::write(&file, b"not this one").unwrap();
        let error = check(&file, &BUILDS[0]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(
            text.contains("expected mpich-5.0.2-py3") && text.ends_with("nothing was installed"),
            "{text}"
        );
    }
}
