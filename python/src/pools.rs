//! Threads that work is spread over. A process that was forked has none of its parent's, so whatever holds threads knows the
//! process it was made in: elsewhere it is left alone, and made again where it is needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use macula::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The most threads that may be asked for.
const MAX_THREADS: usize = 1024;

/// Something that works only in the process it was made in.
pub struct OfProcess<T> {
    process: u32,
    value: Option<T>,
}

impl<T> OfProcess<T> {
    /// `value`, made in this process.
    pub fn new(value: T) -> Self {
        Self {
            process: std::process::id(),
            value: Some(value),
        }
    }

    /// The value, in the process it was made in; none in another.
    pub fn get(&self) -> Option<&T> {
        let here = self.process == std::process::id();
        self.value.as_ref().filter(|_| here)
    }

    /// As [`Self::get`].
    pub fn get_mut(&mut self) -> Option<&mut T> {
        let here = self.process == std::process::id();
        self.value.as_mut().filter(|_| here)
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Its end would wait for threads that this process does not have.
            std::mem::forget(self.value.take());
        }
    }
}

/// Refuses `what` in a process that was forked from one that had done such work: Polars and rayon have one pool of threads a
/// process, which a fork leaves behind, and work on it would wait for ever.
pub fn check_not_forked(what: &str) -> Result<()> {
    static BEGUN_IN: AtomicU32 = AtomicU32::new(0);
    let here = std::process::id();
    match BEGUN_IN.compare_exchange(0, here, Ordering::SeqCst, Ordering::SeqCst) {
        Err(process) if process != here => {
            let reason = "expected a process of its own, found a fork of one that has written or trained already, whose threads \
                          a fork leaves behind; start processes with `spawn` or `forkserver`";
            Err(Error::failed(what, reason))
        }
        _ => Ok(()),
    }
}

/// As many threads as are asked for, or as the process may use where 0 are.
pub fn count(threads: usize) -> Result<usize> {
    match threads {
        0 => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        _ if threads > MAX_THREADS => Err(Error::setting(
            "threads",
            format!("expected at most {MAX_THREADS}, or 0 for all cores, found {threads}"),
        )),
        _ => Ok(threads),
    }
}

/// A new pool of `threads`; 0 for all cores.
pub fn new(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(count(threads)?)
        .thread_name(|number| format!("macula-{number}"))
        .build()
        .map_err(|error| Error::failed("threads", error.to_string()))
}

/// The pool of `threads` that this process shares between calls.
pub fn shared(threads: usize) -> Result<Arc<ThreadPool>> {
    type Pools = BTreeMap<usize, Arc<ThreadPool>>;
    static POOLS: Mutex<Option<OfProcess<Pools>>> = Mutex::new(None);
    let threads = count(threads)?;
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if pools.as_ref().and_then(OfProcess::get).is_none() {
        *pools = Some(OfProcess::new(Pools::new()));
    }
    let Some(known) = pools.as_mut().and_then(OfProcess::get_mut) else {
        return new(threads).map(Arc::new);
    };
    if let Some(pool) = known.get(&threads) {
        return Ok(Arc::clone(pool));
    }
    let pool = Arc::new(new(threads)?);
    known.insert(threads, Arc::clone(&pool));
    Ok(pool)
}
