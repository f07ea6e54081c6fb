//! A folder: the images below it, in the byte order of their relative paths. Where every image lies in a first-level
//! folder, those folders are the classes. What is hidden or the system's own is neither image nor class. Arrays (`.npy`) are the images
//! of a folder that has no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::kind::{EXTENSIONS, is_array, is_image_file, is_passed_over};
use super::notice::{PassedOver, say_once, warn_once};
use super::{Record, RowError, Source, load_file, lossless, place};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// Archives that must be unpacked first.
const ARCHIVES: [&str; 9] = ["zip", "tgz", "gz", "bz2", "xz", "zst", "7z", "rar", "tbz"];

/// The images below a folder.
pub(super) struct Folder {
    root: PathBuf,
    files: Vec<PathBuf>, // relative to the root
    labelled: bool,
    /// Why images in folders have no classes.
    no_labels: Option<String>,
}

/// What lies below a folder, as far as it was walked.
#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    arrays: Vec<PathBuf>,
    others: Vec<PathBuf>,
    passed: PassedOver,
}

impl Found {
    /// Decides what arrays are: the images where there are no others.
    fn place_arrays(&mut self) {
        let arrays = std::mem::take(&mut self.arrays);
        if self.files.is_empty() {
            self.files = arrays;
            return;
        }
        for array in arrays {
            self.passed.count_kind(&lossless(&array));
            self.others.push(array);
        }
    }
}

impl Folder {
    /// Lists the images below `root`, following links but never into a loop.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let real = fs::canonicalize(root).map_err(|error| Error::io(root, error))?;
        let mut found = Found::default();
        walk(root, Path::new(""), &mut vec![real], &mut found)?;
        found.place_arrays();
        let mut files = found.files;
        if files.is_empty() {
            return Err(Error::input(
                lossless(root),
                no_image(root, &found.others, &found.passed),
            ));
        }
        found.passed.say(&lossless(root));
        files.sort_by(|a, b| {
            a.as_os_str()
                .as_encoded_bytes()
                .cmp(b.as_os_str().as_encoded_bytes())
        });
        let labelled = files.iter().all(|file| file.components().count() > 1);
        let folder = Self {
            no_labels: stray(&files),
            root: root.to_path_buf(),
            files,
            labelled,
        };
        folder.tell();
        Ok(folder)
    }

    /// Says what is odd about the classes.
    fn tell(&self) {
        let root = lossless(&self.root);
        if let Some(reason) = &self.no_labels {
            warn_once(format!("{root}: {reason}"));
        }
        let mut by_lower: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for class in self.files.iter().filter_map(|file| self.class(file)) {
            by_lower.entry(class.to_lowercase()).or_default().insert(class);
        }
        for alike in by_lower.values().filter(|alike| alike.len() > 1) {
            let alike: Vec<String> = alike.iter().map(|class| format!("`{class}`")).collect();
            say_once(format!(
                "{root}: the classes {} differ in case alone, and are classes of their own",
                alike.join(" and ")
            ));
        }
    }

    fn class(&self, file: &Path) -> Option<String> {
        let first = file.components().next().filter(|_| self.labelled)?;
        Some(lossless(Path::new(first.as_os_str())))
    }
}

/// Why there are no classes although some images lie in folders.
fn stray(files: &[PathBuf]) -> Option<String> {
    let mut beside = files.iter().filter(|file| file.components().count() == 1);
    let first = beside.next()?;
    let count = 1 + beside.count();
    (count < files.len()).then(|| {
        format!(
            "no labels: {count} of {} images {} beside the folders that would be the classes (first: {}): move {} into one, or give a list",
            files.len(),
            if count == 1 { "lies" } else { "lie" },
            lossless(first),
            if count == 1 { "it" } else { "them" },
        )
    })
}

