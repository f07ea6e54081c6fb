//! The processes of a run on many cores and machines: who started them ([`launch`]), what connects them (`mpi`, by a library that is
//! found and loaded at run time: `locate`, `abi`, [`install`]; `tcp` where a launcher brings no MPI), and the one trait that everything
//! else sees of it ([`Ranks`]). One process is the case of one rank, without a library; or of several that are its [`threads`].
//!
//! `nccl` lays sums of tensors that stay on GPUs over either of the two.

#[cfg(unix)]
mod abi;
mod differentiable;
pub mod install;
pub mod launch;
mod locate;
#[cfg(unix)]
mod mpi;
mod nccl;
mod pending;
mod ranks;
mod rates;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(unix)]
mod tcp;
mod team;
pub mod threads;
#[cfg(unix)]
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use candle_core::Device;
use serde::Serialize;

pub use differentiable::{gather_with_gradient, sum_with_gradient};
pub use launch::{Launch, Launcher};
pub use nccl::NcclReport;
pub use pending::PendingSum;
pub use ranks::{OneRank, Ranks, Reduction};
pub use rates::{ExchangeRate, exchange_rates};
pub use team::OfRanks;

use crate::device::peak_resident;
use crate::{Error, Result};

/// The job that this process has joined. A process can join one: MPI cannot begin again once it has ended.
static JOINED: OnceLock<Arc<dyn Ranks>> = OnceLock::new();
/// The same job with GPUs that NCCL connects, where they are.
static ON_DEVICE: OnceLock<Arc<dyn Ranks>> = OnceLock::new();
/// Whether it has left it.
static LEFT: AtomicBool = AtomicBool::new(false);
/// How long the other ranks wait before they tell of an error: one that all have, the first rank tells alone. Open MPI takes two seconds to
/// end them.
const FIRST_SPEAKS: Duration = Duration::from_secs(3);

/// Joins the job that this process was started in; without a launcher, or alone in its job, it is the one rank of its own.
///
/// # Errors
/// Variables of a launcher that contradict each other, a library that is missing or is not the launcher's.
pub fn join() -> Result<Arc<dyn Ranks>> {
    if LEFT.load(Ordering::Relaxed) {
        let reason = "this process has left its job, and cannot join one again: one run a process";
        return Err(Error::failed("MPI", reason));
    }
    if let Some(ranks) = JOINED.get() {
        return Ok(Arc::clone(ranks));
    }
    let Some(launch) = Launch::of_this_process()?.filter(|launch| launch.size > 1) else {
        return Ok(Arc::new(OneRank));
    };
    let ranks = start(&launch)?;
    Ok(Arc::clone(JOINED.get_or_init(|| ranks)))
}

/// Connects this process with the others of `launch`: by the launcher's MPI, or by TCP where it brings none.
#[cfg(unix)]
fn start(launch: &Launch) -> Result<Arc<dyn Ranks>> {
    if launch.launcher == Launcher::Torchrun {
        let ranks = tcp::Tcp::start(launch)?;
        // Without torchrun somebody has set its variables by hand, and may have gone since.
        if std::env::var_os(tcp::RUN_ID).is_some() {
            watch::end_with_the_launcher();
        }
        return Ok(Arc::new(ranks));
    }
    let ranks = mpi::Mpi::start(&locate::locate(Some(launch))?.path, launch)?;
    watch::end_with_the_launcher();
    Ok(Arc::new(ranks))
}

#[cfg(not(unix))]
fn start(launch: &Launch) -> Result<Arc<dyn Ranks>> {
    let reason = "runs of many processes are for Linux and macOS in this version";
    Err(Error::failed(launch.launcher.to_string(), reason))
}

/// `ranks` with sums of tensors that stay on `device`, where that is a GPU and all have NCCL. All ranks of a job of many call it; one of
/// its own stays as it is.
///
/// # Errors
/// A library that is named and cannot be used, ranks that cannot reach each other, what NCCL has against connecting them.
pub fn on_device(ranks: Arc<dyn Ranks>, device: &Device) -> Result<Arc<dyn Ranks>> {
    match ranks.is_one() {
        true => Ok(ranks),
        false => connect_devices(ranks, device),
    }
}

/// As [`on_device`], also for one rank: to see that NCCL works here.
///
/// # Errors
/// As there.
pub fn connect_devices(ranks: Arc<dyn Ranks>, device: &Device) -> Result<Arc<dyn Ranks>> {
    if let Some(connected) = ON_DEVICE.get() {
        // All ranks have them from the same call.
        return Ok(Arc::clone(connected));
    }
    let connected = nccl::on_device(Arc::clone(&ranks), device)?;
    if connected.sums_on(device) {
        return Ok(Arc::clone(ON_DEVICE.get_or_init(|| connected)));
    }
    Ok(connected)
}

