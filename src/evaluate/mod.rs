//! From feature folders to a protocol: reads columns, matches labels of train and test ([`labels`]), and checks that the
//! two folders belong together. `single` reads what protocols without a training set take, `text` vectors of texts, `leak` looks for
//! test rows among the training rows. `dense` goes
//! from images with masks or depths to a result without a folder between, `robustness` from images that are corrupted first.

pub mod dense;
pub(crate) mod labels;
mod leak;
pub mod robustness;
mod single;
pub mod text;

pub use leak::{NearDuplicates, near_duplicates};
pub use single::{
    Labelled, all_labelled, by_name, describe_folders, encode, labelled, read_labelled, read_labelled_share,
};

use std::path::{Path, PathBuf};

use macula_eval::labels::UnknownLabels;
use macula_eval::protocols::linear_probe::ProbeFeatures;
use macula_eval::table::EvalResult;
use macula_eval::{LabelSet, Matrix, Split, TrainTest};

use crate::extract::model::{self, ModelOptions, OpenModel};
use crate::extract::{ExtractOptions, FeatureFolder, cls_blocks, cls_of, default_column, extract};
use crate::{Error, Result, data};

/// Features and labels of train and test, ready for a protocol. `F` is a matrix `[n, d]` a side, or what the linear probe
/// takes.
#[derive(Debug)]
pub struct LabelledPair<F = Matrix> {
    /// Train features.
    pub train: F,
    /// Class of each train row.
    pub train_labels: Vec<u32>,
    /// Test features.
    pub test: F,
    /// Class of each test row.
    pub test_labels: Vec<u32>,
    /// Place of each test row in its source.
    pub test_rows: Vec<u64>,
    /// Path of each train row.
    pub train_paths: Vec<String>,
    /// Path of each test row.
    pub test_paths: Vec<String>,
    /// The classes of train, and behind them those that only test has.
    pub classes: LabelSet,
    /// How many of them train has.
    pub n_classes: usize,
    /// Test labels that train lacks, where they are allowed: their rows count as wrong.
    pub unknown: Option<UnknownLabels>,
}

impl LabelledPair {
    /// Both sides, as protocols take them.
    pub fn data(&self) -> TrainTest<'_> {
        self.with(self.train.view(), self.test.view())
    }
}

impl LabelledPair<ProbeFeatures> {
    /// Both sides, as the linear probe takes them.
    pub fn data(&self) -> TrainTest<'_, &ProbeFeatures> {
        self.with(&self.train, &self.test)
    }
}

impl<F> LabelledPair<F> {
    /// The labels with features `train` and `test`.
    fn with<'a, G>(&'a self, train: G, test: G) -> TrainTest<'a, G> {
        TrainTest {
            train: Split::new(train, &self.train_labels),
            test: Split::new(test, &self.test_labels),
            n_classes: self.n_classes,
        }
    }
}

/// Where the features of an evaluation come from.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Feature folder of the train rows.
    pub train: PathBuf,
    /// Feature folder of the test rows.
    pub test: PathBuf,
}

impl Folders {
    /// Where a [`ModelRequest`] keeps its features in folder `keep`.
    pub fn kept_in(keep: &Path) -> Self {
        Self {
            train: keep.join("train"),
            test: keep.join("test"),
        }
    }

    /// Opens both folders and checks that one model made them.
    ///
    /// # Errors
    /// A folder that is missing or incomplete, or outputs of different widths.
    pub fn open(&self) -> Result<OpenFolders> {
        let (train, test) = (
            FeatureFolder::open(&self.train)?,
            FeatureFolder::open(&self.test)?,
        );
        train.notice_unfair(&test);
        Ok(OpenFolders { train, test })
    }
}

/// Two feature folders that belong together.
#[derive(Debug)]
pub struct OpenFolders {
    /// Train rows.
    pub train: FeatureFolder,
    /// Test rows.
    pub test: FeatureFolder,
}

impl OpenFolders {
    /// The column to use where none was named ([`default_column`]).
    pub fn default_column(&self) -> String {
        default_column(&self.train)
    }

    /// Columns that both folders hold.
    pub fn has(&self, column: &str) -> bool {
        [&self.train, &self.test]
            .iter()
            .all(|folder| folder.meta().output(column).is_some())
    }

    /// One column with labels; `allow_unknown` allows test rows with labels that train lacks.
    ///
    /// # Errors
    /// A missing column, widths that differ, rows without label, and what [`labels::classes`] has against the labels.
    pub fn labelled(&self, column: &str, allow_unknown: bool) -> Result<LabelledPair> {
        let (train, test) = self.read(column)?;
        let [train_name, test_name] =
            [&self.train, &self.test].map(|folder| folder.path().display().to_string());
        let classes = labels::classes(train.side(&train_name), test.side(&test_name), allow_unknown)?;
        Ok(LabelledPair {
            train_labels: classes.train,
            test_labels: classes.test,
            train: train.matrix,
            test: test.matrix,
            test_rows: test.rows,
            train_paths: train.paths,
            test_paths: test.paths,
            classes: classes.names,
            n_classes: classes.known,
            unknown: classes.unknown,
        })
    }

    /// One column of both folders, of one width.
    fn read(&self, column: &str) -> Result<(Labelled, Labelled)> {
        let train = read_labelled(&self.train, column)?;
        let test = read_labelled(&self.test, column)?;
        same_width(
            &self.test,
            column,
            test.matrix.view().dim(),
            train.matrix.view().dim(),
        )?;
        Ok((train, test))
    }
}