/// Adds the images of `root/relative` and of the folders in it to `found`. `parents` are the real paths of the folders that
/// lead here: a link back to one of them is a loop, and is not followed.
fn walk(root: &Path, relative: &Path, parents: &mut Vec<PathBuf>, found: &mut Found) -> Result<()> {
    let folder = root.join(relative);
    for entry in fs::read_dir(&folder).map_err(|error| Error::io(&folder, error))? {
        let entry = entry.map_err(|error| Error::io(&folder, error))?;
        let path = entry.path();
        let below = relative.join(entry.file_name());
        if let Some(reason) = is_passed_over(&entry.file_name().to_string_lossy()) {
            found.passed.count(reason, &lossless(&below));
            continue;
        }
        let kind = entry.file_type().map_err(|error| Error::io(&path, error))?;
        // A link that leads nowhere stays a row if it is named like an image, and fails when it is loaded.
        let is_folder = if kind.is_symlink() {
            path.is_dir()
        } else {
            kind.is_dir()
        };
        if is_folder {
            let real = fs::canonicalize(&path).map_err(|error| Error::io(&path, error))?;
            if parents.contains(&real) {
                found
                    .passed
                    .count("links to a folder that they lie in", &lossless(&below));
            } else {
                parents.push(real);
                walk(root, &below, parents, found)?;
                parents.pop();
            }
        } else if is_image_file(&path) {
            found.files.push(below);
        } else if is_array(&path) {
            found.arrays.push(below);
        } else if kind.is_symlink() && !path.exists() {
            found.passed.count("links that lead nowhere", &lossless(&below));
        } else {
            found.passed.count_kind(&lossless(&below));
            found.others.push(below);
        }
    }
    Ok(())
}

/// What to write in place of a folder without images, as far as what is in it tells.
fn no_image(root: &Path, others: &[PathBuf], passed: &PassedOver) -> String {
    let ends = |path: &&PathBuf, ends: &[&str]| {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        extension.is_some_and(|extension| ends.iter().any(|end| extension == **end))
    };
    let of = |wanted: &[&str]| -> Vec<&PathBuf> { others.iter().filter(|path| ends(path, wanted)).collect() };
    let (parquets, tars, lists) = (of(&["parquet"]), of(&["tar"]), of(&["csv", "tsv"]));
    let idx = others
        .iter()
        .find(|path| path.to_string_lossy().contains("-images") && path.to_string_lossy().contains("ubyte"));
    let below = |path: &Path| lossless(&root.join(path.parent().unwrap_or(Path::new(""))));
    if !parquets.is_empty() || !tars.is_empty() {
        let (kind, files) = if parquets.is_empty() {
            ("tar", tars)
        } else {
            ("Parquet", parquets)
        };
        let patterns: BTreeSet<String> = files.iter().map(|file| pattern(root, file)).collect();
        let patterns: Vec<String> = patterns.into_iter().take(4).collect();
        return format!(
            "no image below this folder, but {} {kind} {}: write {}",
            files.len(),
            if files.len() == 1 { "file" } else { "files" },
            patterns.join(" or ")
        );
    }
    if let Some(list) = lists.first() {
        return format!(
            "no image below this folder, but a list: write '{}'",
            lossless(&root.join(list))
        );
    }
    if let Some(idx) = idx {
        return format!(
            "no image below this folder, but IDX files: write 'idx:{}#train' or #test",
            below(idx)
        );
    }
    if let Some(archive) = of(&ARCHIVES).first() {
        return format!(
            "no image below this folder, but an archive to unpack first: {}",
            lossless(archive)
        );
    }
    let known = EXTENSIONS.join(", ");
    let passed = passed.line().map_or(String::new(), |line| format!("; {line}"));
    format!("no image below this folder (looked for {known}){passed}")
}

/// The pattern that names a shard and its neighbours: those of one split where the names say so, as in
/// `train-00000-of-00004.parquet`.
fn pattern(root: &Path, shard: &Path) -> String {
    let folder = root.join(shard.parent().unwrap_or(Path::new("")));
    let name = shard.file_name().unwrap_or_default().to_string_lossy();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let split = ["train", "test", "validation", "val", "dev"]
        .into_iter()
        .find(|split| name.strip_prefix(split).is_some_and(|rest| rest.starts_with('-')));
    let before = split.map_or(String::new(), |split| format!("{split}-"));
    format!("'{}'", lossless(&folder.join(format!("{before}*.{extension}"))))
}

impl Source for Folder {
    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let file = &self.files[place(row)];
        Record::new(row, lossless(file), self.class(file))
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        load_file(&self.root.join(&self.files[place(row)]), options)
    }

    fn file(&self, row: u64) -> Option<PathBuf> {
        Some(self.root.join(&self.files[place(row)]))
    }

    fn describe(&self) -> serde_json::Value {
        // Sorted by path, so the files of one class are neighbours.
        let mut classes: Vec<String> = self.files.iter().filter_map(|file| self.class(file)).collect();
        classes.sort();
        classes.dedup();
        let mut described = json!({
            "kind": "folder",
            "path": lossless(&self.root),
            "images": self.files.len(),
            "classes": self.labelled.then_some(classes.len()),
        });
        if let Some(reason) = &self.no_labels {
            described["no_labels"] = json!(reason);
        }
        described
    }
}
