//! Processes that MPI connects. Its library is loaded at run time (`abi`), so that one program runs under any of them, and on
//! machines without one.
//!
//! All calls are collective and made under one lock: which thread makes them changes from step to step, and a library that serves
//! threads one at a time (`MPI_THREAD_SERIALIZED`) is enough.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::abi::{Api, SUCCESS};
use super::launch::{Launch, Launcher};
use super::ranks::{Ranks, Reduction};
use super::tcp::{self, Lifelines};
use crate::{Error, Result};

/// The most elements that one call reduces, and bytes that it gathers of each rank: a count is an `int`, and libraries set memory
/// of the same size aside.
const AT_ONCE: usize = 1 << 24;

/// This process among those of an MPI job.
pub(super) struct Mpi {
    api: Api,
    path: PathBuf,
    rank: usize,
    size: usize,
    /// Whether MPI was started here: another library of the process may have done so, and ends it then.
    own: bool,
    calls: Mutex<()>,
    /// How it finds out that another has gone, where the launcher does not end all then.
    lifelines: Option<Lifelines>,
}

impl Mpi {
    /// Joins the job of `launch` with the library at `path`.
    ///
    /// # Errors
    /// A library that cannot be loaded, does not serve threads, or is not that of the launcher: it then finds each process alone.
    pub(super) fn start(path: &Path, launch: &Launch) -> Result<Self> {
        let name = || path.display().to_string();
        let api = Api::load(path).map_err(|reason| Error::failed(name(), reason))?;
        let mut mpi = Self {
            api,
            path: path.to_path_buf(),
            rank: 0,
            size: 1,
            own: false,
            calls: Mutex::new(()),
            lifelines: None,
        };
        // Some libraries end the process with words of their own when another's launcher has started it.
        if let Some(reason) = launch.other_library(&mpi.api.version()) {
            return Err(Error::failed(mpi.library(), reason));
        }
        mpi.begin()?;
        let world = mpi.api.constants.world;
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: MPI runs; the numbers live as long as the calls.
        unsafe {
            // Errors come back as codes: by default the library would end the process with words of its own.
            let errors_return = mpi.api.constants.errors_return;
            mpi.check(
                "MPI_Comm_set_errhandler",
                (mpi.api.set_errhandler)(world, errors_return),
            )?;
            mpi.check("MPI_Comm_rank", (mpi.api.comm_rank)(world, &raw mut rank))?;
            mpi.check("MPI_Comm_size", (mpi.api.comm_size)(world, &raw mut size))?;
        }
        let number = |found: c_int| usize::try_from(found).unwrap_or(0);
        (mpi.rank, mpi.size) = (number(rank), number(size));
        if let Some(reason) = launch.refusal(mpi.rank, mpi.size) {
            return Err(Error::failed(mpi.library(), reason));
        }
        if launch.launcher == Launcher::Slurm {
            mpi.lifelines = tcp::guard(&mpi)?;
        }
        Ok(mpi)
    }

