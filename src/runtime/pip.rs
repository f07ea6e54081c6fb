//! Fetching a wheel with pip, which knows the user's package index, proxy and certificates; and what to tell a user
//! whose machine cannot.
//!
//! pip is started in a neutral folder and Python isolated, so that neither takes a module from the working directory. The
//! user's configuration of pip counts (`PIP_*`, `pip.conf`): where a package comes from does not matter to one whose
//! checksum is known.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::messages::one_line;
use super::wheels::Wheel;
use crate::{Error, Result, programs};

/// How pip may be started, in the order tried.
const COMMANDS: &[&[&str]] = &[
    &["python3", "-I", "-m", "pip"],
    &["python", "-I", "-m", "pip"],
    &["py", "-I", "-m", "pip"],
    &["pip3"],
    &["pip"],
];

/// A pip that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pip {
    /// The program, with its absolute path.
    pub program: PathBuf,
    /// The arguments that make it pip.
    pub arguments: Vec<String>,
    /// The first words of what it says about itself: `pip 23.2.1`.
    pub version: String,
}

/// The first pip that answers, if any.
pub fn find() -> Option<Pip> {
    COMMANDS.iter().find_map(|words| {
        let (name, arguments) = words.split_first()?;
        let mut pip = Pip {
            program: programs::find(name)?,
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            version: String::new(),
        };
        let output = pip.start().arg("--version").stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version: Vec<&str> = text.split_whitespace().take(2).collect();
        pip.version = version.join(" ");
        (output.status.success() && version.first() == Some(&"pip")).then_some(pip)
    })
}

impl Pip {
    fn start(&self) -> Command {
        let mut command = programs::command(&self.program);
        // It would have pip start another Python.
        command.args(&self.arguments).env_remove("PIP_PYTHON");
        command
    }
}

impl fmt::Display for Pip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|word| write!(f, " {word}"))
    }
}

/// A wheel to fetch, as far as pip and a user have to know it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `package==version`.
    pub requirement: String,
    /// pip's name for the platform.
    pub platform: &'static str,
    /// The wheel's file name.
    pub file_name: &'static str,
    /// What `macula runtime install --flavor` calls it.
    pub flavor: String,
    /// What a user can do without it.
    pub otherwise: &'static str,
}

impl From<&Wheel> for Asked {
    fn from(wheel: &Wheel) -> Self {
        Self {
            requirement: wheel.requirement(),
            platform: wheel.pip_platform,
            file_name: wheel.file_name,
            flavor: wheel.flavor.to_string(),
            otherwise: "name a library of your own with --ort-lib FILE",
        }
    }
}

/// The arguments after `pip` that fetch exactly `wheel`, whatever Python and machine pip itself runs on.
pub fn download_arguments(wheel: &Wheel) -> Vec<String> {
    arguments_for(&wheel.into())
}

fn arguments_for(wheel: &Asked) -> Vec<String> {
    let options = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        "3.12",
    ];
    let mut arguments: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    arguments.extend(["--abi", "cp312", "--platform", wheel.platform].map(str::to_owned));
    arguments.push(wheel.requirement.clone());
    arguments
}

/// What to do by hand when `wheel` cannot be fetched here.
pub fn by_hand(wheel: &Wheel) -> String {
    by_hand_for(&wheel.into())
}

fn by_hand_for(wheel: &Asked) -> String {
    format!(
        "on a connected machine run `python3 -m pip {}`, bring {} here and run `macula runtime install --flavor {} \
         --wheel {}`; or {}",
        arguments_for(wheel).join(" "),
        wheel.file_name,
        wheel.flavor,
        wheel.file_name,
        wheel.otherwise
    )
}

/// Downloads `wheel` into `folder` and returns the file. Its checksum is not looked at here.
///
/// # Errors
/// When no pip answers or it fails: the error says what to do by hand.
pub fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    download_with(wheel, folder, &[])
}

/// [`download`] with more options for pip, for instance `--no-index`.
///
/// # Errors
/// As [`download`].
pub fn download_with(wheel: &Wheel, folder: &Path, options: &[&str]) -> Result<PathBuf> {
    download_asked(&wheel.into(), folder, options)
}

/// [`download_with`] of any wheel.
///
/// # Errors
/// As [`download`].
pub fn download_asked(wheel: &Asked, folder: &Path, options: &[&str]) -> Result<PathBuf> {
    let failed = |reason: String| {
        Error::failed(
            wheel.requirement.clone(),
            format!("{reason}; {}", by_hand_for(wheel)),
        )
    };
    let Some(pip) = find() else {
        return Err(failed(
            "pip was not found (tried python3, python, py, pip3, pip)".to_owned(),
        ));
    };
    // pip starts in another folder than this one.
    let folder = &std::path::absolute(folder).map_err(|e| Error::io(folder, e))?;
    // Two retries instead of pip's five: without a network the answer comes in seconds.
    let output = pip
        .start()
        .args(arguments_for(wheel))
        .args(options)
        .args([
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "--retries",
            "2",
            "--dest",
        ])
        .arg(folder)
        .output()
        .map_err(|e| failed(format!("{pip} did not start ({e})")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!(
            "pip could not download it ({})",
            pip_error(&said)
        )));
    }
    let path = folder.join(wheel.file_name);
    if !path.is_file() {
        return Err(failed(format!(
            "pip downloaded another file than {}",
            wheel.file_name
        )));
    }
    Ok(path)
}

/// The line of pip's output that tells what is wrong: the last that begins with `ERROR:`, else the last one.
fn pip_error(said: &str) -> String {
    let lines = || said.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("ERROR:"));
    one_line(error.or_else(|| lines().next()).unwrap_or("it gave no reason"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wheels::WHEELS;

    #[test]
    fn the_command_for_a_connected_machine_fetches_the_pinned_wheel() {
        assert_eq!(
            by_hand(&WHEELS[0]),
            "on a connected machine run `python3 -m pip download --no-deps --only-binary=:all: --implementation cp \
             --python-version 3.12 --abi cp312 --platform manylinux_2_28_x86_64 onnxruntime==1.32.0`, bring \
             onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_x86_64.whl here and run `macula runtime install --flavor \
             cpu --wheel onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_x86_64.whl`; or name a library of your own \
             with --ort-lib FILE"
        );
    }

    #[test]
    fn the_telling_line_of_pip_is_kept() {
        let said = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n\n[notice] x\n";
        assert_eq!(pip_error(said), "No matching distribution");
        assert_eq!(
            pip_error("Traceback\nOSError: no space left\n"),
            "OSError: no space left"
        );
        assert_eq!(pip_error(""), "it gave no reason");
    }
}
