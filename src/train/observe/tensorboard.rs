//! TensorBoard event files: scalars as `Event` messages (tensorflow/core/util/event.proto and
//! tensorflow/core/framework/summary.proto) in TFRecord framing (tensorflow/core/lib/io/record_writer.h).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use serde_json::{Map, Value as Json};

use super::keys;
use crate::{Error, Result};

/// What the first event of a file says.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const SESSION_START: i32 = 1;
/// CRC-32C, as the record format asks.
const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// `tensorflow.Event`, as far as scalars need it. `file_version`, `summary` and `session_log` are one `oneof`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value`, with the one kind of value that is written. The field is a `oneof`: 0 is written too.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `tensorflow.SessionLog`.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Writes one event file; a run that is resumed adds another to the same folder.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a file in `folder`, which is created where it is missing, named
    /// `events.out.tfevents.SECONDS.macula.PROCESS.NUMBER.v2`.
    /// A run that is resumed after `resumed` steps tells TensorBoard to forget what earlier files say of later ones.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn create(folder: &Path, resumed: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let now = now();
        let (file, path) = new_file(folder, now)?;
        let mut writer = Self { file, path };
        writer.write(&Event {
            wall_time: now.as_secs_f64(),
            file_version: Some(FILE_VERSION.to_owned()),
            ..Event::default()
        })?;
        if let Some(step) = resumed {
            writer.write(&Event {
                wall_time: now.as_secs_f64(),
                step: event_step(step + 1),
                session_log: Some(SessionLog {
                    status: SESSION_START,
                }),
                ..Event::default()
            })?;
        }
        Ok(writer)
    }

    /// The file.
    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the numbers of one logged step: every entry of `metrics` but the step itself and what is no number.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn scalars(&mut self, step: u64, metrics: &Map<String, Json>) -> Result<()> {
        let value = metrics
            .iter()
            .filter(|(tag, _)| *tag != keys::STEP)
            .filter_map(|(tag, value)| {
                Some(Value {
                    tag: tag.clone(),
                    simple_value: Some(value.as_f64()? as f32),
                })
            })
            .collect();
        self.write(&Event {
            wall_time: now().as_secs_f64(),
            step: event_step(step),
            summary: Some(Summary { value }),
            ..Event::default()
        })
    }

    /// One record, in one write, so that a reader beside the run sees whole ones.
    fn write(&mut self, event: &Event) -> Result<()> {
        self.file
            .write_all(&record(&event.encode_to_vec()))
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io(&self.path, e))
    }
}

/// A record: length as u64, its masked checksum, the bytes, their masked checksum; little-endian.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(bytes);
    record.extend_from_slice(&masked_crc(bytes).to_le_bytes());
    record
}

/// A checksum that may itself lie in checksummed data (tensorflow/core/lib/hash/crc32c.h, `Mask`).
fn masked_crc(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A file that did not exist. TensorBoard reads the files of a folder in the order of their names.
fn new_file(folder: &Path, now: Duration) -> Result<(File, PathBuf)> {
    let process = std::process::id();
    for number in 0..1000 {
        let name = format!(
            "events.out.tfevents.{:010}.macula.{process}.{number}.v2",
            now.as_secs()
        );
        let path = folder.join(name);
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    Err(Error::failed(
        folder.display().to_string(),
        "no free name for an event file",
    ))
}

fn now() -> Duration {
    // A clock before 1970 is wrong anyway; times then count from there.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn event_step(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The records of a file, both checksums of each checked.
    fn decode(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).expect("read");
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let number = |from: usize| u32::from_le_bytes(rest[from..from + 4].try_into().expect("4 bytes"));
            let length = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(number(8), masked_crc(&rest[..8]));
            let body = &rest[12..12 + length];
            assert_eq!(number(12 + length), masked_crc(body));
            events.push(Event::decode(body).expect("an event"));
            rest = &rest[16 + length..];
        }
        events
    }

    fn metrics(value: Json) -> Map<String, Json> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn checksums_are_the_published_values() {
        // RFC 3720, B.4: 32 bytes of zeros, of ones, and 0 to 31.
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(CRC32C.checksum(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(CRC32C.checksum(&ascending), 0x46dd_794e);
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        // How every event file of TensorFlow begins: the length 24 of the first event and its masked checksum.
        assert_eq!(
            masked_crc(&24u64.to_le_bytes()).to_le_bytes(),
            [0xa3, 0x7f, 0x4b, 0x22]
        );
    }

    #[test]
    fn scalars_come_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut writer = EventWriter::create(folder.path(), None).expect("created");
        let logged = json!({"step": 10, "loss": 2.5, "lr": 0.0, "note": "text", "broken": null});
        writer.scalars(10, &metrics(logged)).expect("written");
        let events = decode(writer.path());
        assert_eq!(events[0].file_version.as_deref(), Some(FILE_VERSION));
        assert!(events[0].wall_time > 1.6e9);
        assert_eq!(events.len(), 2);
        assert_eq!(events[1].step, 10);
        let values = &events[1].summary.as_ref().expect("a summary").value;
        let read: Vec<_> = values
            .iter()
            .map(|value| (value.tag.as_str(), value.simple_value))
            .collect();
        assert_eq!(read, [("loss", Some(2.5)), ("lr", Some(0.0))]);
    }

    #[test]
    fn a_resumed_run_adds_a_file_that_starts_after_its_step() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = EventWriter::create(folder.path(), None).expect("created");
        let second = EventWriter::create(folder.path(), Some(40)).expect("created");
        assert_ne!(first.path(), second.path());
        assert!(first.path() < second.path());
        let events = decode(second.path());
        assert_eq!(events[1].step, 41);
        assert_eq!(
            events[1].session_log,
            Some(SessionLog {
                status: SESSION_START
            })
        );
    }
}
