//! Where macula keeps what it fetched: the cache folder and the places in it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::wheels::Wheel;
use crate::{Error, Result};

/// The cache folder: `MACULA_CACHE`; else `macula` below `XDG_CACHE_HOME`; else the system's own place
/// (`~/.cache/macula`, `~/Library/Caches/macula`, `%LOCALAPPDATA%\macula`). It need not exist yet. Libraries are loaded from it,
/// so it is never relative to the working directory.
///
/// # Errors
/// An input error when none of the variables that would tell is set, or `MACULA_CACHE` is relative.
pub fn cache_dir() -> Result<PathBuf> {
    cache_dir_from(std::env::consts::OS, |name| std::env::var_os(name))
}

/// [`cache_dir`] on a system `os` whose environment is `variable`. Empty variables count as unset, relative ones but
/// `MACULA_CACHE` too, as the specification of `XDG_CACHE_HOME` asks.
fn cache_dir_from(os: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
    if let Some(own) = path("MACULA_CACHE") {
        let relative = || format!("expected an absolute path, found `{}`", own.display());
        return match own.is_absolute() {
            true => Ok(own),
            false => Err(Error::input("MACULA_CACHE", relative())),
        };
    }
    if let Some(xdg) = absolute("XDG_CACHE_HOME") {
        return Ok(xdg.join("macula"));
    }
    let base = match os {
        "windows" => absolute("LOCALAPPDATA"),
        "macos" => absolute("HOME").map(|home| home.join("Library").join("Caches")),
        _ => absolute("HOME").map(|home| home.join(".cache")),
    };
    base.map(|base| base.join("macula")).ok_or_else(|| {
        let variable = if os == "windows" { "LOCALAPPDATA" } else { "HOME" };
        Error::input(
            "cache folder",
            format!("neither MACULA_CACHE nor {variable} is set; set MACULA_CACHE to a folder"),
        )
    })
}

/// The folder in `cache` that holds the installed libraries, one folder each.
pub fn libraries_dir(cache: &Path) -> PathBuf {
    cache.join("onnxruntime")
}

/// The folder in `cache` that `wheel` is installed into.
pub fn install_dir(cache: &Path, wheel: &Wheel) -> PathBuf {
    libraries_dir(cache).join(format!("{}-{}", wheel.flavor, wheel.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_of(os: &str, variables: &[(&str, &str)]) -> Result<PathBuf> {
        cache_dir_from(os, |name| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn the_variables_are_read_in_order() {
        let all = [
            ("MACULA_CACHE", "/m"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
            ("LOCALAPPDATA", "/l"),
        ];
        assert_eq!(cache_of("linux", &all).unwrap(), Path::new("/m"));
        assert_eq!(cache_of("linux", &all[1..]).unwrap(), Path::new("/x/macula"));
        assert_eq!(
            cache_of("linux", &all[2..]).unwrap(),
            Path::new("/h/.cache/macula")
        );
        assert_eq!(
            cache_of("macos", &all[2..]).unwrap(),
            Path::new("/h/Library/Caches/macula")
        );
        assert_eq!(cache_of("windows", &all[2..]).unwrap(), Path::new("/l/macula"));
        assert_eq!(
            cache_of("linux", &[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/macula")
        );
        assert_eq!(
            cache_of("linux", &[("MACULA_CACHE", ""), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/macula")
        );
    }

    #[test]
    fn it_is_never_relative_to_the_working_directory() {
        let error = cache_of("linux", &[("MACULA_CACHE", "cache"), ("HOME", "/h")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MACULA_CACHE: expected an absolute path, found `cache`"
        );
        assert_eq!(error.exit_code(), 2);
        assert!(cache_of("linux", &[("HOME", ".")]).is_err());
        assert!(cache_of("macos", &[("HOME", "h")]).is_err());
    }

    #[test]
    fn without_any_variable_the_error_names_them() {
        let error = cache_of("linux", &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "cache folder: neither MACULA_CACHE nor HOME is set; set MACULA_CACHE to a folder"
        );
    }
}
