//! One rank's communicator. NCCL's calls only ask for work on a stream: what goes wrong later is asked for by a thread, so that a peer
//! that has failed does not leave this rank waiting for its GPU for ever.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::abi::{Api, Comm, IN_PROGRESS, Kind, Operation, SUCCESS, Stream, UniqueId};
use crate::{Error, Result};

/// Time between two looks at what goes on.
const EVERY: Duration = Duration::from_millis(100);
/// How long an abort waits for a call that is being made.
const CALLS_END: Duration = Duration::from_secs(1);

/// This process among the ranks that NCCL connects.
pub(super) struct Communicator {
    api: Arc<Api>,
    /// Null once it has ended.
    comm: AtomicPtr<c_void>,
    rank: usize,
    calls: Mutex<()>,
    /// Held while it ends, and while it is asked how it is, which may be beside a call.
    ending: Mutex<()>,
}

/// An identifier for the communicators of one job, made by one rank for all.
pub(super) fn unique_id(api: &Api) -> Result<UniqueId> {
    let mut id = UniqueId([0; super::abi::ID]);
    // SAFETY: the identifier lives as long as the call, which fills it.
    let done = unsafe { (api.get_unique_id)(&raw mut id) };
    checked(api, "ncclGetUniqueId", done, ptr::null_mut(), 0)?;
    Ok(id)
}

fn checked(api: &Api, call: &str, code: c_int, comm: Comm, rank: usize) -> Result<()> {
    match code {
        SUCCESS | IN_PROGRESS => Ok(()),
        code => {
            let reason = format!("{call} failed on rank {rank}: {}", api.error(code, comm));
            Err(Error::failed(format!("NCCL {}", api.version), reason))
        }
    }
}

impl Communicator {
    /// Joins the other ranks, all of which call it with the same `id`, on the GPU that is current for this thread.
    ///
    /// # Errors
    /// What NCCL says.
    pub(super) fn start(api: Arc<Api>, id: UniqueId, rank: usize, size: usize) -> Result<Self> {
        let number = |number: usize| {
            let many = |_| Error::failed("NCCL", format!("expected fewer ranks, found {size}"));
            c_int::try_from(number).map_err(many)
        };
        let mut comm: Comm = ptr::null_mut();
        // SAFETY: the place for the communicator lives as long as the call.
        let done = unsafe { (api.comm_init_rank)(&raw mut comm, number(size)?, id, number(rank)?) };
        checked(&api, "ncclCommInitRank", done, ptr::null_mut(), rank)?;
        Ok(Self {
            api,
            comm: AtomicPtr::new(comm),
            rank,
            calls: Mutex::new(()),
            ending: Mutex::new(()),
        })
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `call`, named `name`, on the communicator.
    fn with(&self, name: &str, call: impl FnOnce(Comm) -> c_int) -> Result<()> {
        let _alone = self.alone();
        let comm = self.comm.load(Ordering::SeqCst);
        if comm.is_null() {
            let reason = format!("{name} on rank {}: the communicator has ended", self.rank);
            return Err(Error::failed("NCCL", reason));
        }
        checked(&self.api, name, call(comm), comm, self.rank)
    }

    /// Asks `stream` for the reduction over ranks of `count` values of `kind` at `values`, in their place.
    ///
    /// # Safety
    /// `values` is memory of the communicator's GPU with as many values, which nothing else uses until `stream` has come past the
    /// reduction; `stream` is one of that GPU.
    pub(super) unsafe fn all_reduce(
        &self,
        values: *mut c_void,
        count: usize,
        (kind, operation): (Kind, Operation),
        stream: Stream,
    ) -> Result<()> {
        self.with("ncclAllReduce", |comm| {
            // SAFETY: the caller's promise; both addresses may be the same.
            unsafe {
                (self.api.all_reduce)(
                    values,
                    values,
                    count,
                    kind as c_int,
                    operation as c_int,
                    comm,
                    stream,
                )
            }
        })
    }

    /// Asks `stream` for the `count` values of `kind` at `own` of every rank, one behind the other in rank order, at `all`.
    ///
    /// # Safety
    /// As [`Communicator::all_reduce`], for `count` values at `own` and as many of every rank at `all`, which do not overlap.
    pub(super) unsafe fn all_gather(
        &self,
        own: *const c_void,
        all: *mut c_void,
        count: usize,
        kind: Kind,
        stream: Stream,
    ) -> Result<()> {
        self.with("ncclAllGather", |comm| {
            // SAFETY: the caller's promise.
            unsafe { (self.api.all_gather)(own, all, count, kind as c_int, comm, stream) }
        })
    }

    /// What has gone wrong behind the calls; none while all is well, and once the communicator has ended.
    fn trouble(&self) -> Option<String> {
        let _alive = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let comm = self.comm.load(Ordering::SeqCst);
        if comm.is_null() {
            return None;
        }
        let mut code = SUCCESS;
        // SAFETY: the communicator does not end while the lock is held. The number lives as long as the call, which may be made
        // beside others.
        let asked = unsafe { (self.api.comm_get_async_error)(comm, &raw mut code) };
        let code = if asked == SUCCESS { code } else { asked };
        let found = checked(&self.api, "a call", code, comm, self.rank);
        found.err().map(|error| error.to_string())
    }

    /// Looks for trouble from here on, and hands it to `tell`, once. Ends with the communicator.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(super) fn watch(self: &Arc<Self>, tell: impl Fn(&Self, String) + Send + 'static) -> Result<()> {
        let watched = Arc::downgrade(self);
        let watch = move || {
            while let Some(communicator) = watched.upgrade() {
                if communicator.comm.load(Ordering::SeqCst).is_null() {
                    return;
                }
                if let Some(trouble) = communicator.trouble() {
                    return tell(&communicator, trouble);
                }
                drop(communicator);
                thread::sleep(EVERY);
            }
        };
        let started = thread::Builder::new().name("nccl".to_owned()).spawn(watch);
        started
            .map(drop)
            .map_err(|error| Error::failed("NCCL", error.to_string()))
    }

