//! The folder layouts of the standard sets with a mask or a depth for every image, as they are unpacked: `ade20k:ROOT#train`
//! (ADEChallengeData2016), `voc:ROOT#train` (VOCdevkit/VOC2012) and `nyu:ROOT#train` (NYU depth v2 as mmseg lists it).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::kind::is_passed_over;
use super::{Record, RowError, Source, load_file, lossless, place, sha256};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// What lies beside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Mask,
    Depth,
}

/// One image and its target, as paths.
struct Pair {
    name: String,
    image: PathBuf,
    target: PathBuf,
}

/// The images of one split of a standard set.
pub(super) struct Layout {
    spec: String,
    target: Target,
    pairs: Vec<Pair>,
    sha256: String,
}

impl Layout {
    /// Reads `spec` where it begins like one of the layouts; `None` for any other.
    pub(super) fn open(spec: &str) -> Option<Result<Self>> {
        let (kind, rest) = spec.split_once(':')?;
        let read: fn(&Path, &str) -> Result<Vec<Pair>> = match kind {
            "ade20k" => ade20k,
            "voc" => voc,
            "nyu" => nyu,
            _ => return None,
        };
        let target = if kind == "nyu" {
            Target::Depth
        } else {
            Target::Mask
        };
        Some(Self::read(spec, kind, rest, target, read))
    }

    fn read(
        spec: &str,
        kind: &str,
        rest: &str,
        target: Target,
        read: fn(&Path, &str) -> Result<Vec<Pair>>,
    ) -> Result<Self> {
        let Some((root, split)) = rest.split_once('#') else {
            return Err(Error::input(
                spec,
                format!("expected {kind}:FOLDER#train or another split after the #"),
            ));
        };
        let pairs = read(Path::new(root), split)?;
        if pairs.is_empty() {
            return Err(Error::input(spec, "expected at least one image, found none"));
        }
        let names: Vec<&[u8]> = pairs.iter().map(|pair| pair.name.as_bytes()).collect();
        Ok(Self {
            spec: spec.to_owned(),
            target,
            sha256: sha256(&names),
            pairs,
        })
    }
}

/// `images/training/X.jpg` with `annotations/training/X.png`; `val` is `validation`.
fn ade20k(root: &Path, split: &str) -> Result<Vec<Pair>> {
    let folder = match split {
        "train" | "training" => "training",
        "val" | "validation" => "validation",
        other => return Err(unknown_split(other, "train or val")),
    };
    let (images, masks) = (
        root.join("images").join(folder),
        root.join("annotations").join(folder),
    );
    let mut names = Vec::new();
    for entry in fs::read_dir(&images).map_err(|error| Error::io(&images, error))? {
        let path = entry.map_err(|error| Error::io(&images, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_photo = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("jpg"));
        if is_photo && is_passed_over(&name).is_none() {
            names.push(path);
        }
    }
    names.sort();
    Ok(names
        .into_iter()
        .map(|image| {
            let stem = PathBuf::from(image.file_stem().unwrap_or_default());
            Pair {
                name: lossless(&stem),
                target: masks.join(with_extension(&stem, "png")),
                image,
            }
        })
        .collect())
}

/// The names in `ImageSets/Segmentation/SPLIT.txt`, in `JPEGImages` and `SegmentationClass`.
fn voc(root: &Path, split: &str) -> Result<Vec<Pair>> {
    let list = root.join("ImageSets/Segmentation").join(format!("{split}.txt"));
    let pair = |line: &str| {
        let name = line.trim();
        Some(Pair {
            name: name.to_owned(),
            image: root.join("JPEGImages").join(format!("{name}.jpg")),
            target: root.join("SegmentationClass").join(format!("{name}.png")),
        })
    };
    lines(&list, "a name", pair)
}

/// The lines of `nyu_SPLIT.txt`: image, depth and focal length; the paths begin with a slash and mean `ROOT`.
fn nyu(root: &Path, split: &str) -> Result<Vec<Pair>> {
    let list = root.join(format!("nyu_{split}.txt"));
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        let (image, depth) = (words.next()?, words.next()?);
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        Some(Pair {
            name: image.to_owned(),
            image: below(image),
            target: below(depth),
        })
    };
    lines(&list, "an image and a depth", pair)
}

