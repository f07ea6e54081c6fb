//! What the command was asked for.

use std::path::PathBuf;

use crate::Result;

/// The command's arguments: the checkout (given by `run`), folders of one package, options.
#[derive(Debug)]
pub struct Arguments {
    /// The checkout.
    pub root: PathBuf,
    /// Folders or files to mutate, relative to the checkout, all of one package.
    pub folders: Vec<String>,
    /// How many of the mutants that compile are judged; all where it is not given.
    pub sample: Option<usize>,
    /// Of the draw of the sample.
    pub seed: u64,
    /// Integration tests of the package beside its unit tests.
    pub tests: Vec<String>,
    /// Beginnings of the names of tests that are run; all tests where there are none.
    pub modules: Vec<String>,
    /// Parts of paths whose files are left as they are.
    pub leave_out: Vec<String>,
    /// Results of an earlier run: only what survived there is judged.
    pub again: Option<PathBuf>,
    /// Whether a build is made; else the last one of the package is judged.
    pub build: bool,
    /// Whether mutants are judged.
    pub judge: bool,
    /// Where the copy lies.
    pub work: PathBuf,
    /// Where results are written.
    pub out: PathBuf,
}

impl Arguments {
    /// # Errors
    /// An unknown option, one without its value, no folder.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let root = PathBuf::from(words.next().ok_or("expected the checkout's folder")?);
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let work = target.join("mutants");
        let mut arguments = Self {
            out: work.join("results"),
            work,
            root,
            folders: Vec::new(),
            sample: None,
            seed: 0,
            tests: Vec::new(),
            modules: Vec::new(),
            leave_out: Vec::new(),
            again: None,
            build: true,
            judge: true,
        };
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                arguments.folders.push(word.trim_end_matches('/').to_owned());
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word}: expected a value"))?;
            arguments.set(&word, value)?;
        }
        if arguments.folders.is_empty() {
            return Err("expected a folder to mutate, such as eval/src/metrics".to_owned());
        }
        Ok(arguments)
    }

    fn set(&mut self, option: &str, value: String) -> Result<()> {
        let list = |value: &str| value.split(',').map(str::to_owned).collect();
        let number = |value: &str| {
            value
                .parse()
                .map_err(|_| format!("{option}: expected a number, found {value}"))
        };
        match option {
            "--sample" => self.sample = Some(number(&value)? as usize),
            "--seed" => self.seed = number(&value)?,
            "--tests" => self.tests = list(&value),
            "--modules" => self.modules = list(&value),
            "--leave-out" => self.leave_out = list(&value),
            "--again" => self.again = Some(value.into()),
            "--out" => self.out = value.into(),
            "--only" => match value.as_str() {
                "build" => self.judge = false,
                "judge" => self.build = false,
                _ => return Err(format!("--only: expected build or judge, found {value}")),
            },
            _ => return Err(format!("unknown option {option}")),
        }
        Ok(())
    }
}