    /// Ends the communicator and all that is on its way, without the other ranks. A call that another thread is making is waited for,
    /// but not for long: it may be one that never ends.
    pub(super) fn abort(&self) {
        let start = Instant::now();
        let _alone = loop {
            match self.calls.try_lock() {
                Ok(guard) => break Some(guard),
                Err(TryLockError::Poisoned(guard)) => break Some(guard.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() < CALLS_END => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => break None,
            }
        };
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let comm = self.comm.swap(ptr::null_mut(), Ordering::SeqCst);
        if !comm.is_null() {
            // SAFETY: it has not ended before, and no call finds it from here on but one that never ends, which this is to end.
            let _ = unsafe { (self.api.comm_abort)(comm) };
        }
    }

    /// Ends the communicator with the other ranks, once nothing is on its way.
    ///
    /// # Errors
    /// What NCCL says.
    pub(super) fn finish(&self) -> Result<()> {
        let _alone = self.alone();
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let comm = self.comm.swap(ptr::null_mut(), Ordering::SeqCst);
        if comm.is_null() {
            return Ok(());
        }
        // SAFETY: it has not ended before, and no call finds it from here on.
        let done = unsafe { (self.api.comm_destroy)(comm) };
        checked(&self.api, "ncclCommDestroy", done, ptr::null_mut(), self.rank)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_char;
    use std::sync::atomic::AtomicI32;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::cluster::nccl::abi::Version;

    /// What the communicator below is: its asynchronous error, and how often it was ended.
    #[derive(Default)]
    struct Fake {
        later: AtomicI32,
        aborted: AtomicI32,
        destroyed: AtomicI32,
    }

    fn fake<'a>(comm: Comm) -> &'a Fake {
        // SAFETY: communicators of this test are `Fake`s, which outlive it.
        unsafe { &*comm.cast::<Fake>() }
    }

    unsafe extern "C" fn get_unique_id(id: *mut UniqueId) -> c_int {
        // SAFETY: the caller's.
        unsafe { *id = UniqueId([7; 128]) };
        SUCCESS
    }

    unsafe extern "C" fn comm_init_rank(comm: *mut Comm, size: c_int, id: UniqueId, rank: c_int) -> c_int {
        if rank >= size || id.0 != [7; 128] {
            return 4;
        }
        // SAFETY: the caller's.
        unsafe { *comm = Box::into_raw(Box::<Fake>::default()).cast() };
        SUCCESS
    }

    unsafe extern "C" fn comm_destroy(comm: Comm) -> c_int {
        fake(comm).destroyed.fetch_add(1, Ordering::SeqCst);
        SUCCESS
    }

    unsafe extern "C" fn comm_abort(comm: Comm) -> c_int {
        fake(comm).aborted.fetch_add(1, Ordering::SeqCst);
        SUCCESS
    }

    unsafe extern "C" fn comm_get_async_error(comm: Comm, code: *mut c_int) -> c_int {
        // SAFETY: the caller's.
        unsafe { *code = fake(comm).later.load(Ordering::SeqCst) };
        SUCCESS
    }

    /// Doubles what it is given, as two equal ranks do.
    unsafe extern "C" fn all_reduce(
        own: *const c_void,
        sum: *mut c_void,
        count: usize,
        kind: c_int,
        operation: c_int,
        _: Comm,
        _: Stream,
    ) -> c_int {
        if (kind, operation) != (7, 0) {
            return 4;
        }
        for place in 0..count {
            // SAFETY: the caller's.
            unsafe { *sum.cast::<f32>().add(place) = 2. * *own.cast::<f32>().add(place) };
        }
        SUCCESS
    }

    unsafe extern "C" fn all_gather(
        _: *const c_void,
        _: *mut c_void,
        _: usize,
        _: c_int,
        _: Comm,
        _: Stream,
    ) -> c_int {
        2
    }

    unsafe extern "C" fn get_error_string(code: c_int) -> *const c_char {
        match code {
            2 => c"unhandled system error".as_ptr(),
            4 => c"invalid argument".as_ptr(),
            _ => c"remote process exited".as_ptr(),
        }
    }

    unsafe extern "C" fn get_last_error(comm: Comm) -> *const c_char {
        match comm.is_null() {
            true => ptr::null(),
            false => c"a cable\nis loose".as_ptr(),
        }
    }

    fn library() -> Arc<Api> {
        Arc::new(Api {
            version: Version(2, 32, 3),
            get_unique_id,
            comm_init_rank,
            comm_destroy,
            comm_abort,
            comm_get_async_error,
            all_reduce,
            all_gather,
            get_error_string,
            get_last_error,
        })
    }

    fn started() -> (Arc<Communicator>, &'static Fake) {
        let api = library();
        let id = unique_id(&api).unwrap();
        let communicator = Communicator::start(api, id, 1, 2).unwrap();
        let state = fake(communicator.comm.load(Ordering::SeqCst));
        (Arc::new(communicator), state)
    }

    fn sum(communicator: &Communicator, values: &mut [f32]) -> Result<()> {
        let (place, count) = (values.as_mut_ptr().cast(), values.len());
        // SAFETY: the library of this test takes memory of the host.
        unsafe { communicator.all_reduce(place, count, (Kind::F32, Operation::Sum), ptr::null_mut()) }
    }

    #[test]
    fn calls_are_made_until_it_ends() {
        let (communicator, state) = started();
        let mut values = [1., -2.5];
        sum(&communicator, &mut values).unwrap();
        assert_eq!(values, [2., -5.]);
        communicator.finish().unwrap();
        communicator.finish().unwrap();
        communicator.abort();
        let ended = [&state.destroyed, &state.aborted].map(|count| count.load(Ordering::SeqCst));
        assert_eq!(ended, [1, 0]);
        assert_eq!(
            sum(&communicator, &mut values).unwrap_err().to_string(),
            "NCCL: ncclAllReduce on rank 1: the communicator has ended"
        );
    }

    #[test]
    fn errors_name_the_call_and_what_nccl_says() {
        let (communicator, _) = started();
        let mut all = [0f32; 2];
        // SAFETY: the library of this test touches nothing.
        let done = unsafe {
            let (own, all) = (ptr::null(), all.as_mut_ptr().cast());
            communicator.all_gather(own, all, 1, Kind::F32, ptr::null_mut())
        };
        assert_eq!(
            done.unwrap_err().to_string(),
            "NCCL 2.32.3: ncclAllGather failed on rank 1: unhandled system error (a cable is loose)"
        );
        let id = UniqueId([7; 128]);
        let refused = Communicator::start(library(), id, 2, 2).err().unwrap();
        assert_eq!(
            refused.to_string(),
            "NCCL 2.32.3: ncclCommInitRank failed on rank 2: invalid argument"
        );
    }

    #[test]
    fn what_goes_wrong_later_is_told_once() {
        let (communicator, state) = started();
        let (tell, told) = channel();
        communicator
            .watch(move |communicator, trouble| {
                communicator.abort();
                let _ = tell.send(trouble);
            })
            .unwrap();
        assert!(told.recv_timeout(3 * EVERY).is_err());
        // In progress is no error.
        state.later.store(IN_PROGRESS, Ordering::SeqCst);
        assert!(told.recv_timeout(3 * EVERY).is_err());
        state.later.store(6, Ordering::SeqCst);
        assert_eq!(
            told.recv_timeout(Duration::from_secs(20)).unwrap(),
            "NCCL 2.32.3: a call failed on rank 1: remote process exited (a cable is loose)"
        );
        assert_eq!(state.aborted.load(Ordering::SeqCst), 1);
        // The thread has gone, and with it what it tells by.
        assert!(told.recv_timeout(Duration::from_secs(20)).is_err());
        communicator.abort();
        assert_eq!(state.aborted.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_abort_does_not_wait_for_a_call_that_never_ends() {
        let (communicator, state) = started();
        let call = communicator.alone();
        thread::scope(|scope| {
            scope.spawn(|| communicator.abort()).join().unwrap();
        });
        drop(call);
        assert_eq!(state.aborted.load(Ordering::SeqCst), 1);
    }
}
