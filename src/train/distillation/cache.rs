//! What a teacher gave, kept on disk by view: where crops come again, the teacher need not see them again. A folder holds
//! one sub-folder for each teacher, set of crops and seed, so that nothing is ever taken for what it is not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::cache_segment::{self as segment, ENTRY, Record, View};
use crate::{Error, Result, files};

const KEY_FILE: &str = "key.json";
const EXTENSION: &str = "outputs";
const GB: f64 = 1e9;

/// Outputs by view, each a vector of one length.
#[derive(Debug)]
pub struct TeacherCache {
    folder: PathBuf,
    key: [u8; 32],
    values: usize,
    segments: Vec<PathBuf>,
    index: HashMap<View, (usize, Record)>,
}

impl TeacherCache {
    /// The cache below `folder` for what `key` describes, `values` numbers a view. `views` are all that will be kept.
    ///
    /// # Errors
    /// Views that need more than `limit_gb`, files that are damaged or belong to another key, a folder that cannot be
    /// written.
    pub fn open(folder: &Path, key: &Value, values: usize, views: u64, limit_gb: f64) -> Result<Self> {
        let needed = views as f64 * (ENTRY as f64 + 4. * values as f64) / GB;
        if needed > limit_gb {
            let reason = format!(
                "expected room for the teacher's outputs, {needed:.2} GB ({views} views of {values} values), found {limit_gb}"
            );
            return Err(Error::input("distill.cache_gb", reason));
        }
        let text = serde_json::to_vec_pretty(key).map_err(|e| Error::failed("cache key", e.to_string()))?;
        let digest: [u8; 32] = Sha256::digest(&text).into();
        let folder = folder.join(&files::hex(&digest)[..16]);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let key_file = folder.join(KEY_FILE);
        match std::fs::read(&key_file) {
            Ok(found) if found == text => {}
            Ok(_) => {
                let reason = "expected the description of this cache, found another; remove the folder";
                return Err(Error::input(key_file.display().to_string(), reason));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => files::write_bytes(&key_file, &text)?,
            Err(e) => return Err(Error::io(&key_file, e)),
        }
        let mut cache = Self {
            folder,
            key: digest,
            values,
            segments: Vec::new(),
            index: HashMap::new(),
        };
        cache.read_index()?;
        Ok(cache)
    }

    fn read_index(&mut self) -> Result<()> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io(&self.folder, e))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let records = segment::index(&path, &self.key, self.values)?;
            self.add(path, records);
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf, records: Vec<(View, Record)>) {
        let number = self.segments.len();
        self.segments.push(path);
        let records = records.into_iter().map(|(view, record)| (view, (number, record)));
        self.index.extend(records);
    }

    /// Views that are kept.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The outputs for `row` in pass `pass`. What is damaged is named, forgotten and none.
    pub fn get(&mut self, row: u64, pass: u64) -> Option<Vec<f32>> {
        let view = (row, pass);
        let &(number, record) = self.index.get(&view)?;
        match segment::read(&self.segments[number], &self.key, view, record, self.values) {
            Ok(values) => Some(values),
            Err(error) => {
                tracing::warn!("{error}; the teacher is asked again");
                self.index.remove(&view);
                None
            }
        }
    }

    /// Keeps outputs by row and pass, in a file of their own.
    ///
    /// # Errors
    /// A folder that cannot be written, a full disk.
    pub fn put(&mut self, records: &[((u64, u64), Vec<f32>)]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        // Named after what is in it: runs that share the cache do not disturb each other.
        let mut hash = Sha256::new();
        for ((row, pass), _) in records {
            hash.update(row.to_le_bytes());
            hash.update(pass.to_le_bytes());
        }
        let name = format!("{}.{EXTENSION}", &files::hex(&hash.finalize())[..32]);
        let path = self.folder.join(name);
        let written = segment::write(&path, &self.key, records)?;
        self.add(path, written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(folder: &Path, seed: u64) -> Result<TeacherCache> {
        TeacherCache::open(folder, &json!({ "seed": seed }), 3, 100, 1.)
    }

    fn outputs(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for below in std::fs::read_dir(folder).unwrap().flatten() {
            let entries = std::fs::read_dir(below.path()).unwrap().flatten();
            found.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|e| e == EXTENSION)),
            );
        }
        found.sort();
        found
    }

    #[test]
    fn what_was_put_is_found_again_by_row_and_pass() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path(), 1).unwrap();
        assert!(cache.is_empty());
        cache
            .put(&[
                ((7, 0), vec![1., 2., 3.]),
                ((8, 0), vec![4., 5., f32::MIN_POSITIVE]),
            ])
            .unwrap();
        cache.put(&[((7, 1), vec![-1., -2., -3.])]).unwrap();
        cache.put(&[]).unwrap();
        for mut cache in [cache, open(folder.path(), 1).unwrap()] {
            assert_eq!(cache.len(), 3);
            assert_eq!(cache.get(8, 0), Some(vec![4., 5., f32::MIN_POSITIVE]));
            assert_eq!(cache.get(7, 1), Some(vec![-1., -2., -3.]));
            assert_eq!(cache.get(8, 1), None);
        }
        assert!(
            open(folder.path(), 2).unwrap().is_empty(),
            "another seed has a folder of its own"
        );
    }

    #[test]
    fn damaged_values_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), 1)
            .unwrap()
            .put(&[((1, 0), vec![1.; 3]), ((2, 0), vec![2.; 3])])
            .unwrap();
        let path = outputs(folder.path()).remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut cache = open(folder.path(), 1).unwrap();
        assert_eq!(cache.get(1, 0), Some(vec![1.; 3]));
        assert_eq!(cache.get(2, 0), None);
        cache.put(&[((2, 0), vec![2.; 3])]).unwrap();
        assert_eq!(cache.get(2, 0), Some(vec![2.; 3]));
    }

    #[test]
    fn foreign_and_cut_files_are_refused_before_a_run_starts() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), 1)
            .unwrap()
            .put(&[((1, 0), vec![1.; 3])])
            .unwrap();
        open(folder.path(), 2).unwrap();
        let path = outputs(folder.path()).remove(0);
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], words: &str| {
            std::fs::write(&path, bytes).unwrap();
            let text = open(folder.path(), 1).unwrap_err().to_string();
            assert!(
                text.contains(words) && text.contains(EXTENSION) && !text.contains('\n'),
                "{text}"
            );
        };
        refused(&whole[..whole.len() - 1], "bytes instead of");
        refused(&whole[..20], "fewer bytes than a header has");
        refused(
            b"something else, of more than fifty-six bytes, which is no segment",
            "another kind of file",
        );
        let mut foreign = whole.clone();
        foreign[30] ^= 1;
        refused(&foreign, "another teacher");
        std::fs::write(&path, &whole).unwrap();
        let key_file = path.with_file_name(KEY_FILE);
        std::fs::write(key_file, "{}").unwrap();
        assert!(
            open(folder.path(), 1)
                .unwrap_err()
                .to_string()
                .contains("found another")
        );
    }

    #[test]
    fn more_than_the_bound_does_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let error = TeacherCache::open(folder.path(), &json!({}), 250_000, 2_000, 1.5).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("distill.cache_gb: expected room") && text.contains("2.00 GB"),
            "{text}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
