//! Pinned builds in macula's cache of what connects ranks, for machines without: MPI, which is MPICH's wheel from the Python package
//! index, needs no rights and brings its own `mpiexec`; and NCCL, NVIDIA's wheel. Checked by their SHA-256 and put in place whole, as
//! ONNX Runtime is.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::runtime::cache::cache_dir;
use crate::runtime::pip::{self, Asked};
use crate::{Error, Result, files};

/// What can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// MPICH with its `mpiexec`.
    Mpi,
    /// NCCL.
    Nccl,
}

/// A pinned wheel, for one kind of machine.
struct Build {
    what: Package,
    os: &'static str,
    arch: &'static str,
    package: &'static str,
    version: &'static str,
    platform: &'static str,
    file_name: &'static str,
    sha256: &'static str,
}

/// All of them. The checksums are those of the Python package index.
const BUILDS: [Build; 2] = [
    Build {
        what: Package::Mpi,
        os: "linux",
        arch: "x86_64",
        package: "mpich",
        version: "5.0.2",
        platform: "manylinux_2_28_x86_64",
        file_name: "mpich-5.0.2-py3-none-manylinux_2_28_x86_64.whl",
        sha256: "8fed465ebff269ea2ebac179a25de02671ddf8df476e0f115be089015015cfd4",
    },
    Build {
        what: Package::Nccl,
        os: "linux",
        arch: "x86_64",
        package: "nvidia-nccl-cu13",
        version: "2.32.3",
        platform: "manylinux_2_27_x86_64",
        file_name: "nvidia_nccl_cu13-2.32.3-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3",
    },
];

/// MPI's library in an installation.
const LIBRARY: &str = "lib/libmpi_abi.so.1";

impl Package {
    /// What `macula runtime install --flavor` and the folder in the cache call it.
    fn name(self) -> &'static str {
        match self {
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }

    /// What an installation is for: MPI's launcher, NCCL's library.
    fn product(self) -> &'static str {
        match self {
            Self::Mpi => "bin/mpiexec",
            Self::Nccl => "lib/libnccl.so.2",
        }
    }

    /// What a user can do without it.
    fn otherwise(self) -> &'static str {
        match self {
            Self::Mpi => "use the MPI of your cluster, which needs no installation",
            Self::Nccl => "name a libnccl.so.2 of your own in MACULA_NCCL_LIB",
        }
    }

    fn build(self) -> Option<&'static Build> {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        BUILDS
            .iter()
            .find(|build| build.what == self && (build.os, build.arch) == (os, arch))
    }

    /// The file `name` of the pinned build, where that is installed.
    fn installed(self, name: &str) -> Option<PathBuf> {
        let folder = self.build()?.folder(&cache_dir().ok()?);
        Some(folder.join(name)).filter(|path| path.is_file())
    }

    /// Where a member of its wheel belongs in an installation: programs, libraries and licences.
    fn place_of(self, name: &str) -> Option<PathBuf> {
        let data = match self {
            Self::Mpi => name.split_once(".data/data/").map(|(_, inside)| inside),
            Self::Nccl => name.strip_prefix("nvidia/nccl/"),
        };
        let inside = data.or_else(|| name.split_once(".dist-info/").map(|(_, inside)| inside))?;
        let wanted = match self {
            Self::Mpi => &["bin/", "lib/", "licenses/"][..],
            // Not what device code is compiled with.
            Self::Nccl => &["lib/libnccl.so", "licenses/"],
        };
        let wanted = wanted.iter().any(|start| inside.starts_with(start));
        let safe = inside.split('/').all(|part| !part.is_empty() && part != "..");
        (wanted && safe).then(|| PathBuf::from(inside))
    }
}

impl Build {
    fn asked(&self) -> Asked {
        Asked {
            requirement: format!("{}=={}", self.package, self.version),
            platform: self.platform,
            file_name: self.file_name,
            flavor: self.what.name().to_owned(),
            otherwise: self.what.otherwise(),
        }
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache
            .join(self.what.name())
            .join(format!("{}-{}", self.package, self.version))
    }
}

