//! Which NCCL a process uses: the one that the user names, the one in macula's cache, or the system's.

use std::path::{Path, PathBuf};

use super::super::{install, locate};
use crate::Result;

/// The variable that names the library to use.
pub(in super::super) const VARIABLE: &str = "MACULA_NCCL_LIB";
/// Its file.
const NAME: &str = "libnccl.so.2";

/// The library, and how it came to be looked at; none where there is none.
///
/// # Errors
/// One that is named and is not there.
pub(super) fn locate() -> Result<Option<locate::Found>> {
    if let Some(named) = locate::named(VARIABLE)? {
        return Ok(Some(named));
    }
    let mut folders: Vec<(PathBuf, &'static str)> = Vec::new();
    let cached = install::nccl_folder();
    folders.extend(cached.map(|folder| (folder, "macula's cache")));
    let listed = locate::listed(std::env::var_os("LD_LIBRARY_PATH"));
    folders.extend(listed.into_iter().map(|folder| (folder, "LD_LIBRARY_PATH")));
    folders.extend(system_folders().map(|folder| (folder, "the system")));
    Ok(first(folders))
}

fn first(folders: Vec<(PathBuf, &'static str)>) -> Option<locate::Found> {
    folders
        .into_iter()
        .map(|(folder, origin)| locate::Found {
            path: folder.join(NAME),
            origin,
        })
        .find(|found| found.path.is_file())
}

/// Where distributions and CUDA's own packages put it.
fn system_folders() -> impl Iterator<Item = PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [
        multiarch.as_str(),
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/local/cuda/lib64",
        "/usr/lib",
    ]
    .map(|folder| Path::new(folder).to_path_buf())
    .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_that_has_it_counts() {
        let place = tempfile::tempdir().unwrap();
        let folders = ["a", "b", "c"].map(|name| place.path().join(name));
        for folder in &folders {
            std::fs::create_dir(folder).unwrap();
        }
        let listed = || folders.iter().map(|folder| (folder.clone(), "here")).collect();
        assert_eq!(first(listed()), None);
        for folder in &folders[1..] {
            std::fs::write(folder.join(NAME), b"").unwrap();
        }
        assert_eq!(first(listed()).unwrap().path, folders[1].join(NAME));
    }

    #[test]
    fn a_library_that_is_named_must_be_there() {
        for path in ["libnccl.so.2", "/nowhere/libnccl.so.2"] {
            let error = locate::at(PathBuf::from(path), VARIABLE).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("MACULA_NCCL_LIB: expected the absolute path of a library, found {path}")
            );
        }
    }
}
