//! The copy of the checkout that is rewritten, and the package that a folder belongs to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// A package of the workspace.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder, relative to the checkout; empty for the root package.
    pub folder: PathBuf,
}

impl Package {
    /// The package that all `folders` belong to.
    ///
    /// # Errors
    /// A folder that is not there, or folders of two packages.
    pub fn holding_all(root: &Path, folders: &[String]) -> Result<Self> {
        let mut found: Option<Self> = None;
        for folder in folders {
            if !root.join(folder).exists() {
                return Err(format!("{folder}: not in {}", root.display()));
            }
            let package = Self::holding(root, Path::new(folder))?;
            match &found {
                Some(first) if first.folder != package.folder => {
                    return Err(format!(
                        "{folder}: expected folders of one package, {}",
                        first.name
                    ));
                }
                _ => found = Some(package),
            }
        }
        found.ok_or_else(|| "expected a folder".to_owned())
    }

    fn holding(root: &Path, path: &Path) -> Result<Self> {
        let folder = path
            .ancestors()
            .find(|folder| root.join(folder).join("Cargo.toml").exists())
            .ok_or_else(|| format!("{}: belongs to no package", path.display()))?;
        let manifest = read(&root.join(folder).join("Cargo.toml"))?;
        let section = manifest.split("[package]").nth(1).unwrap_or("");
        let name = section
            .lines()
            .find_map(|line| line.strip_prefix("name = "))
            .ok_or_else(|| format!("{}: its package has no name", path.display()))?;
        Ok(Self {
            name: name.trim().trim_matches('"').to_owned(),
            folder: folder.to_owned(),
        })
    }
}

/// Folders of the checkout that no build needs.
const NOT_COPIED: [&str; 4] = ["target", ".git", "shared", "runs"];

/// Makes `to` what `from` is, but for the files of `rewritten` (relative paths), which are left to the caller, and in the manifest the
/// lints and how `package` is optimised: a little, as its many branches take long to compile. A file that is already the same is
/// not written again, so that it is not built again.
pub fn tree(from: &Path, to: &Path, package: &Package, rewritten: &[PathBuf]) -> Result<()> {
    folder(from, to, Path::new(""), rewritten)?;
    // Rewritten code has parentheses and branches that no lint wants to see, and some that lints refuse.
    let allowed = "warnings = \"allow\"\narithmetic_overflow = \"allow\"\nunconditional_panic = \"allow\"";
    let text = read(&from.join("Cargo.toml"))?
        .replace("warnings = \"deny\"", allowed)
        .replace("unsafe_code = \"deny\"", "unsafe_code = \"allow\"")
        .replace("missing_docs = \"warn\"", "missing_docs = \"allow\"");
    let optimised = format!("\n[profile.release.package.{}]\nopt-level = 1\n", package.name);
    write(&to.join("Cargo.toml"), (text + &optimised).as_bytes())
}

fn folder(from: &Path, to: &Path, below: &Path, rewritten: &[PathBuf]) -> Result<()> {
    let said = |error: std::io::Error| format!("{}: {error}", from.join(below).display());
    fs::create_dir_all(to.join(below)).map_err(said)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from.join(below)).map_err(said)? {
        let name = entry.map_err(said)?.file_name();
        let path = below.join(&name);
        if NOT_COPIED.iter().any(|&left| name == left) {
            continue;
        }
        if from.join(&path).is_dir() {
            folder(from, to, &path, rewritten)?;
        } else if path != Path::new("Cargo.toml") && !rewritten.contains(&path) {
            write(&to.join(&path), &fs::read(from.join(&path)).map_err(said)?)?;
        }
        names.push(name);
    }
    for entry in fs::read_dir(to.join(below)).map_err(said)? {
        let path = entry.map_err(said)?.path();
        let ours = path.file_name() == Some("mutant_switch.rs".as_ref());
        if ours || names.iter().any(|name| path.file_name() == Some(name)) {
            continue;
        }
        if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        }
        .map_err(said)?;
    }
    Ok(())
}

/// The text of a file.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a file, unless it holds just that.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Every file below `folder`, in a fixed order; `folder` itself where it is a file.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let said = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(said)? {
        let path = entry.map_err(said)?.path();
        files.extend(if path.is_dir() {
            files_below(&path)?
        } else {
            vec![path]
        });
    }
    files.sort();
    Ok(files)
}
