//! A folder: the images below it, in the byte order of their relative paths. Where every image lies in a first-level
//! folder, those folders are the classes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{EXTENSIONS, Record, RowError, Source, is_image_name, load_file, lossless, place};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// The images below a folder.
pub(super) struct Folder {
    root: PathBuf,
    files: Vec<PathBuf>, // relative to the root
    labelled: bool,
}

impl Folder {
    /// Lists the images below `root`, following links but never into a loop.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let real = fs::canonicalize(root).map_err(|error| Error::io(root, error))?;
        let mut files = Vec::new();
        walk(root, Path::new(""), &mut vec![real], &mut files)?;
        if files.is_empty() {
            let known = EXTENSIONS.join(", ");
            return Err(Error::input(
                lossless(root),
                format!("no image below this folder (looked for {known})"),
            ));
        }
        files.sort_by(|a, b| {
            a.as_os_str()
                .as_encoded_bytes()
                .cmp(b.as_os_str().as_encoded_bytes())
        });
        let labelled = files.iter().all(|file| file.components().count() > 1);
        Ok(Self {
            root: root.to_path_buf(),
            files,
            labelled,
        })
    }

    fn class(&self, file: &Path) -> Option<String> {
        let first = file.components().next().filter(|_| self.labelled)?;
        Some(lossless(Path::new(first.as_os_str())))
    }
}

/// Adds the images of `root/relative` and of the folders in it to `files`. `parents` are the real paths of the folders that
/// lead here: a link back to one of them is a loop, and is not followed.
fn walk(root: &Path, relative: &Path, parents: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(relative);
    for entry in fs::read_dir(&folder).map_err(|error| Error::io(&folder, error))? {
        let entry = entry.map_err(|error| Error::io(&folder, error))?;
        let path = entry.path();
        let below = relative.join(entry.file_name());
        let kind = entry.file_type().map_err(|error| Error::io(&path, error))?;
        // A link that leads nowhere stays a row if it is named like an image, and fails when it is loaded.
        let is_folder = if kind.is_symlink() {
            path.is_dir()
        } else {
            kind.is_dir()
        };
        if is_folder {
            let real = fs::canonicalize(&path).map_err(|error| Error::io(&path, error))?;
            if !parents.contains(&real) {
                parents.push(real);
                walk(root, &below, parents, files)?;
                parents.pop();
            }
        } else if is_image_name(&path) {
            files.push(below);
        }
    }
    Ok(())
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
        json!({
            "kind": "folder",
            "path": lossless(&self.root),
            "images": self.files.len(),
            "classes": self.labelled.then_some(classes.len()),
        })
    }
}
