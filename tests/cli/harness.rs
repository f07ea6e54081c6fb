//! A temporary folder a test, and the binary in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use macula::extract::FeatureFolder;
use serde_json::Value;

/// A temporary folder in which the binary runs.
pub struct Workspace {
    folder: tempfile::TempDir,
    search: Option<PathBuf>,
    variables: Vec<(String, std::ffi::OsString)>,
}

/// What a run of the binary gave.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Workspace {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            search: None,
            variables: Vec::new(),
        }
    }

    /// The values of a column of a feature folder, row after row.
    pub fn column(&self, folder: &str, column: &str) -> Vec<f32> {
        let features = FeatureFolder::open(&self.path(folder)).expect("complete");
        features.read(column).expect("read").matrix.into_data()
    }

    /// How the images of a feature folder were prepared.
    pub fn preprocess(&self, folder: &str) -> Value {
        let features = FeatureFolder::open(&self.path(folder)).expect("complete");
        features.meta().preprocess.clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::write(&path, bytes).expect("written");
        path
    }

    /// From now on the binary finds programs in this folder of the workspace only.
    pub fn search_only(&mut self, folder: &str) {
        self.search = Some(self.path(folder));
    }

    /// From now on the binary sees this variable.
    pub fn variable(&mut self, name: &str, value: impl Into<std::ffi::OsString>) {
        self.variables.push((name.to_owned(), value.into()));
    }

    /// Runs `macula` with the words of `arguments`.
    pub fn macula(&self, arguments: &str) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_macula"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env_remove("MACULA_LOG")
            .stdin(std::process::Stdio::null());
        if let Some(folder) = &self.search {
            command.env("PATH", folder);
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        Run::from(command.output().expect("the binary runs"))
    }

    /// Runs `macula` and expects success.
    pub fn succeeds(&self, arguments: &str) -> Run {
        let run = self.macula(arguments);
        assert_eq!(run.code, 0, "macula {arguments}\n{}", run.stderr);
        run
    }

    /// Runs `macula` and expects exit code `code`, nothing on stdout and one error line that holds every one of `words`.
    pub fn fails(&self, code: i32, arguments: &str, words: &[&str]) {
        let run = self.fails_in_part(code, arguments, words);
        assert!(
            run.stdout.is_empty(),
            "expected nothing on stdout: {}",
            run.stdout
        );
    }

    /// Like `fails`, for a command that prints what it did before it says what failed.
    pub fn fails_in_part(&self, code: i32, arguments: &str, words: &[&str]) -> Run {
        let run = self.macula(arguments);
        let context = format!("macula {arguments}\n{}", run.stderr);
        assert_eq!(run.code, code, "{context}");
        let errors: Vec<&str> = run
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(errors.len(), 1, "expected one error line: {context}");
        assert!(!run.stderr.contains("panicked"), "{context}");
        let last = run.stderr.lines().last().unwrap_or_default();
        assert_eq!(errors[0], last, "expected the error last: {context}");
        for word in words {
            assert!(errors[0].contains(word), "expected `{word}` in: {context}");
        }
        run
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Run {
    /// The JSON on stdout.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// A file of the project's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A golden checkpoint.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models/tests/fixtures")
        .join(name)
}

/// Names in a folder, sorted; empty where there is none.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

impl Workspace {
    /// Writes a complete feature folder with one column `cls`.
    pub fn features(&self, name: &str, rows: &[(Option<&str>, Vec<f32>)]) -> PathBuf {
        use macula::extract::folder::{FORMAT_VERSION, FolderWriter, Meta, OutputSpec, ShardMeta};
        use macula::extract::{FeatureSink as _, PartRows};
        let path = self.path(name);
        let meta = Meta {
            format_version: FORMAT_VERSION,
            tool_version: "test".to_owned(),
            model: serde_json::json!({ "kind": "test" }),
            preprocess: serde_json::json!({}),
            outputs: vec![OutputSpec {
                name: "cls".to_owned(),
                shape: vec![rows[0].1.len()],
            }],
            source: serde_json::json!({ "kind": "test" }),
            fingerprint: None,
            n_rows: rows.len() as u64,
            shard: ShardMeta { index: 0, count: 1 },
            part_rows: 1000,
            on_error: "fail".to_owned(),
            layout: Default::default(),
            dtype: Default::default(),
            n_written: None,
            n_failed: None,
        };
        let mut writer = FolderWriter::open(&path, meta, false, false).expect("a new folder");
        writer
            .write(PartRows {
                rows: (0..rows.len() as u64).collect(),
                paths: (0..rows.len()).map(|i| format!("{i}.png")).collect(),
                labels: rows.iter().map(|(label, _)| label.map(str::to_owned)).collect(),
                present: vec![true; rows.len()],
                values: vec![rows.iter().flat_map(|(_, values)| values.clone()).collect()],
                errors: Vec::new(),
            })
            .expect("written");
        writer.finish().expect("finished");
        path
    }

    /// A folder of `n` rows in two classes, `dim` wide, told apart by their first value.
    pub fn two_classes(&self, name: &str, n: usize, dim: usize) -> PathBuf {
        let rows: Vec<(Option<&str>, Vec<f32>)> = (0..n)
            .map(|i| {
                let mut values: Vec<f32> = (0..dim).map(|j| ((i * 7 + j * 3) % 5) as f32 * 0.1).collect();
                values[0] = if i % 2 == 0 { 3.0 } else { -3.0 };
                (Some(if i % 2 == 0 { "cat" } else { "dog" }), values)
            })
            .collect();
        self.features(name, &rows)
    }

    /// A small PNG of one colour.
    pub fn png(&self, name: &str, width: u32, height: u32, shade: u8) -> PathBuf {
        let image = image::RgbImage::from_pixel(width, height, image::Rgb([shade, shade / 2, 255 - shade]));
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        image.save(&path).expect("saved");
        path
    }
}