fn same_width(folder: &FeatureFolder, column: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::input(
        folder.path().display().to_string(),
        format!("column `{column}`: expected the train folder's width {expected}, found {found}"),
    ))
}

/// A model to extract with before evaluating.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The model: an ONNX file, a checkpoint, `pixels` or `hog`.
    pub model: String,
    /// Source of the train rows.
    pub train_data: String,
    /// Source of the test rows.
    pub test_data: String,
    /// Folder in which the features are kept.
    pub keep: PathBuf,
    /// How to open the model.
    pub options: ModelOptions,
    /// How to extract.
    pub extract: ExtractOptions,
}

impl ModelRequest {
    /// Extracts both sources into `keep/train` and `keep/test`, or takes what an earlier run with the same model,
    /// preprocessing and source left there.
    ///
    /// # Errors
    /// As [`extract`]; features in `keep` that were made otherwise.
    pub fn run(&self) -> Result<Folders> {
        let folders = Folders::kept_in(&self.keep);
        for (spec, out) in [
            (&self.train_data, &folders.train),
            (&self.test_data, &folders.test),
        ] {
            let source = data::open(spec)?;
            let OpenModel {
                mut model,
                preprocess,
            } = model::open(&self.model, source.as_ref(), &self.options)?;
            if kept(out) && !self.extract.force {
                tracing::info!("{}: using the features kept there", out.display());
            }
            // Resuming a complete folder reads nothing, and refuses one that was made with other settings.
            let options = ExtractOptions {
                resume: !self.extract.force,
                ..self.extract.clone()
            };
            extract(source.as_ref(), model.as_mut(), &preprocess, &options, out)?;
        }
        Ok(folders)
    }
}

fn kept(folder: &Path) -> bool {
    folder.join(crate::extract::folder::SUCCESS_FILE).is_file()
}

/// Collects what the linear probe's grid can use from two folders: `column` alone or, where it is the last block's class
/// token, with `layer:I.cls` of the three blocks before it and `patch_mean`, as far as the folders hold them. Names the
/// columns taken.
///
/// # Errors
/// As [`OpenFolders::labelled`].
pub fn probe_features(
    folders: &OpenFolders,
    column: &str,
    allow_unknown: bool,
) -> Result<(LabelledPair<ProbeFeatures>, String)> {
    let last = folders.labelled(column, allow_unknown)?;
    let mut taken = vec![column.to_owned()];
    let (mut train, mut test) = (Vec::new(), Vec::new());
    let is_last = is_last_cls(folders, column);
    if is_last {
        for name in earlier_blocks(folders) {
            let (of_train, of_test) = folders.read(&name)?;
            train.push(of_train.matrix);
            test.push(of_test.matrix);
            taken.push(name);
        }
    }
    train.push(last.train);
    test.push(last.test);
    let mut patch_mean = (None, None);
    if is_last && folders.has("patch_mean") {
        let (of_train, of_test) = folders.read("patch_mean")?;
        patch_mean = (Some(of_train.matrix), Some(of_test.matrix));
        taken.push("patch_mean".to_owned());
    }
    let pair = LabelledPair {
        train: ProbeFeatures {
            cls_blocks: train,
            patch_mean: patch_mean.0,
        },
        train_labels: last.train_labels,
        test: ProbeFeatures {
            cls_blocks: test,
            patch_mean: patch_mean.1,
        },
        test_labels: last.test_labels,
        test_rows: last.test_rows,
        train_paths: last.train_paths,
        test_paths: last.test_paths,
        classes: last.classes,
        n_classes: last.n_classes,
        unknown: last.unknown,
    };
    Ok((pair, taken.join(",")))
}

/// Whether `column` is the last block's class token: `cls`, or the highest `layer:I.cls` where there is no `cls`.
fn is_last_cls(folders: &OpenFolders, column: &str) -> bool {
    let highest = || cls_blocks(&folders.train).last().map(|&block| cls_of(block));
    column == "cls" || (!folders.has("cls") && highest().as_deref() == Some(column))
}

/// The `layer:I.cls` columns of the three blocks before the last, oldest first; none unless all three are there.
fn earlier_blocks(folders: &OpenFolders) -> Vec<String> {
    let blocks = cls_blocks(&folders.train);
    // The highest of four is the last block itself, which `cls` stands for.
    let earlier: Vec<String> = blocks
        .iter()
        .rev()
        .skip(1)
        .take(3)
        .map(|&block| cls_of(block))
        .collect();
    let there = earlier.len() == 3 && earlier.iter().all(|name| folders.has(name));
    match there {
        true => earlier.into_iter().rev().collect(),
        false => Vec::new(),
    }
}

impl OpenFolders {
    /// Writes into a result's settings which column of which folders, which images and which model it speaks of.
    pub fn describe_into(&self, result: &mut EvalResult, column: &str) {
        let settings = [
            ("column", serde_json::json!(column)),
            (
                "train",
                serde_json::json!(self.train.path().display().to_string()),
            ),
            ("test", serde_json::json!(self.test.path().display().to_string())),
            ("train_source", self.train.meta().source.clone()),
            ("test_source", self.test.meta().source.clone()),
            (
                "train_fingerprint",
                serde_json::json!(self.train.meta().fingerprint),
            ),
            (
                "test_fingerprint",
                serde_json::json!(self.test.meta().fingerprint),
            ),
            ("model", self.train.meta().model.clone()),
            ("tool_version", serde_json::json!(env!("CARGO_PKG_VERSION"))),
        ];
        if let serde_json::Value::Object(map) = &mut result.settings {
            map.extend(settings.map(|(key, value)| (key.to_owned(), value)));
        }
    }
}
