//! Whether a file is an image: by its extension, and where that is unknown, by its first bytes. What belongs to the system or
//! is hidden is none, whatever its name.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::data::decode::announces_image;

/// Extensions of images, in lower case.
pub(super) const EXTENSIONS: [&str; 16] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm",
    "pnm", "pfm",
];
/// Extensions of files that are something else, which are not opened to see. Raw photographs begin like TIFF, and are none.
const OTHERS: [&str; 64] = [
    "txt",
    "json",
    "jsonl",
    "ndjson",
    "xml",
    "csv",
    "tsv",
    "md",
    "rst",
    "html",
    "htm",
    "css",
    "js",
    "py",
    "pyc",
    "ipynb",
    "sh",
    "log",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "npy",
    "npz",
    "pt",
    "pth",
    "pkl",
    "pickle",
    "mat",
    "h5",
    "hdf5",
    "onnx",
    "safetensors",
    "parquet",
    "arrow",
    "tar",
    "tgz",
    "gz",
    "bz2",
    "xz",
    "zst",
    "zip",
    "7z",
    "rar",
    "pdf",
    "mp3",
    "wav",
    "mp4",
    "mov",
    "avi",
    "mkv",
    "webm",
    "cls",
    "dng",
    "nef",
    "cr2",
    "cr3",
    "arw",
    "orf",
    "rw2",
    "raf",
    "db",
    "lock",
];
/// Names that systems and programs leave behind, in lower case.
const SYSTEM: [&str; 11] = [
    "__macosx",
    "@eadir",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "#recycle",
    "@recycle",
    "__pycache__",
];
/// Bytes that tell the kind of a file.
const ENOUGH: u64 = 32;

/// Why an entry of this name is no part of a source; `None` where it is one.
pub(super) fn is_passed_over(name: &str) -> Option<&'static str> {
    if SYSTEM.contains(&name.to_lowercase().as_str()) {
        return Some("of the system");
    }
    name.starts_with('.').then_some("hidden")
}

/// Whether a file is an array of NumPy's by its name: bands in a folder without pictures, and no image beside them.
pub(super) fn is_array(name: &Path) -> bool {
    name.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}

/// What an extension says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    Other,
    /// Its bytes must say.
    Unknown,
}

/// What the extension of `name` says.
pub(super) fn by_name(name: &Path) -> Kind {
    let Some(extension) = name.extension() else {
        return Kind::Unknown;
    };
    let extension = extension.to_ascii_lowercase();
    let is_one_of = |known: &[&str]| known.iter().any(|known| extension == **known);
    match (is_one_of(&EXTENSIONS), is_one_of(&OTHERS)) {
        (true, _) => Kind::Image,
        (_, true) => Kind::Other,
        _ => Kind::Unknown,
    }
}

/// Whether what `from` gives begins like an image.
pub(super) fn begins_like_image(from: impl std::io::Read) -> bool {
    let mut start = Vec::new();
    from.take(ENOUGH).read_to_end(&mut start).is_ok() && announces_image(&start)
}

/// Whether the file `path` is an image by its name, or by its bytes where the name does not tell.
pub(super) fn is_image_file(path: &Path) -> bool {
    match by_name(path) {
        Kind::Image => true,
        Kind::Other => false,
        // A pipe would wait for ever.
        Kind::Unknown => path.is_file() && File::open(path).is_ok_and(begins_like_image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_systems_and_hidden_ones() {
        for name in ["Thumbs.db", "@eaDir", "__MACOSX", "desktop.ini"] {
            assert_eq!(is_passed_over(name), Some("of the system"), "{name}");
        }
        for name in ["._a.jpg", ".git", ".DS_Store", ".ipynb_checkpoints"] {
            assert_eq!(is_passed_over(name), Some("hidden"), "{name}");
        }
        for name in ["a.jpg", "_a", "@home", "db"] {
            assert_eq!(is_passed_over(name), None, "{name}");
        }
    }

    #[test]
    fn extensions_in_either_case() {
        for name in ["a.JFIF", "b.jpe", "c.PGM", "d.e.png"] {
            assert_eq!(by_name(Path::new(name)), Kind::Image, "{name}");
        }
        assert_eq!(by_name(Path::new("a.NEF")), Kind::Other);
        assert_eq!(by_name(Path::new("a.jpg_large")), Kind::Unknown);
        assert_eq!(by_name(Path::new("a")), Kind::Unknown);
    }
}
