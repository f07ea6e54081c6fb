//! `metrics.jsonl`: one JSON object a logged step, written line by line so that a stopped run leaves all but perhaps its
//! last line, and cut back to a checkpoint's step when a run is resumed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::keys;
use crate::{Error, Result, files};

/// The file's name in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The metrics file of a run, open at its end.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    minutes: f64,
}

impl MetricsLog {
    /// Begins a new file.
    ///
    /// # Errors
    /// When `path` exists, or the system's word with the path.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|e| Error::io(path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            minutes: 0.,
        })
    }

    /// Continues a file after `step`: later lines are dropped, and so is a last line that was only half written. A file
    /// that does not exist is begun.
    ///
    /// # Errors
    /// As [`read`]; a line without a step; the system's word with the path.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        if !path.exists() {
            return Self::create(path);
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let mut kept = Vec::with_capacity(bytes.len());
        let mut minutes = 0.;
        // Lines are kept as they are: numbers read and written again may change in their last digit.
        for (line, metrics) in lines(path, &bytes)? {
            if step_of(path, &metrics)? <= step {
                kept.extend_from_slice(line);
                kept.push(b'\n');
                minutes = metrics
                    .get(keys::MINUTES)
                    .and_then(Value::as_f64)
                    .unwrap_or(minutes);
            }
        }
        files::write_bytes(path, &kept)?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|e| Error::io(path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            minutes,
        })
    }

    /// The time that the steps before this sitting took, in minutes.
    pub fn earlier_minutes(&self) -> f64 {
        self.minutes
    }

    /// Appends one line, in one write, and flushes it. `metrics` holds a whole number [`keys::STEP`]; a number that is not
    /// finite is `null` in JSON.
    ///
    /// # Errors
    /// No step, or the system's word with the path.
    pub fn append(&mut self, metrics: &Map<String, Value>) -> Result<()> {
        if metrics.get(keys::STEP).and_then(Value::as_u64).is_none() {
            return Err(Error::failed(
                self.path.display().to_string(),
                "expected a whole number `step` among the metrics, found none",
            ));
        }
        let mut line = Vec::new();
        write_line(&mut line, metrics);
        self.file
            .write_all(&line)
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io(&self.path, e))
    }
}

/// The lines of a metrics file. A last line that is no JSON object is left out: a run that was stopped wrote half of it.
///
/// # Errors
/// The system's word with the path; any other line that is no JSON object, with its number.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(lines(path, &bytes)?
        .into_iter()
        .map(|(_, metrics)| metrics)
        .collect())
}

/// The last number that the metrics file at `path` has under `key`; none without a file or such a line.
///
/// # Errors
/// As [`read`].
pub fn last(path: &Path, key: &str) -> Result<Option<f64>> {
    if !path.exists() {
        return Ok(None);
    }
    let lines = read(path)?;
    Ok(lines.iter().rev().find_map(|line| line.get(key)?.as_f64()))
}

/// A line without its end, and what it says.
type Line<'a> = (&'a [u8], Map<String, Value>);

/// The lines of `bytes`, read from `path`, but for an incomplete last one.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<Line<'a>>> {
    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let mut read = Vec::with_capacity(lines.len());
    for (place, &line) in lines.iter().enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let rest = &lines[place + 1..];
        match serde_json::from_slice(line) {
            Ok(Value::Object(metrics)) => read.push((line, metrics)),
            _ if rest.iter().all(|line| line.is_empty()) => {
                tracing::warn!("{}: the last line is incomplete and left out", path.display());
            }
            _ => {
                let what = format!("{}: line {}", path.display(), place + 1);
                return Err(Error::input(what, "expected a JSON object, found something else"));
            }
        }
    }
    Ok(read)
}

fn write_line(out: &mut Vec<u8>, metrics: &Map<String, Value>) {
    serde_json::to_writer(&mut *out, metrics).expect("a map with text as keys is always JSON");
    out.push(b'\n');
}

fn step_of(path: &Path, metrics: &Map<String, Value>) -> Result<u64> {
    let step = metrics.get(keys::STEP).and_then(Value::as_u64);
    step.ok_or_else(|| {
        let reason = "expected a whole number `step` in every line, found a line without";
        Error::input(path.display().to_string(), reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(step: u64, loss: f64) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert(keys::STEP.to_owned(), json!(step));
        line.insert(keys::LOSS.to_owned(), json!(loss));
        line.insert(keys::MINUTES.to_owned(), json!(step as f64 / 2.));
        line
    }

    fn steps(path: &Path) -> Vec<u64> {
        let lines = read(path).expect("read");
        lines
            .iter()
            .map(|line| line[keys::STEP].as_u64().expect("a step"))
            .collect()
    }

    fn written(folder: &Path, steps: std::ops::RangeInclusive<u64>) -> PathBuf {
        let path = folder.join(METRICS_FILE);
        let mut log = MetricsLog::create(&path).expect("created");
        for step in steps {
            log.append(&line(step, 1.0 / step as f64)).expect("appended");
        }
        path
    }

    #[test]
    fn lines_come_back_as_they_were_written_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(METRICS_FILE);
        let mut log = MetricsLog::create(&path).expect("created");
        log.append(&line(1, 0.375)).expect("appended");
        assert_eq!(read(&path).expect("read"), [line(1, 0.375)]);
        log.append(&line(2, f64::NAN)).expect("appended");
        assert_eq!(read(&path).expect("read")[1][keys::LOSS], Value::Null);
        assert!(log.append(&Map::new()).is_err());
        assert!(MetricsLog::create(&path).is_err());
    }

    #[test]
    fn resuming_drops_later_lines_and_continues() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = written(folder.path(), 1..=10);
        let whole = std::fs::read(&path).expect("read");
        let mut log = MetricsLog::resume(&path, 6).expect("resumed");
        assert!(whole.starts_with(&std::fs::read(&path).expect("read")));
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        log.append(&line(7, 0.5)).expect("appended");
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(log.earlier_minutes(), 3.);
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_half_written_last_line_is_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = written(folder.path(), 1..=3);
        let whole = std::fs::read(&path).expect("read");
        for cut in 1..12 {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("written");
            // Without its line end alone the last line is still whole.
            let expected: &[u64] = if cut == 1 { &[1, 2, 3] } else { &[1, 2] };
            assert_eq!(steps(&path), expected, "cut {cut}");
            let mut log = MetricsLog::resume(&path, 9).expect("resumed");
            log.append(&line(4, 0.0)).expect("appended");
            assert_eq!(steps(&path), [expected, &[4]].concat(), "cut {cut}");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(METRICS_FILE);
        std::fs::write(&path, "{\"step\":1}\n{\"st\n{\"step\":3}\n").expect("written");
        let error = read(&path).expect_err("refused").to_string();
        assert!(error.contains("line 2"), "{error}");
        std::fs::write(&path, "{\"step\":1}\n{\"loss\":1.0}\n").expect("written");
        let error = MetricsLog::resume(&path, 1).expect_err("refused").to_string();
        assert!(error.contains("`step`"), "{error}");
    }

    #[test]
    fn resuming_without_a_file_begins_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(METRICS_FILE);
        MetricsLog::resume(&path, 5).expect("begun");
        assert_eq!(steps(&path), [0u64; 0]);
    }
}
