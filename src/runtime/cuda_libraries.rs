//! The libraries of CUDA that a program built for it loads when it starts: where the system's loader finds them, and where they lie
//! when it does not. Nothing is loaded here. A program that lacks one ends before its first line, so this is asked of another
//! build, or before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::locate::output_within;
use crate::programs;

/// By their names on Linux, in the order in which their lack is reported. `libcublasLt` is what `libcublas` loads.
const NEEDED: [&str; 5] = [
    "libcuda.so.1",
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
];

/// One of CUDA's libraries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CudaLibrary {
    /// Its file name.
    pub name: &'static str,
    /// Where the loader finds it.
    pub path: Option<PathBuf>,
    /// Where else it lies, for one that the loader does not find.
    pub elsewhere: Option<PathBuf>,
}

/// Where they may be.
#[derive(Debug, Clone, Default)]
pub(super) struct Folders {
    /// The loader's, in its order.
    pub(super) loader: Vec<PathBuf>,
    /// Others that are known to hold them.
    pub(super) others: Vec<PathBuf>,
}

impl Folders {
    /// Those of this process: `LD_LIBRARY_PATH`, what the system's configuration names and its own folders; then those of a toolkit
    /// (`CUDA_HOME`, `CUDA_PATH`, /usr/local/cuda) and of Python's `nvidia` packages.
    fn of_this_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let mut loader: Vec<PathBuf> =
            variable("LD_LIBRARY_PATH").map_or(Vec::new(), |listed| std::env::split_paths(&listed).collect());
        let configured = std::fs::read_dir("/etc/ld.so.conf.d").map_or(Vec::new(), |entries| {
            entries.flatten().map(|entry| entry.path()).collect()
        });
        for file in [PathBuf::from("/etc/ld.so.conf")].iter().chain(&configured) {
            loader.extend(folders_of(&std::fs::read_to_string(file).unwrap_or_default()));
        }
        let arch = std::env::consts::ARCH;
        let own = [
            format!("/lib/{arch}-linux-gnu"),
            format!("/usr/lib/{arch}-linux-gnu"),
        ];
        loader.extend(own.map(PathBuf::from));
        loader.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        let mut others: Vec<PathBuf> = toolkits
            .map(PathBuf::from)
            .chain([PathBuf::from("/usr/local/cuda")])
            .flat_map(|toolkit| [toolkit.join("lib64"), toolkit.join("lib")])
            .collect();
        others.extend(["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from));
        let pythons = ["python3", "python"].into_iter().filter_map(programs::find);
        others.extend(pythons.flat_map(|python| of_python(&python)));
        let mut folders = Self { loader, others };
        for list in [&mut folders.loader, &mut folders.others] {
            list.retain(|folder| folder.is_absolute() && !programs::in_working_folder(folder));
        }
        folders
    }

    /// Each library, looked up.
    pub(super) fn find(&self) -> Vec<CudaLibrary> {
        let within = |name: &str, folders: &[PathBuf]| {
            let mut files = folders.iter().map(|folder| folder.join(name));
            files.find(|file| file.is_file())
        };
        let find = |name| {
            let path = within(name, &self.loader);
            let elsewhere = match path {
                Some(_) => None,
                None => within(name, &self.others),
            };
            CudaLibrary {
                name,
                path,
                elsewhere,
            }
        };
        NEEDED.map(find).into()
    }
}

/// The libraries as this process finds them; none where the system is not Linux.
pub fn cuda_libraries() -> Vec<CudaLibrary> {
    match std::env::consts::OS {
        "linux" => Folders::of_this_process().find(),
        _ => Vec::new(),
    }
}

/// What is missing of them, in a line, and the command that mends it; `None` where all are found.
pub(super) fn lack(libraries: &[CudaLibrary]) -> Option<(String, String)> {
    let lacking: Vec<&CudaLibrary> = libraries
        .iter()
        .filter(|library| library.path.is_none())
        .collect();
    if lacking.is_empty() {
        return None;
    }
    let names: Vec<&str> = lacking.iter().map(|library| library.name).collect();
    let what = format!(
        "{} (not in LD_LIBRARY_PATH nor in the system's folders of libraries; training on a GPU needs it)",
        names.join(", ")
    );
    let mut folders: Vec<String> = Vec::new();
    for folder in lacking
        .iter()
        .filter_map(|library| library.elsewhere.as_deref()?.parent())
    {
        let folder = folder.display().to_string();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    let nowhere: Vec<&str> = lacking
        .iter()
        .filter(|library| library.elsewhere.is_none())
        .map(|library| library.name)
        .collect();
    let mut mend = Vec::new();
    if !folders.is_empty() {
        let folders = folders.join(":");
        mend.push(format!(
            "export LD_LIBRARY_PATH={folders}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
        ));
    }
    if nowhere.contains(&"libcuda.so.1") {
        mend.push("install NVIDIA's driver (libcuda.so.1 comes with it)".to_owned());
    }
    let of_toolkit: Vec<&str> = nowhere
        .into_iter()
        .filter(|name| *name != "libcuda.so.1")
        .collect();
    if !of_toolkit.is_empty() {
        mend.push(format!(
            "install CUDA 13 or pip's nvidia-cuda-runtime, nvidia-cublas and nvidia-curand ({} in none of CUDA_HOME, \
             /usr/local/cuda and Python's packages)",
            of_toolkit.join(", ")
        ));
    }
    Some((what, mend.join("; ")))
}

/// The folders that a file of the loader's configuration names.
fn folders_of(configuration: &str) -> Vec<PathBuf> {
    let lines = configuration
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim());
    lines
        .filter(|line| line.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// The folders of libraries in the `nvidia` packages that `python` would import, which are not imported.
fn of_python(python: &Path) -> Vec<PathBuf> {
    const ASK: &str = "import glob, importlib.util, os\n\
                       spec = importlib.util.find_spec('nvidia')\n\
                       places = spec.submodule_search_locations if spec else []\n\
                       print(*sorted({lib for place in places for lib in glob.glob(os.path.join(place, '*', 'lib'))}), sep='\\n')";
    let said = output_within(
        programs::command(python).args(["-I", "-c", ASK]),
        Duration::from_secs(10),
    );
    said.unwrap_or_default().lines().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, names: &[&str]) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
        folder.to_path_buf()
    }

    #[test]
    fn what_the_loader_does_not_find_is_named_with_the_folder_that_has_it() {
        let place = tempfile::tempdir().unwrap();
        let driver = touch(&place.path().join("driver"), &["libcuda.so.1"]);
        let pip = touch(&place.path().join("nvidia/cu13/lib"), &NEEDED[1..4]);
        let folders = Folders {
            loader: vec![place.path().join("none"), driver.clone()],
            others: vec![driver.clone(), pip.clone()],
        };
        let found = folders.find();
        assert_eq!(found[0].path, Some(driver.join("libcuda.so.1")));
        assert_eq!(found[0].elsewhere, None);
        assert_eq!(
            (&found[2].path, &found[2].elsewhere),
            (&None, &Some(pip.join("libcublas.so.13")))
        );
        assert_eq!((&found[4].path, &found[4].elsewhere), (&None, &None));
        let (what, mend) = lack(&found).unwrap();
        assert!(
            what.starts_with("libcudart.so.13, libcublas.so.13, libcublasLt.so.13, libcurand.so.10 ("),
            "{what}"
        );
        let export = format!(
            "export LD_LIBRARY_PATH={}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}; ",
            pip.display()
        );
        assert!(
            mend.starts_with(&export) && mend.contains("(libcurand.so.10 in none"),
            "{mend}"
        );
        assert!(!mend.contains("driver ("), "{mend}");
    }

    #[test]
    fn where_all_are_found_nothing_is_missing() {
        let place = tempfile::tempdir().unwrap();
        let all = touch(place.path(), &NEEDED);
        let folders = Folders {
            loader: vec![all],
            others: Vec::new(),
        };
        assert_eq!(lack(&folders.find()), None);
        let (what, mend) = lack(&Folders::default().find()).unwrap();
        assert!(NEEDED.iter().all(|name| what.contains(name)), "{what}");
        assert!(
            mend.contains("NVIDIA's driver") && mend.contains("pip's"),
            "{mend}"
        );
    }

    #[test]
    fn the_loaders_configuration_is_read() {
        let text = "# comment\ninclude /etc/ld.so.conf.d/*.conf\n/opt/a\n  /opt/b # why\n\nrelative\n";
        assert_eq!(
            folders_of(text),
            [PathBuf::from("/opt/a"), PathBuf::from("/opt/b")]
        );
    }
}
