//! The hash of a model's files. Checkpoints are hashed where they are read (`macula_models::weights`), over all their files.

use std::path::{Component, Path, PathBuf};

use macula_models::onnx::external_files;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result, files};

/// An ONNX file with all that it keeps its values in, every part of it there.
pub struct OnnxFiles<'a> {
    model: &'a Path,
    /// The other files as the model refers to them, in that order, and where they are.
    parts: Vec<(String, PathBuf)>,
}

impl<'a> OnnxFiles<'a> {
    /// Those of `model`; reads no values.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be read, and where one is referred to that is not below the model's folder.
    pub fn of(model: &'a Path) -> Result<Self> {
        let folder = model.parent().unwrap_or(Path::new(""));
        let part = |location: String| {
            let path = checked(model, folder, &location)?;
            Ok((location, path))
        };
        let parts = external_files(model)?.into_iter().map(part);
        let parts = parts.collect::<Result<_>>()?;
        Ok(Self { model, parts })
    }

    /// SHA-256: the model's own where it stands alone, else over the names and hashes of the other files and its own.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn sha256(&self) -> Result<String> {
        let own = files::sha256(self.model)?;
        if self.parts.is_empty() {
            return Ok(own);
        }
        let mut hash = Sha256::new();
        for (location, part) in &self.parts {
            hash.update((location.len() as u64).to_le_bytes());
            hash.update(location);
            hash.update(files::sha256(part)?);
        }
        hash.update(own);
        Ok(files::hex(&hash.finalize()))
    }
}

fn checked(model: &Path, folder: &Path, location: &str) -> Result<PathBuf> {
    let below = Path::new(location);
    let is_below = below
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let name = || model.display().to_string();
    if !is_below || location.is_empty() {
        let reason = format!("external data: expected a file below the model's folder, found `{location}`");
        return Err(Error::input(name(), reason));
    }
    let part = folder.join(below);
    if !part.is_file() {
        let reason = format!(
            "external data: expected {} beside the model, found no such file",
            part.display()
        );
        return Err(Error::input(name(), reason));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use macula_models::onnx::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
    use prost::Message as _;

    use super::*;

    fn onnx_sha256(path: &Path) -> Result<String> {
        OnnxFiles::of(path)?.sha256()
    }

    fn model(locations: &[&str]) -> Vec<u8> {
        let tensor = |location: &&str| TensorProto {
            external_data: vec![StringStringEntryProto {
                key: "location".into(),
                value: (*location).into(),
            }],
            ..TensorProto::default()
        };
        let graph = GraphProto {
            initializer: locations.iter().map(tensor).collect(),
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn external_data_is_part_of_the_model_and_its_name_is_not() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("m.onnx"), model(&["w.bin", "sub/v.bin"])).unwrap();
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("w.bin"), "one").unwrap();
        fs::write(at("sub/v.bin"), "two").unwrap();
        let first = onnx_sha256(&at("m.onnx")).unwrap();
        fs::copy(at("m.onnx"), at("renamed.onnx")).unwrap();
        assert_eq!(onnx_sha256(&at("renamed.onnx")).unwrap(), first);
        fs::write(at("sub/v.bin"), "twO").unwrap();
        let changed = onnx_sha256(&at("m.onnx")).unwrap();
        assert_ne!(changed, first);
        fs::write(at("sub/v.bin"), "one").unwrap();
        fs::write(at("w.bin"), "two").unwrap();
        assert_ne!(
            onnx_sha256(&at("m.onnx")).unwrap(),
            first,
            "the parts have changed places"
        );

        fs::remove_file(at("w.bin")).unwrap();
        let text = onnx_sha256(&at("m.onnx")).unwrap_err().to_string();
        assert!(
            text.contains("m.onnx: external data: expected ") && text.contains("w.bin"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_stands_alone_has_its_own_hash() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.onnx");
        fs::write(&path, model(&[])).unwrap();
        assert_eq!(onnx_sha256(&path).unwrap(), files::sha256(&path).unwrap());
    }

    #[test]
    fn only_files_below_the_model_are_read() {
        let place = tempfile::tempdir().unwrap();
        for location in ["../secret", "/etc/hostname", ""] {
            let path = place.path().join("m.onnx");
            fs::write(&path, model(&[location])).unwrap();
            let error = onnx_sha256(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("below the model's folder"), "{error}");
        }
    }
}
