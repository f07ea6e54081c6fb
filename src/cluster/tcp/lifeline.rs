//! Who is still there. Beside the connection that carries what ranks call, each rank has a second one with rank 0, over which nothing goes
//! but signs of life and the word that the job is done or has ended. A thread reads it, so that a rank finds out within moments that
//! another has gone, whatever it does meanwhile: computing, reading, waiting for a GPU.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(10);
/// Silence after which a rank counts as gone: a machine without power closes no connection.
const SILENCE: Duration = Duration::from_secs(120);

/// A sign of life.
const ALIVE: u8 = 0;
/// The rank takes leave: what follows on this connection is of no interest.
const DONE: u8 = 1;
/// The job has ended, with the exit code in the next byte.
const ENDED: u8 = 2;

/// How a job ends before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// A rank ended it, with this exit code, and says why itself.
    Told(u8),
    /// A rank has gone without a word.
    Lost(String),
}

/// What a rank does when the job ends: outside of tests it ends the process.
pub(super) type OnEnd = Arc<dyn Fn(End) + Send + Sync>;

/// The lifelines of this rank: of rank 0 to each of the others, of these to rank 0.
pub(in crate::cluster) struct Lifelines {
    lines: Arc<Vec<Line>>,
    /// Whether this rank has taken leave, or knows that the job has ended.
    left: Arc<AtomicBool>,
    on_end: OnEnd,
}

/// One of them.
struct Line {
    /// Whose it is: `rank 1 on node7`.
    who: String,
    stream: TcpStream,
}

impl Lifelines {
    /// Reads each of `streams`, to the rank that is named beside it, from here on.
    ///
    /// # Errors
    /// A connection without timeouts, a thread that cannot be started.
    pub(super) fn hold(streams: Vec<(String, TcpStream)>, on_end: OnEnd) -> Result<Self> {
        let line = |(who, stream)| Line { who, stream };
        let lines = Self {
            lines: Arc::new(streams.into_iter().map(line).collect()),
            left: Arc::new(AtomicBool::new(false)),
            on_end,
        };
        for place in 0..lines.lines.len() {
            lines
                .watch(place)
                .map_err(|error| Error::failed(lines.lines[place].who.clone(), error.to_string()))?;
        }
        Ok(lines)
    }

    fn watch(&self, place: usize) -> io::Result<()> {
        self.lines[place].stream.set_read_timeout(Some(BEAT))?;
        let (lines, left, on_end) = (
            Arc::clone(&self.lines),
            Arc::clone(&self.left),
            Arc::clone(&self.on_end),
        );
        let watch = move || {
            let Some(end) = lines[place].end() else { return };
            // The first line that ends has the word: the others end because of it.
            if left.swap(true, Ordering::SeqCst) {
                return;
            }
            let code = match end {
                End::Told(code) => code,
                End::Lost(_) => 1,
            };
            // Rank 0 tells the others; those have it alone, which has told.
            let others = lines.iter().enumerate().filter(|(other, _)| *other != place);
            others.for_each(|(_, line)| line.tell(&[ENDED, code]));
            on_end(end);
        };
        thread::Builder::new()
            .name("lifeline".to_owned())
            .spawn(watch)
            .map(drop)
    }

    /// Tells all that this rank takes leave, which all have agreed on.
    pub(in crate::cluster) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        self.lines.iter().for_each(|line| line.tell(&[DONE]));
    }

    /// Ends the job, this rank included.
    pub(super) fn end(&self, code: u8) {
        self.tell_end(code);
        (self.on_end)(End::Told(code));
    }

    /// Tells the others that the job ends, each of which does, and leaves this rank to its own end.
    pub(in crate::cluster) fn tell_end(&self, code: u8) {
        self.left.store(true, Ordering::SeqCst);
        self.lines.iter().for_each(|line| line.tell(&[ENDED, code]));
    }
}

impl Line {
    /// Sends `bytes`, unless nobody is there any more.
    fn tell(&self, bytes: &[u8]) {
        let _ = (&self.stream).write_all(bytes);
    }

    /// Waits for the end of what is on this line; none where the other takes leave.
    fn end(&self) -> Option<End> {
        let (mut heard, mut told) = (Instant::now(), Instant::now());
        let mut byte = [ALIVE];
        loop {
            if told.elapsed() >= BEAT {
                self.tell(&[ALIVE]);
                told = Instant::now();
            }
            match (&self.stream).read(&mut byte) {
                Ok(0) => return Some(self.lost("its connection is closed")),
                Ok(_) => heard = Instant::now(),
                Err(error) if is_pause(&error) && heard.elapsed() < SILENCE => continue,
                Err(error) if is_pause(&error) => {
                    return Some(self.lost(&format!("nothing was heard of it for {} s", SILENCE.as_secs())));
                }
                Err(error) => return Some(self.lost(&error.to_string())),
            }
            match byte[0] {
                ALIVE => {}
                DONE => return None,
                _ => {
                    let code = (&self.stream).read_exact(&mut byte).map_or(1, |()| byte[0]);
                    return Some(End::Told(code));
                }
            }
        }
    }

    fn lost(&self, how: &str) -> End {
        End::Lost(format!("{} has gone ({how}), and so the job ends", self.who))
    }
}

/// Whether reading goes on after `error`.
fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

#[cfg(test)]
impl Lifelines {
    /// Closes all of them, as the system does for a process that has ended.
    pub(super) fn shut(&self) {
        self.left.store(true, Ordering::SeqCst);
        for line in self.lines.iter() {
            let _ = line.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
