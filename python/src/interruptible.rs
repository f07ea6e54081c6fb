//! Work that takes time: on a thread of its own, with the interpreter's lock released, while the calling thread looks at
//! signals and lets Python have a look at how far it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::errors::raised;

/// Time between two looks at signals.
const LOOK: Duration = Duration::from_millis(100);

/// Work that took longer gives its memory back, which costs the next call some hundredths of a second: a notebook stays
/// open after it, while a server asks for one image after another.
const LONG: Duration = Duration::from_secs(1);

/// As [`run_with`]; `tick` is called without arguments.
pub fn run<T: Send>(
    py: Python<'_>,
    tick: Option<&Py<PyAny>>,
    stop: &AtomicBool,
    work: impl FnOnce() -> macula::Result<T> + Send,
) -> PyResult<T> {
    run_with(py, stop, work, |py| {
        tick.map_or(Ok(()), |tick| tick.call0(py).map(|_| ()))
    })
}

/// Does `work` and gives its result. Ten times a second `look` is called, and once when the work is done. When a signal or
/// `look` raises, `stop` is set, the end of `work` is waited for, and the exception is raised.
pub fn run_with<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    work: impl FnOnce() -> macula::Result<T> + Send,
    look: impl Fn(Python<'_>) -> PyResult<()> + Send + Sync,
) -> PyResult<T> {
    py.detach(|| {
        std::thread::scope(|scope| {
            let (done, ended) = channel::<()>();
            let worker = scope.spawn(move || {
                // Dropped when the work ends, also by a panic.
                let _done = done;
                let begun = Instant::now();
                let result = work();
                if begun.elapsed() > LONG {
                    macula::memory::give_back();
                }
                result
            });
            let see = || Python::attach(|py| py.check_signals().and_then(|()| look(py)));
            let mut interrupted = None;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
                if interrupted.is_none() {
                    interrupted = see().err();
                    stop.fetch_or(interrupted.is_some(), Ordering::SeqCst);
                }
            }
            let result = worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match interrupted.or_else(|| see().err()) {
                Some(error) => Err(error),
                None => result.map_err(|error| raised(&error)),
            }
        })
    })
}

/// The error of work that found `stop` set; the exception that set it is raised in its place.
pub fn stopped() -> macula::Error {
    macula::Error::failed("macula", "interrupted")
}
