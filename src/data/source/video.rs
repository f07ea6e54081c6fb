//! The frames of a video, as `ffmpeg` decodes them: `video:clip.mp4`, or `video:clip.mp4#fps=2` for two a second. `ffmpeg` runs
//! beside and hands over one frame after the other; those around the last one asked for are kept, so rows asked for
//! nearly in order are each decoded once. A row far behind starts it again from the first frame.
//!
//! A file is opened as a video and as nothing else: playlists and scripts, by which a "video" has `ffmpeg` open other files and
//! addresses or run code, are not among its formats here.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::{Bytes, Record, RowError, Source, Stamp, lossless};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result, programs};

const PREFIX: &str = "video:";
/// Bytes of frames that are kept; at least [`MIN_KEPT`] frames.
const KEPT_BYTES: usize = 256 << 20;
const MIN_KEPT: usize = 16;
/// What `ffmpeg` may take the file for, by the names of its demuxers: containers and streams that hold their own frames.
const FORMATS: &str = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,gxf,nut,ivf,rm,wtv,dv,h264,hevc,vvc,av1,obu,vc1,\
                       dirac,h263,mjpeg,yuv4mpegpipe,gif,apng,webp_anim,webp_pipe";
/// Largest header of a frame: `P6`, width, height, 255.
const HEADER_BYTES: usize = 64;

/// The frames of one video.
pub(super) struct Video {
    ffmpeg: PathBuf,
    path: PathBuf,
    fps: Option<f64>,
    frames: u64,
    bytes: u64,
    reader: Mutex<Reader>,
}

/// What runs and what is kept.
#[derive(Default)]
struct Reader {
    stream: Option<Stream>,
    /// Row of the first frame in `kept`.
    first: u64,
    kept: VecDeque<RgbImage>,
}

impl Video {
    /// Whether `spec` names a video.
    pub(super) fn is_meant(spec: &str) -> bool {
        spec.starts_with(PREFIX)
    }

    /// Opens `video:FILE` or `video:FILE#fps=N` with the `ffmpeg` on the path, and counts the frames.
    pub(super) fn open(spec: &str) -> Result<Self> {
        let ffmpeg = programs::find("ffmpeg").ok_or_else(|| {
            Error::input(
                spec,
                "videos are read by ffmpeg, which was not found on the path: install it, or cut the video into images elsewhere",
            )
        })?;
        Self::open_with(ffmpeg, spec)
    }

    fn open_with(ffmpeg: PathBuf, spec: &str) -> Result<Self> {
        let place = spec.strip_prefix(PREFIX).unwrap_or(spec);
        let (path, fps) = match place.rsplit_once("#fps=") {
            Some((path, text)) => (path, Some(rate(spec, text)?)),
            None => (place, None),
        };
        let path = PathBuf::from(path);
        let metadata = fs::metadata(&path).map_err(|error| Error::io(&path, error))?;
        if !metadata.is_file() {
            return Err(Error::input(spec, "expected a file, found something else"));
        }
        let mut video = Self {
            ffmpeg,
            path,
            fps,
            frames: 0,
            bytes: metadata.len(),
            reader: Mutex::default(),
        };
        video.frames = video.count().map_err(|reason| Error::input(spec, reason))?;
        Ok(video)
    }

    /// Decodes everything once, to tiny frames.
    fn count(&self) -> std::result::Result<u64, String> {
        let mut stream = Stream::start(&self.ffmpeg, &self.path, self.fps, true)?;
        let mut frames = 0;
        while stream.frame(u64::MAX)?.is_some() {
            frames += 1;
        }
        match frames {
            0 => Err(stream.complaint("no frame in it")),
            frames => Ok(frames),
        }
    }

    fn frame(&self, row: u64, limit: u64) -> std::result::Result<RgbImage, String> {
        // A reader that panicked left frames whose rows are not certain.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if self.reader.is_poisoned() {
            *reader = Reader::default();
            self.reader.clear_poison();
        }
        if row < reader.first || reader.stream.is_none() {
            *reader = Reader::default();
            reader.stream = Some(Stream::start(&self.ffmpeg, &self.path, self.fps, false)?);
        }
        while reader.first + reader.kept.len() as u64 <= row {
            let stream = reader.stream.as_mut().ok_or("no ffmpeg runs")?;
            let read = stream
                .frame(limit)
                .and_then(|frame| frame.ok_or_else(|| stream.complaint("it ends before this frame")));
            // What is left of the output after an error is no whole frame.
            let frame = read.inspect_err(|_| *reader = Reader::default())?;
            let max = (KEPT_BYTES / frame.data().len().max(1)).max(MIN_KEPT);
            reader.kept.push_back(frame);
            while reader.kept.len() > max {
                reader.kept.pop_front();
                reader.first += 1;
            }
        }
        let place = usize::try_from(row - reader.first).map_err(|error| error.to_string())?;
        Ok(reader.kept[place].clone())
    }
}