/// One pair a line of `list`; empty lines are skipped.
fn lines(list: &Path, expected: &str, pair: impl Fn(&str) -> Option<Pair>) -> Result<Vec<Pair>> {
    let text = fs::read_to_string(list).map_err(|error| Error::io(list, error))?;
    let filled = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(number, line)| {
            pair(line).ok_or_else(|| {
                Error::input(
                    lossless(list),
                    format!(
                        "line {}: expected {expected}, found `{}`",
                        number + 1,
                        line.trim()
                    ),
                )
            })
        })
        .collect()
}

/// `stem` with an ending, whatever dots are in it.
fn with_extension(stem: &Path, extension: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn unknown_split(found: &str, expected: &str) -> Error {
    Error::input("split", format!("expected {expected}, found `{found}`"))
}

impl Source for Layout {
    fn len(&self) -> u64 {
        self.pairs.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let pair = &self.pairs[place(row)];
        let target = Some(pair.target.clone());
        let (mask, depth) = match self.target {
            Target::Mask => (target, None),
            Target::Depth => (None, target),
        };
        Record {
            mask,
            depth,
            ..Record::new(row, pair.name.clone(), None)
        }
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        load_file(&self.pairs[place(row)].image, options)
    }

    fn file(&self, row: u64) -> Option<PathBuf> {
        Some(self.pairs[place(row)].image.clone())
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "layout",
            "path": self.spec,
            "images": self.pairs.len(),
            "sha256": self.sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn open(kind: &str, root: &Path, split: &str) -> Result<Layout> {
        Layout::open(&format!("{kind}:{}#{split}", root.display())).expect("a layout")
    }

    #[test]
    fn each_layout_finds_image_and_target() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        touch(root, "images/validation/b.1.jpg", "");
        touch(root, "images/validation/a.jpg", "");
        touch(root, "images/validation/note.txt", "");
        touch(root, "ImageSets/Segmentation/train.txt", "2007_1\n\n2007_2 \n");
        touch(root, "nyu_test.txt", "/bath/rgb_1.jpg /bath/depth_1.png 518.8\n");

        let ade = open("ade20k", root, "val").unwrap();
        assert_eq!(ade.len(), 2);
        let second = ade.record(1);
        assert_eq!(second.path, "b.1");
        assert_eq!(second.mask.unwrap(), root.join("annotations/validation/b.1.png"));
        assert_eq!(ade.file(0).unwrap(), root.join("images/validation/a.jpg"));

        let voc = open("voc", root, "train").unwrap();
        assert_eq!(voc.file(1).unwrap(), root.join("JPEGImages/2007_2.jpg"));
        assert_eq!(
            voc.record(1).mask.unwrap(),
            root.join("SegmentationClass/2007_2.png")
        );

        let nyu = open("nyu", root, "test").unwrap();
        assert_eq!(nyu.file(0).unwrap(), root.join("bath/rgb_1.jpg"));
        let record = nyu.record(0);
        assert_eq!(
            (record.depth.unwrap(), record.mask),
            (root.join("bath/depth_1.png"), None)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        touch(root, "nyu_train.txt", "/a.jpg /a.png 1\n/b.jpg\n");
        touch(root, "ImageSets/Segmentation/none.txt", "\n");
        let error = |kind: &str, split: &str| open(kind, root, split).err().unwrap().to_string();
        assert!(error("nyu", "train").ends_with("line 2: expected an image and a depth, found `/b.jpg`"));
        assert!(error("nyu", "val").contains("nyu_val.txt"));
        assert!(error("ade20k", "test").ends_with("expected train or val, found `test`"));
        assert!(error("voc", "none").ends_with("expected at least one image, found none"));
        assert!(
            Layout::open("voc:somewhere")
                .unwrap()
                .err()
                .unwrap()
                .to_string()
                .contains("#train")
        );
        assert!(Layout::open("photos:x#y").is_none() && Layout::open("photos").is_none());
    }
}
