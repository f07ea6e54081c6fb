//! SIGINT and SIGTERM while a run lasts: it ends after its step, with a checkpoint. In a job of many processes SIGUSR1 does so too:
//! launchers hand it on to all of them, and leave them the time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

use super::{Host, called};
use crate::{Error, Result};

/// Signals of a job alone.
#[cfg(unix)]
const OF_A_JOB: &[i32] = &[signal_hook::consts::SIGUSR1];
#[cfg(not(unix))]
const OF_A_JOB: &[i32] = &[];

/// A flag that the signals set. Handlers go with it, and whoever had some before has the signals to itself again.
pub struct StopSignals {
    flag: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

impl StopSignals {
    /// Listens from now on. In a process of its own a second SIGINT ends that at once; in another's, and in a job, whose processes get
    /// one from the terminal and one from their launcher, it only asks again.
    pub fn listen(host: Host, one_of_many: bool) -> Result<Self> {
        let failed = |e: std::io::Error| Error::failed("signals", e.to_string());
        let mut stop = Self {
            flag: called::stop_flag(),
            handlers: Vec::new(),
        };
        if host == Host::Own && !one_of_many {
            // First, so that the first SIGINT finds the flag unset.
            let ends = flag::register_conditional_shutdown(SIGINT, 130, stop.flag());
            stop.handlers.push(ends.map_err(failed)?);
        }
        let of_a_job = if one_of_many { OF_A_JOB } else { &[] };
        for &signal in [SIGINT, SIGTERM].iter().chain(of_a_job) {
            let asks = flag::register(signal, stop.flag());
            stop.handlers.push(asks.map_err(failed)?);
        }
        Ok(stop)
    }

    /// The flag.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}