/// The job that this process has joined, by all that connects it.
fn joined() -> Option<&'static Arc<dyn Ranks>> {
    ON_DEVICE.get().or_else(|| JOINED.get())
}

/// Takes leave of the job that this process has joined, if any, once all ranks do.
///
/// # Errors
/// Ranks that cannot reach each other.
pub fn leave() -> Result<()> {
    match joined() {
        Some(ranks) if !LEFT.swap(true, Ordering::Relaxed) => ranks.finish(),
        _ => Ok(()),
    }
}

/// Ends all processes of the job that this one has joined, with exit code `code`; does nothing where it has joined none. The others
/// would wait for this one for ever.
pub fn end(code: u8) {
    if let Some(ranks) = joined()
        && !LEFT.load(Ordering::Relaxed)
    {
        ranks.abort(code);
    }
}

/// Who tells of an error in a job of many: `rank 2 on node7`, after a moment in which the first rank ends the job if it has the same to
/// tell; none for the first rank and outside of jobs.
pub fn speaker() -> Option<String> {
    let launch = started_in()?;
    (launch.rank > 0).then(|| {
        std::thread::sleep(FIRST_SPEAKS);
        format!("rank {} on {}", launch.rank, host())
    })
}

/// How this process was started, where it is one of several.
pub fn started_in() -> Option<Launch> {
    let launch = Launch::of_this_process().ok().flatten();
    launch.filter(|launch| launch.size > 1)
}

/// The number of the GPU that this process should use where it is one of several: that among the processes of its machine, or 0 where
/// `CUDA_VISIBLE_DEVICES` shows it one alone.
pub fn gpu() -> Option<usize> {
    let launch = started_in()?;
    let shown = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    Some(match !shown.is_empty() && !shown.contains(',') {
        true => 0,
        false => launch.local_rank,
    })
}

/// Says what memory each of `ranks` has needed so far, where there are several. All of them call it.
///
/// # Errors
/// Ranks that cannot reach each other.
pub fn tell_memory(ranks: &dyn Ranks) -> Result<()> {
    if ranks.is_one() || ranks.is_one_process() {
        return Ok(());
    }
    let all = ranks.gather_f32(&[peak_resident() as f32 / 1e9])?;
    let listed: Vec<String> = all.iter().flatten().map(|size| format!("{size:.2}")).collect();
    tracing::info!(
        "memory of ranks 0 to {}, at most: {} GB",
        all.len() - 1,
        listed.join(", ")
    );
    Ok(())
}

/// The name of this machine.
pub fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = kernel.or_else(|_| std::env::var("HOSTNAME"));
    name.map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// Threads that a process should use where nobody says: its share of the cores that it may run on. Launchers that bind each process
/// to cores of its own have divided them already.
pub fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let local = started_in().and_then(|launch| launch.local_size);
    match local {
        Some(local) if Some(cores) == online_cores() => (cores / local).max(1),
        _ => cores,
    }
}

/// Cores of the machine; none where the system does not say.
fn online_cores() -> Option<usize> {
    cores_in(&std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// The number of cores in a list such as `0-3,8`.
fn cores_in(list: &str) -> Option<usize> {
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then(|| last - first + 1)
    };
    list.trim().split(',').map(count).sum()
}

/// What `macula doctor` says of MPI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MpiReport {
    /// The library that a run of many processes would use here.
    pub library: Option<PathBuf>,
    /// How it was found.
    pub origin: Option<&'static str>,
    /// The launcher of the pinned build in the cache.
    pub mpiexec: Option<PathBuf>,
}

impl MpiReport {
    /// Looks around; loads nothing.
    pub fn gather() -> Self {
        let launch = Launch::of_this_process().ok().flatten();
        let found = locate::locate(launch.as_ref()).ok();
        Self {
            origin: found.as_ref().map(|found| found.origin),
            library: found.map(|found| found.path),
            mpiexec: install::mpiexec(),
        }
    }
}

impl fmt::Display for MpiReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<20} {value}");
        match (&self.library, self.origin) {
            (Some(library), Some(origin)) => line("MPI", &format!("{} ({origin})", library.display()))?,
            _ => line(
                "MPI",
                "none; for runs of many processes `macula runtime install --flavor mpi`",
            )?,
        }
        match &self.mpiexec {
            Some(mpiexec) => line("  mpiexec", &mpiexec.display().to_string()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_counted() {
        assert_eq!(cores_in("0-3,8\n"), Some(5));
        assert_eq!(cores_in("0"), Some(1));
        assert_eq!(cores_in("3-1"), None);
        assert_eq!(cores_in("all"), None);
    }
}
