//! Pictures inside the page.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::escaped;
use crate::{Error, Result};

/// A picture that is embedded.
#[derive(Debug)]
pub(in crate::report) struct Picture {
    name: String,
    media_type: &'static str,
    bytes: Vec<u8>,
}

impl Picture {
    /// Reads the files.
    ///
    /// # Errors
    /// Names a file that cannot be read or that is no PNG, JPEG or WebP.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let media_type = match bytes.as_slice() {
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [0xff, 0xd8, ..] => "image/jpeg",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            _ => {
                return Err(Error::input(
                    path.display().to_string(),
                    "expected a PNG, JPEG or WebP picture, found another file",
                ));
            }
        };
        Ok(Self {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            media_type,
            bytes,
        })
    }
}

/// The section of pictures; nothing where there are none.
pub(super) fn section(pictures: &[Picture]) -> String {
    if pictures.is_empty() {
        return String::new();
    }
    let mut html = "<section>\n<h2>Pictures</h2>\n<div class=\"pictures\">\n".to_owned();
    for picture in pictures {
        let name = escaped(&picture.name);
        html += &format!(
            "<figure><img alt=\"{name}\" src=\"data:{};base64,{}\"><figcaption>{name}</figcaption></figure>\n",
            picture.media_type,
            BASE64.encode(&picture.bytes)
        );
    }
    html + "</div>\n</section>\n"
}
