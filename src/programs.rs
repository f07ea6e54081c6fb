//! Programs of others (Python, pip, ffmpeg): which file is run and where. A working directory may be a folder that somebody
//! else filled, so nothing in it is found by its name alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program `name` in the folders of `PATH` that are absolute. An empty or relative one means the working directory or
/// something below it, and is passed over.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(name, std::env::split_paths(&std::env::var_os("PATH")?))
}

fn find_in(name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(&name))
        .find(|file| is_executable(file))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file()
}

/// A command that runs `program`, an absolute path, in [`neutral_folder`] and without input. Paths among its arguments
/// have to be absolute.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(neutral_folder()).stdin(Stdio::null());
    command
}

/// A folder that only the system's administrator fills: what a program looks for in its working directory (Python its
/// modules, pyenv its `.python-version`, a path with an empty element everything) is not there.
fn neutral_folder() -> PathBuf {
    if cfg!(windows) {
        let system = std::env::var_os("SystemRoot").map(PathBuf::from);
        return system
            .filter(|folder| folder.is_absolute())
            .unwrap_or_else(|| PathBuf::from("C:\\Windows"));
    }
    PathBuf::from("/")
}

/// Whether `path` lies in the working directory or below it, links followed. The root of a file system does not count as one:
/// everything lies below it.
pub fn in_working_folder(path: &Path) -> bool {
    std::env::current_dir().is_ok_and(|folder| lies_below(path, &folder))
}

fn lies_below(path: &Path, folder: &Path) -> bool {
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let folder = resolved(folder);
    folder.parent().is_some() && resolved(path).starts_with(&folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn only_executables_in_absolute_folders_are_found() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let folders = || ["", ".", "src", "../x"].map(PathBuf::from).into_iter();
        let all = || folders().chain([place.path().to_path_buf()]);
        let program = place.path().join("tool");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        assert_eq!(find_in("tool", all()), None);
        mode(0o755);
        assert_eq!(find_in("tool", all()), Some(program.clone()));
        // This package's folder is the working directory of its tests.
        assert_eq!(find_in("tool", folders()), None);
        let said = command(&program).output().unwrap();
        assert!(said.status.success());
    }

    #[test]
    fn what_lies_below_a_folder_is_known_through_links() {
        let place = tempfile::tempdir().unwrap();
        let (inside, outside) = (place.path().join("in"), place.path().join("out"));
        for folder in [&inside, &outside] {
            std::fs::create_dir(folder).unwrap();
        }
        let file = inside.join("library");
        std::fs::write(&file, "").unwrap();
        assert!(lies_below(&file, &inside) && !lies_below(&file, &outside));
        assert!(lies_below(&outside.join("../in/library"), &inside));
        assert!(!lies_below(&file, Path::new("/")));
        assert!(!lies_below(&place.path().join("input"), &inside));
        #[cfg(unix)]
        {
            let link = outside.join("link");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            assert!(lies_below(&link, &inside));
            std::os::unix::fs::symlink(&inside, outside.join("folder")).unwrap();
            assert!(lies_below(&file, &outside.join("folder")));
        }
    }
}
