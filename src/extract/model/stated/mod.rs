//! What the files beside a model say of how its images are prepared: `preprocessor_config.json` of transformers
//! ([`hugging_face`]), `config.json` of timm ([`timm`]) and `open_clip_config.json` ([`open_clip`]). What they ask for and macula
//! does not do is an error that names the field, unless a flag gives that part; nothing is passed over in silence. What a released
//! network has that is opened by name stands in [`published`].

mod hugging_face;
mod open_clip;
mod published;
mod timm;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::preprocess::PreprocessOverrides;
use crate::data::{Interpolation, Preprocess};
use crate::{Error, Result};

pub(super) use published::by_name;

/// A statement, and the file that makes it.
pub(super) struct Stated {
    pub file: PathBuf,
    pub preprocess: Preprocess,
}

/// What the first of the known files in the folder of `model` says; parts that `flags` give are not read. An ONNX file in a
/// folder `onnx` belongs to the files one folder above.
///
/// # Errors
/// A file that cannot be read, and what macula cannot do.
pub(super) fn beside(model: &Path, flags: &PreprocessOverrides) -> Result<Option<Stated>> {
    for folder in folders(model) {
        for (name, read) in FILES {
            let file = folder.join(name);
            if !file.is_file() {
                continue;
            }
            let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
            let text = file.display().to_string();
            let value: Value =
                serde_json::from_slice(&bytes).map_err(|e| Error::input(text.as_str(), e.to_string()))?;
            let Value::Object(map) = &value else {
                return Err(Error::input(text, "expected a JSON object"));
            };
            if let Some(preprocess) = read(&Fields { file: &text, map }, flags)? {
                return Ok(Some(Stated { file, preprocess }));
            }
        }
    }
    Ok(None)
}

/// Reads a statement; `None` from a file that makes none.
type Reader = fn(&Fields, &PreprocessOverrides) -> Result<Option<Preprocess>>;

/// The files, the most particular first.
const FILES: [(&str, Reader); 4] = [
    ("preprocessor_config.json", hugging_face::read),
    ("processor_config.json", hugging_face::read_nested),
    ("open_clip_config.json", open_clip::read),
    ("config.json", timm::read),
];

fn folders(model: &Path) -> Vec<PathBuf> {
    if model.is_dir() {
        return vec![model.to_owned()];
    }
    let parent = match model.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    // `./onnx` and a folder entered by `cd` have the name only in full.
    let named_onnx = parent
        .canonicalize()
        .is_ok_and(|folder| folder.file_name().is_some_and(|name| name == "onnx"));
    match named_onnx {
        true => vec![parent.clone(), parent.join("..")],
        false => vec![parent],
    }
}

/// The fields of a JSON object; null counts as absent.
pub(super) struct Fields<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error about `key`; `flags` are those that give this part instead.
    fn refuse(&self, key: &str, expected: &str, flags: &str) -> Error {
        let found = match self.get(key) {
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        };
        let instead = match flags {
            "" => String::new(),
            flags => format!(" ({flags} would be used instead)"),
        };
        Error::input(
            self.file,
            format!("{key}: expected {expected}, found {found}{instead}"),
        )
    }

    fn object(&self, key: &str) -> Option<Fields<'a>> {
        let map = self.get(key)?.as_object()?;
        Some(Fields { file: self.file, map })
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    fn truth(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(_) => Err(self.refuse(key, "true or false", "")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.refuse(key, "a number", "")),
            },
        }
    }

    /// Three numbers, given as three, or as one for all.
    fn triple(&self, key: &str, flag: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let list = match value {
            Value::Array(list) => list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>(),
            one => one.as_f64().map(|one| vec![one]),
        };
        match list.as_deref() {
            Some([red, green, blue]) => Ok(Some([*red, *green, *blue])),
            Some([one]) => Ok(Some([*one; 3])),
            _ => Err(self.refuse(key, "three numbers, one a channel", flag)),
        }
    }

    /// Height and width, given as `[h, w]` or as one number for both.
    fn sides(&self, key: &str) -> Result<Option<(u32, u32)>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let sides = match value {
            Value::Array(list) => list.iter().map(pixels).collect::<Option<Vec<u32>>>(),
            one => pixels(one).map(|side| vec![side, side]),
        };
        match sides.as_deref() {
            Some([height, width]) => Ok(Some((*height, *width))),
            _ => Err(self.refuse(key, "one number of pixels or [height, width]", GEOMETRY_FLAGS)),
        }
    }

    /// The flag's filter, else the named one of `interpolation`, else the usual one of those who write it by name.
    fn filter_or_bicubic(&self, flags: &PreprocessOverrides) -> Result<Interpolation> {
        match (flags.interpolation, self.get("interpolation").map(Value::as_str)) {
            (Some(filter), _) => Ok(filter),
            (None, None | Some(Some("bicubic"))) => Ok(Interpolation::Bicubic),
            (None, Some(Some("bilinear"))) => Ok(Interpolation::Bilinear),
            _ => Err(self.refuse("interpolation", "bicubic or bilinear", "--interpolation")),
        }
    }

    /// `mean` and `std`: the flags', else those stated, else the usual ones.
    fn mean_and_std(
        &self,
        flags: &PreprocessOverrides,
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let three = |key: &str, given: &Option<Vec<f32>>, flag: &str, usual: [f32; 3]| -> Result<Vec<f32>> {
            match given {
                Some(given) => Ok(given.clone()),
                None => {
                    let stated = self.triple(key, flag)?;
                    let stated = stated.map_or(usual, |three| three.map(|value| value as f32));
                    Ok(stated.to_vec())
                }
            }
        };
        Ok((
            three("mean", &flags.mean, "--mean", mean)?,
            three("std", &flags.std, "--std", std)?,
        ))
    }
}

/// The flags that give resize and crop.
const GEOMETRY_FLAGS: &str = "--resize and --crop";

/// A number of pixels.
fn pixels(value: &Value) -> Option<u32> {
    let number = value
        .as_f64()
        .filter(|number| number.fract() == 0.0 && *number >= 1.0)?;
    (number <= f64::from(u32::MAX)).then_some(number as u32)
}

/// Whether flags give both resize and crop.
fn has_geometry(flags: &PreprocessOverrides) -> bool {
    flags.resize.is_some() && flags.crop.is_some()
}

#[cfg(test)]
mod tests;