    /// Starts MPI, unless another library of this process has.
    fn begin(&mut self) -> Result<()> {
        let (mut running, mut over): (c_int, c_int) = (0, 0);
        // SAFETY: both may be asked at any time; the numbers live as long as the calls.
        unsafe {
            self.check("MPI_Initialized", (self.api.initialized)(&raw mut running))?;
            self.check("MPI_Finalized", (self.api.finalized)(&raw mut over))?;
        }
        if over != 0 {
            let reason = "MPI has ended in this process, and cannot begin again: one run a process";
            return Err(Error::failed(self.library(), reason));
        }
        if running != 0 {
            return Ok(());
        }
        let wanted = self.api.constants.thread_serialized;
        let mut provided: c_int = 0;
        // SAFETY: MPI has not been started; it may be without arguments.
        let done =
            unsafe { (self.api.init_thread)(ptr::null_mut(), ptr::null_mut(), wanted, &raw mut provided) };
        self.check("MPI_Init_thread", done)?;
        self.own = true;
        if provided < wanted {
            let reason = format!(
                "expected support for threads (MPI_THREAD_SERIALIZED, {wanted}), found level {provided}; \
                 use a library that was built with it"
            );
            return Err(Error::failed(self.library(), reason));
        }
        Ok(())
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        match code {
            SUCCESS => Ok(()),
            code => {
                let reason = format!("{call} failed on rank {}: {}", self.rank, self.api.error(code));
                Err(Error::failed(self.library(), reason))
            }
        }
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reduces values of `dtype` in place.
    fn reduce<T>(&self, values: &mut [T], dtype: usize, reduction: Reduction) -> Result<()> {
        let constants = &self.api.constants;
        let operation = match reduction {
            Reduction::Sum => constants.sum,
            Reduction::Max => constants.max,
        };
        let _alone = self.alone();
        for part in values.chunks_mut(AT_ONCE) {
            let count = part.len() as c_int; // at most AT_ONCE
            // SAFETY: `part` holds `count` values of `dtype`, which nobody else has while it is borrowed, and is both what is
            // reduced and where the result goes.
            let done = unsafe {
                (self.api.all_reduce)(
                    constants.in_place as *const c_void,
                    part.as_mut_ptr().cast(),
                    count,
                    dtype,
                    operation,
                    constants.world,
                )
            };
            self.check("MPI_Allreduce", done)?;
        }
        Ok(())
    }

    /// As many bytes of every rank, in rank order.
    fn gather_alike(&self, own: &[u8]) -> Result<Vec<u8>> {
        let mut all = vec![0; own.len() * self.size];
        let constants = &self.api.constants;
        let count = own.len() as c_int; // at most AT_ONCE
        // SAFETY: `own` is read, `all` has room for as much of every rank.
        let done = unsafe {
            (self.api.all_gather)(
                own.as_ptr().cast(),
                count,
                constants.byte,
                all.as_mut_ptr().cast(),
                count,
                constants.byte,
                constants.world,
            )
        };
        self.check("MPI_Allgather", done)?;
        Ok(all)
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        self.reduce(values, self.api.constants.float, reduction)
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        self.reduce(values, self.api.constants.double, reduction)
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _alone = self.alone();
        let lengths = self.gather_alike(&(own.len() as u64).to_le_bytes())?;
        let lengths: Vec<usize> = lengths
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&bytes| u64::from_le_bytes(bytes) as usize)
            .collect();
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|&length| Vec::with_capacity(length)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for from in (0..longest).step_by(AT_ONCE) {
            let room = (longest - from).min(AT_ONCE);
            let mut part = own.get(from..).unwrap_or_default().to_vec();
            part.resize(room, 0); // of unequal lengths: what is missing is cut off below
            let parts = self.gather_alike(&part)?;
            for ((rank, &length), part) in all.iter_mut().zip(&lengths).zip(parts.chunks_exact(room)) {
                rank.extend_from_slice(&part[..room.min(length.saturating_sub(from))]);
            }
        }
        Ok(all)
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        let length = parts.len() / self.size;
        if length > AT_ONCE || length * self.size != parts.len() {
            let reason = format!(
                "expected {} equal parts of at most {AT_ONCE} bytes, found {} bytes",
                self.size,
                parts.len()
            );
            return Err(Error::failed(self.library(), reason));
        }
        let _alone = self.alone();
        let mut came = vec![0; parts.len()];
        let constants = &self.api.constants;
        let count = length as c_int; // at most AT_ONCE
        // SAFETY: both hold `count` bytes for each of the ranks; `parts` is read and `came` written.
        let done = unsafe {
            (self.api.all_to_all)(
                parts.as_ptr().cast(),
                count,
                constants.byte,
                came.as_mut_ptr().cast(),
                count,
                constants.byte,
                constants.world,
            )
        };
        self.check("MPI_Alltoall", done)?;
        Ok(came)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let _alone = self.alone();
        let mut length = (bytes.len() as u64).to_le_bytes();
        let send = |bytes: &mut [u8]| {
            let count = bytes.len() as c_int; // at most AT_ONCE
            let constants = &self.api.constants;
            // SAFETY: `bytes` is read on the rank `from` and written on the others, whose are as long.
            let done = unsafe {
                let data = bytes.as_mut_ptr().cast();
                (self.api.broadcast)(data, count, constants.byte, from as c_int, constants.world)
            };
            self.check("MPI_Bcast", done)
        };
        send(&mut length)?;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        bytes.chunks_mut(AT_ONCE).try_for_each(send)
    }

    fn barrier(&self) -> Result<()> {
        let _alone = self.alone();
        // SAFETY: MPI runs.
        let done = unsafe { (self.api.barrier)(self.api.constants.world) };
        self.check("MPI_Barrier", done)
    }

    fn finish(&self) -> Result<()> {
        if self.own {
            self.barrier()?;
        }
        self.lifelines.iter().for_each(Lifelines::leave);
        if !self.own {
            return Ok(());
        }
        let _alone = self.alone();
        // SAFETY: every rank has arrived, nothing is on its way, and no call follows.
        let done = unsafe { (self.api.finalize)() };
        self.check("MPI_Finalize", done)
    }

    fn abort(&self, code: u8) {
        self.lifelines.iter().for_each(|lines| lines.tell_end(code));
        // Not under the lock: another thread may be waiting in a call that never ends.
        //
        // SAFETY: MPI runs; ending the job is allowed while calls are being made, and does not come back.
        let _ = unsafe { (self.api.abort)(self.api.constants.world, c_int::from(code)) };
    }

    fn library(&self) -> String {
        format!("{} ({})", self.path.display(), self.api.version())
    }
}
