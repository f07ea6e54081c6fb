//! Which MPI library a process uses: the one that the user names, that of the launcher, the one in macula's cache, or the system's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::install;
use super::launch::{Launch, Launcher};
use crate::{Error, Result};

/// The variable that names the library to use.
pub(super) const VARIABLE: &str = "MACULA_MPI_LIB";
/// Processes between a launcher and this one, such as a shell, that are looked past.
const ANCESTORS: usize = 8;
/// Names of MPICH's library and its kin's, the best first: the standard ABI is the same for all of them.
const MPICH: [&str; 5] = [
    "libmpi_abi.so.1",
    "libmpi.so.12",
    "libmpich.so.12",
    "libmpi_cray.so.12",
    "libmpi_abi.so.0",
];
/// Names of Open MPI's; from version 6 on it has the standard ABI too.
const OPEN_MPI: [&str; 2] = ["libmpi.so.40", "libmpi_abi.so.1"];
/// How the programs that start processes begin.
const LAUNCHERS: [&str; 7] = [
    "mpiexec",
    "mpirun",
    "hydra_",
    "orterun",
    "orted",
    "prte",
    "mpiexec.hydra",
];

/// A library, and how it came to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) origin: &'static str,
}

/// The library for the job of `launch`; without one, that which a job would use.
///
/// # Errors
/// None that is found, or one that is named and is not there.
pub(super) fn locate(launch: Option<&Launch>) -> Result<Found> {
    if let Some(named) = named(VARIABLE)? {
        return Ok(named);
    }
    candidates(launch).into_iter().next().ok_or_else(|| {
        let reason = "no library was found; run `macula runtime install --flavor mpi` and start with the mpiexec that it \
                      prints, or name the library of your launcher in MACULA_MPI_LIB";
        Error::failed("MPI", reason)
    })
}

/// The library that `variable` of the environment names; none where it names none.
///
/// # Errors
/// One that is not there.
pub(super) fn named(variable: &'static str) -> Result<Option<Found>> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty());
    named.map(|path| at(PathBuf::from(path), variable)).transpose()
}

/// The library at `path`, which `variable` names.
pub(super) fn at(path: PathBuf, variable: &'static str) -> Result<Found> {
    match path.is_absolute() && path.is_file() {
        true => Ok(Found {
            path,
            origin: variable,
        }),
        false => {
            let reason = format!(
                "expected the absolute path of a library, found {}",
                path.display()
            );
            Err(Error::input(variable, reason))
        }
    }
}

/// Every library that is there, the one to use first.
pub(super) fn candidates(launch: Option<&Launch>) -> Vec<Found> {
    let launcher = launch.map(|launch| launch.launcher);
    let names: Vec<&str> = match launcher {
        Some(Launcher::OpenMpi) => OPEN_MPI.to_vec(),
        Some(Launcher::Hydra) => MPICH.to_vec(),
        _ => MPICH.iter().chain(&OPEN_MPI).copied().collect(),
    };
    let mut found = Vec::new();
    let mut look = |folders: Vec<PathBuf>, origin: &'static str| {
        for folder in folders {
            found.extend(in_folder(&folder, &names).map(|path| Found { path, origin }));
        }
    };
    look(
        launcher_folders().iter().flat_map(|bin| beside(bin)).collect(),
        "the launcher",
    );
    if launcher != Some(Launcher::OpenMpi) {
        look(install::library_folder().into_iter().collect(), "macula's cache");
    }
    look(listed(std::env::var_os("LD_LIBRARY_PATH")), "LD_LIBRARY_PATH");
    look(system_folders(), "the system");
    found
}

/// The first of `names` that lies in `folder`.
fn in_folder(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

/// The folders of the launchers among this process's ancestors: the library that belongs to one lies beside it.
fn launcher_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut process = parent(Path::new("/proc/self"));
    for _ in 0..ANCESTORS {
        let Some(number) = process.filter(|&number| number > 1) else {
            break;
        };
        let entry = PathBuf::from(format!("/proc/{number}"));
        let program = std::fs::read_link(entry.join("exe")).unwrap_or_default();
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if LAUNCHERS.iter().any(|launcher| name.starts_with(launcher)) {
            folders.extend(program.parent().map(Path::to_path_buf));
        }
        process = parent(&entry);
    }
    folders
}

/// The parent of the process with this entry of `/proc`.
fn parent(entry: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(entry.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Where the libraries of the programs in `bin` lie.
fn beside(bin: &Path) -> Vec<PathBuf> {
    let Some(prefix) = bin.parent() else {
        return Vec::new();
    };
    let multiarch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "lib64", &multiarch]
        .map(|folder| prefix.join(folder))
        .to_vec()
}

/// The absolute folders of a list as the loader has one.
pub(super) fn listed(list: Option<OsString>) -> Vec<PathBuf> {
    let list = list.unwrap_or_default();
    std::env::split_paths(&list)
        .filter(|folder| folder.is_absolute())
        .collect()
}

/// Where distributions put libraries of MPI.
fn system_folders() -> Vec<PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [
        &multiarch,
        "/usr/lib64/mpich/lib",
        "/usr/lib64/openmpi/lib",
        "/usr/local/lib",
        "/usr/lib64",
        "/usr/lib",
    ]
    .map(PathBuf::from)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_s_library_lies_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let lib = place.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        let folders = beside(&place.path().join("bin"));
        assert_eq!(folders[0], lib);
        assert_eq!(in_folder(&lib, &MPICH), None);
        for (name, of_mpich, of_open_mpi) in [
            ("libmpi.so.40", None, Some("libmpi.so.40")),
            ("libmpi.so.12", Some("libmpi.so.12"), Some("libmpi.so.40")),
            ("libmpi_abi.so.1", Some("libmpi_abi.so.1"), Some("libmpi.so.40")),
        ] {
            std::fs::write(lib.join(name), b"").unwrap();
            assert_eq!(
                in_folder(&lib, &MPICH),
                of_mpich.map(|name| lib.join(name)),
                "{name}"
            );
            assert_eq!(
                in_folder(&lib, &OPEN_MPI),
                of_open_mpi.map(|name| lib.join(name)),
                "{name}"
            );
        }
    }

    #[test]
    fn relative_folders_are_never_looked_into() {
        assert_eq!(
            listed(Some(OsString::from("/a::b:.:/c"))),
            ["/a", "/c"].map(PathBuf::from)
        );
        assert!(listed(None).is_empty());
    }

    #[test]
    fn the_parent_of_this_process_is_known() {
        if cfg!(target_os = "linux") {
            assert_eq!(
                parent(Path::new("/proc/self")),
                Some(std::os::unix::process::parent_id())
            );
        }
    }
}