impl Source for Video {
    fn len(&self) -> u64 {
        self.frames
    }

    fn record(&self, row: u64) -> Record {
        assert!(row < self.frames, "row {row} of {}", self.frames);
        Record::new(row, format!("{}#{row:06}", lossless(&self.path)), None)
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        self.frame(row, options.max_pixels).map_err(|reason| RowError {
            path: self.record(row).path,
            reason,
        })
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        Stamp {
            name: format!("{row} at {:?}", self.fps),
            bytes: Bytes::Within(&self.path),
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "video",
            "path": lossless(&self.path),
            "bytes": self.bytes,
            "fps": self.fps,
            "images": self.frames,
        })
    }

    fn in_order_only(&self) -> bool {
        true
    }
}

/// An ffmpeg that writes frames, each with a header that tells its size (binary PPM).
struct Stream {
    child: Child,
    output: BufReader<ChildStdout>,
    /// What it says; a pipe that nobody reads would fill up and stop it.
    errors: File,
}

impl Stream {
    fn start(ffmpeg: &Path, video: &Path, fps: Option<f64>, tiny: bool) -> std::result::Result<Self, String> {
        let mut filters: Vec<String> = fps.map(|fps| format!("fps={fps}")).into_iter().collect();
        if tiny {
            filters.push("scale=2:2".to_owned());
        }
        let absolute = std::path::absolute(video).map_err(|error| format!("{}: {error}", video.display()))?;
        let mut input = OsString::from("file:");
        input.push(absolute);
        let mut command = programs::command(ffmpeg);
        command
            .args(["-nostdin", "-v", "error", "-protocol_whitelist", "file"])
            .args(["-format_whitelist", FORMATS, "-i"])
            .arg(input);
        if !filters.is_empty() {
            command.args(["-vf", &filters.join(",")]);
        }
        let failed = |error: std::io::Error| format!("{} did not start: {error}", ffmpeg.display());
        let errors = tempfile::tempfile().map_err(failed)?;
        command
            .args(["-f", "image2pipe", "-c:v", "ppm", "-"])
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().map_err(failed)?);
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take().ok_or("ffmpeg has no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
            errors,
        })
    }

    /// The next frame; none at the end.
    fn frame(&mut self, limit: u64) -> std::result::Result<Option<RgbImage>, String> {
        let Some([width, height]) = self.header()? else {
            return Ok(None);
        };
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > limit {
            return Err(format!(
                "a frame of {width}x{height} pixels, above the limit of {limit}"
            ));
        }
        let mut data = vec![0; 3 * usize::try_from(pixels).map_err(|error| error.to_string())?];
        self.output
            .read_exact(&mut data)
            .map_err(|error| self.complaint(&format!("a frame was cut short: {error}")))?;
        RgbImage::new(width, height, data)
            .map(Some)
            .ok_or_else(|| "a frame of an unexpected size".to_owned())
    }

    /// Width and height, from `P6 WIDTH HEIGHT 255` with any white space; none at the end of the output.
    fn header(&mut self) -> std::result::Result<Option<[u32; 2]>, String> {
        let mut words: Vec<String> = vec![String::new()];
        for read in 0..HEADER_BYTES {
            let mut byte = [0];
            match self.output.read(&mut byte).map_err(|error| error.to_string())? {
                0 if read == 0 => return Ok(None),
                0 => break,
                _ => {}
            }
            if !byte[0].is_ascii_whitespace() {
                words
                    .last_mut()
                    .expect("there is a word")
                    .push(char::from(byte[0]));
                continue;
            }
            if words.last().is_some_and(String::is_empty) {
                continue;
            }
            if words.len() < 4 {
                words.push(String::new());
                continue;
            }
            let [magic, width, height, max] = [0, 1, 2, 3].map(|place| words[place].as_str());
            match (magic, width.parse(), height.parse(), max) {
                ("P6", Ok(width), Ok(height), "255") => return Ok(Some([width, height])),
                _ => break,
            }
        }
        Err(self.complaint("ffmpeg wrote no PPM frame"))
    }

    /// What went wrong: ffmpeg's own last word behind `what`.
    fn complaint(&mut self, what: &str) -> String {
        // One that has closed its output is about to say why.
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut said = Vec::new();
        let whole = self
            .errors
            .rewind()
            .and_then(|()| self.errors.read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        if said.contains("not on whitelist") {
            return format!("{what}: a playlist, a script or another format that is not read as a video");
        }
        match said.lines().map(str::trim).rfind(|line| !line.is_empty()) {
            Some(line) if whole.is_ok() => format!("{what}: ffmpeg says {line}"),
            _ => what.to_owned(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // One that is done already cannot be killed; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rate(spec: &str, text: &str) -> Result<f64> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| Error::input(spec, format!("expected frames a second above 0, found `{text}`")))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that writes `frames` grey frames of 4 x 3 pixels (2 x 2 when it is told to scale), the first with value 1;
    /// it notes each start.
    fn fake(folder: &Path, frames: u32, end: &str) -> PathBuf {
        let file = folder.join("ffmpeg");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {starts}\ncase \"$*\" in *scale=2:2*) size='2 2'; n=12;; *) size='4 3'; n=36;; esac\n\
             i=1\nwhile [ $i -le {frames} ]; do\nprintf 'P6\\n%s\\n255\\n' \"$size\"\n\
             j=0; while [ $j -lt $n ]; do printf \"\\\\$(printf %03o $i)\"; j=$((j+1)); done\ni=$((i+1))\ndone\n{end}\n",
            starts = folder.join("starts").display()
        );
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    fn starts(folder: &Path) -> Vec<String> {
        let text = fs::read_to_string(folder.join("starts")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn clip(folder: &Path) -> String {
        fs::write(folder.join("clip.mp4"), "not looked at").unwrap();
        format!("video:{}", folder.join("clip.mp4").display())
    }

    #[test]
    fn frames_are_rows_and_are_decoded_once_in_order() {
        let place = tempfile::tempdir().unwrap();
        let spec = format!("{}#fps=2.5", clip(place.path()));
        let video = Video::open_with(fake(place.path(), 40, ""), &spec).unwrap();
        assert_eq!(video.len(), 40);
        assert!(video.record(7).path.ends_with("clip.mp4#000007"));
        // As parallel readers ask: nearly in order.
        for row in [3, 1, 0, 2, 7, 39, 20] {
            let frame = video.load(row, &DecodeOptions::default()).unwrap();
            assert_eq!((frame.width(), frame.height()), (4, 3));
            assert!(frame.data().iter().all(|&value| u64::from(value) == row + 1));
        }
        let starts = starts(place.path());
        assert_eq!(starts.len(), 2, "{starts:?}");
        assert!(starts[0].contains("-vf fps=2.5,scale=2:2"), "{starts:?}");
        let input = format!("-i file:{} ", place.path().join("clip.mp4").display());
        for start in &starts {
            let guarded = "-protocol_whitelist file -format_whitelist mov,matroska,";
            assert!(start.contains(&input) && start.contains(guarded), "{start}");
            let formats = start
                .split("-format_whitelist ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            for playlist in [
                "hls",
                "dash",
                "concat",
                "avisynth",
                "vapoursynth",
                "image2",
                "sdp",
                "imf",
                "rtsp",
            ] {
                assert!(!formats.split(',').any(|format| format == playlist), "{formats}");
            }
        }
        assert!(starts[1].contains("-vf fps=2.5 -f image2pipe"), "{starts:?}");
        assert_eq!(video.describe()["images"], 40);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let place = tempfile::tempdir().unwrap();
        let refused = |ffmpeg: PathBuf, spec: &str| Video::open_with(ffmpeg, spec).err().unwrap().to_string();
        let spec = clip(place.path());
        let none = fake(place.path(), 0, "echo 'clip.mp4: Invalid data' >&2; exit 1");
        let error = refused(none.clone(), &spec);
        assert!(
            error.ends_with("no frame in it: ffmpeg says clip.mp4: Invalid data"),
            "{error}"
        );
        assert!(refused(none.clone(), &format!("{spec}#fps=0")).contains("above 0, found `0`"));
        assert!(refused(none, "video:missing.mp4").contains("missing.mp4"));
        let other = fake(place.path(), 0, "echo 'P5 2 2 255'");
        assert!(refused(other, &spec).contains("no PPM frame"));
        let cut = fake(place.path(), 2, "printf 'P6\\n4 3\\n255\\nabc'");
        assert!(refused(cut, &spec).contains("cut short"));
        assert!(refused(place.path().join("absent"), &spec).contains("did not start"));
        let words =
            "[concat @ 0x1] Format not on whitelist 'mov,avi'\\nError opening input: Invalid argument";
        let playlist = fake(place.path(), 0, &format!("printf \"{words}\" >&2; exit 1"));
        assert!(refused(playlist, &spec).contains("a playlist"));
    }

    #[test]
    fn a_video_that_shrinks_and_frames_too_large_fail_alone() {
        let place = tempfile::tempdir().unwrap();
        let spec = clip(place.path());
        let video = Video::open_with(fake(place.path(), 5, ""), &spec).unwrap();
        fake(place.path(), 3, "");
        let load = |row, max_pixels| {
            let options = DecodeOptions {
                max_pixels,
                ..DecodeOptions::default()
            };
            video.load(row, &options).map_err(|error| error.reason)
        };
        assert_eq!(load(4, 100), Err("it ends before this frame".to_owned()));
        assert_eq!(
            load(0, 11),
            Err("a frame of 4x3 pixels, above the limit of 11".to_owned())
        );
        assert!(load(2, 12).is_ok());
    }
}
