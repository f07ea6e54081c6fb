//! The layout that clip-retrieval and autofaiss read, beside the parts: `img_emb/img_emb_K.npy` with the rows that have
//! features, and `metadata/metadata_K.parquet` with their paths and labels in the same order.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use polars::prelude::*;

use super::meta;
use super::remove_inner;
use crate::device::Dtype;
use crate::extract::sink::PartRows;
use crate::files::write_whole;
use crate::{Error, Result};

const EMBEDDINGS: &str = "img_emb";
const METADATA: &str = "metadata";

/// The two files of part `index`.
fn files(folder: &Path, index: u64) -> [PathBuf; 2] {
    [
        folder.join(EMBEDDINGS).join(format!("{EMBEDDINGS}_{index}.npy")),
        folder.join(METADATA).join(format!("{METADATA}_{index}.parquet")),
    ]
}

/// Writes the first output of `part`, `width` values a row.
///
/// # Errors
/// The system's or Polars' word with the path.
pub(super) fn write(folder: &Path, index: u64, part: &PartRows, width: usize, dtype: Dtype) -> Result<()> {
    let [embeddings, metadata] = files(folder, index);
    for file in [&embeddings, &metadata] {
        let parent = file.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    }
    let values = part.values.first().map_or(&[][..], Vec::as_slice);
    write_whole(&embeddings, |file| {
        let mut file = std::io::BufWriter::new(file);
        file.write_all(&header(values.len() / width, width, dtype))
            .and_then(|()| file.write_all(&meta::bytes(dtype, values)))
            .and_then(|()| file.flush())
            .map_err(|e| Error::io(&embeddings, e))
    })?;
    let present = |index: &usize| part.present[*index];
    let rows: Vec<usize> = (0..part.rows.len()).filter(present).collect();
    let paths: Vec<&str> = rows.iter().map(|&i| part.paths[i].as_str()).collect();
    let labels: Vec<Option<&str>> = rows.iter().map(|&i| part.labels[i].as_deref()).collect();
    let numbers: Vec<u64> = rows.iter().map(|&i| part.rows[i]).collect();
    let failed = |e: PolarsError| Error::failed(metadata.display().to_string(), e.to_string());
    let mut frame = df!("image_path" => paths, "label" => labels, "row" => numbers).map_err(failed)?;
    write_whole(&metadata, |file| {
        ParquetWriter::new(file).finish(&mut frame).map_err(failed)?;
        Ok(())
    })
}

/// The header of a version 1.0 `.npy` file of `[rows, width]` (NumPy's NEP 1): its length is a multiple of 64.
fn header(rows: usize, width: usize, dtype: Dtype) -> Vec<u8> {
    let descr = match dtype {
        Dtype::F16 => "<f2",
        _ => "<f4",
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let unpadded = 10 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

/// Removes what [`write()`] made, and its folders where nothing else is in them.
///
/// # Errors
/// The system's word with the path.
pub(super) fn remove(folder: &Path) -> Result<()> {
    for (name, ending) in [(EMBEDDINGS, ".npy"), (METADATA, ".parquet")] {
        remove_inner(&folder.join(name), &format!("{name}_"), ending)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        // numpy.save of zeros((3, 5), float32)
        let expected = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }";
        let header = header(3, 5, Dtype::F32);
        assert_eq!(header.len(), 128);
        assert_eq!(header[..expected.len()], expected[..]);
        assert_eq!(header.last(), Some(&b'\n'));
    }
}