/// The folder of MPI's library, where the pinned build is installed.
pub(super) fn library_folder() -> Option<PathBuf> {
    Package::Mpi.installed(LIBRARY)?.parent().map(Path::to_path_buf)
}

/// The folder of NCCL's library, where the pinned build is installed.
pub(super) fn nccl_folder() -> Option<PathBuf> {
    let library = Package::Nccl.installed(Package::Nccl.product())?;
    library.parent().map(Path::to_path_buf)
}

/// The `mpiexec` of the pinned build, where it is installed.
pub fn mpiexec() -> Option<PathBuf> {
    Package::Mpi.installed(Package::Mpi.product())
}

/// Installs the pinned build of `what` into the cache, from the file `wheel` where one is given, else fetched with pip; what is installed
/// already stays. Gives the path of MPI's `mpiexec`, or of NCCL's library.
///
/// # Errors
/// A machine that there is no build for, a wheel that cannot be fetched (the error says what to do by hand) or is another, a cache that
/// cannot be written.
pub fn install(what: Package, wheel: Option<&Path>) -> Result<PathBuf> {
    let Some(build) = what.build() else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let reason = format!("no pinned build for {os} {arch}; {}", what.otherwise());
        return Err(Error::input(format!("--flavor {}", what.name()), reason));
    };
    let product = || what.installed(what.product());
    let cache = cache_dir()?;
    let target = build.folder(&cache);
    if let Some(wheel) = wheel {
        // Also where the installation is whole already: a wrong file must not pass for installed.
        check(wheel, build)?;
    }
    if let Some(product) = product() {
        return Ok(product);
    }
    let place = cache.join(what.name());
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
    unpack(what, copy, &file, &unpacked)?;
    match std::fs::rename(&unpacked, &target) {
        Ok(()) => {}
        // Another process was faster.
        Err(_) if product().is_some() => {}
        Err(error) => return Err(Error::io(&target, error)),
    }
    product().ok_or_else(|| {
        Error::failed(
            target.display().to_string(),
            format!("expected {}, found none", what.product()),
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

fn unpack(what: Package, reader: File, file: &Path, target: &Path) -> Result<()> {
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
        let Some(inside) = what.place_of(&name) else {
            continue;
        };
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
        for (what, name, place) in [
            (
                Package::Mpi,
                "mpich-5.0.2.data/data/bin/mpiexec",
                Some("bin/mpiexec"),
            ),
            (
                Package::Mpi,
                "mpich-5.0.2.data/data/lib/mpich/ucx/libuct.so.0",
                Some("lib/mpich/ucx/libuct.so.0"),
            ),
            (
                Package::Mpi,
                "mpich-5.0.2.dist-info/licenses/LICENSE",
                Some("licenses/LICENSE"),
            ),
            (Package::Mpi, "mpich-5.0.2.data/data/include/mpi.h", None),
            (Package::Mpi, "mpich-5.0.2.data/data/lib/../../../evil", None),
            (Package::Mpi, "mpich-5.0.2.dist-info/RECORD", None),
            (
                Package::Nccl,
                "nvidia/nccl/lib/libnccl.so.2",
                Some("lib/libnccl.so.2"),
            ),
            (
                Package::Nccl,
                "nvidia_nccl_cu13-2.32.3.dist-info/licenses/License.txt",
                Some("licenses/License.txt"),
            ),
            (Package::Nccl, "nvidia/nccl/lib/libnccl_device.bc", None),
            (Package::Nccl, "nvidia/nccl/include/nccl.h", None),
            (Package::Nccl, "nvidia/nccl/lib/libnccl.so/../../../../evil", None),
        ] {
            assert_eq!(what.place_of(name), place.map(PathBuf::from), "{name}");
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
