//! NCCL's functions and constants as binaries have them: those of the `nccl.h` of 2.32, which have not changed since 2.18.

#![allow(unsafe_code)]
// A build without CUDA loads the library for `macula doctor` alone.
#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// What answers `ncclSuccess`.
pub(super) const SUCCESS: c_int = 0;
/// `ncclInProgress`: no error, and no end yet.
pub(super) const IN_PROGRESS: c_int = 7;
/// The oldest version that is used: what machines with CUDA 12 have at least.
pub(super) const OLDEST: Version = Version(2, 18, 0);
/// Bytes of an identifier.
pub(super) const ID: usize = 128;

/// A communicator, which only the library looks into.
pub(super) type Comm = *mut c_void;
/// A stream of CUDA: the driver's and the runtime's are one and the same.
pub(super) type Stream = *mut c_void;

/// What ranks find each other by; handed over by value.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; ID]);

/// `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

/// `ncclRedOp_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Operation {
    Sum = 0,
    Max = 2,
}

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// The version that `ncclGetVersion` gives as one number; until 2.8 it was made otherwise.
    pub(super) fn of_code(code: c_int) -> Self {
        let code = u32::try_from(code).unwrap_or(0);
        let major = if code < 10_000 { 1000 } else { 10_000 };
        Self(code / major, code % major / 100, code % 100)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The functions of a library that has been loaded. It stays for the rest of the process.
pub(super) struct Api {
    pub(super) version: Version,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(super) comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    pub(super) comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    pub(super) comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    pub(super) comm_get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    pub(super) all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int,
    pub(super) get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
}

impl Api {
    /// Loads the library at `path`, which is absolute.
    ///
    /// # Errors
    /// In words, without the path: what the loader says, a function that is missing, a version that is too old.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the library's initialisers. It is one that the user named, or lies where NCCL does.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| format!("cannot be loaded ({error})"))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types are those of `nccl.h`; its enumerations are of C's `int`.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| format!("has no {}", $name))?
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = function!("ncclGetVersion");
        let mut code = 0;
        // SAFETY: the number lives as long as the call.
        let done = unsafe { get_version(&raw mut code) };
        let version = Version::of_code(code);
        if done != SUCCESS || version < OLDEST {
            return Err(format!("expected NCCL {OLDEST} or newer, found {version}"));
        }
        let api = Self {
            version,
            get_unique_id: function!("ncclGetUniqueId"),
            comm_init_rank: function!("ncclCommInitRank"),
            comm_destroy: function!("ncclCommDestroy"),
            comm_abort: function!("ncclCommAbort"),
            comm_get_async_error: function!("ncclCommGetAsyncError"),
            all_reduce: function!("ncclAllReduce"),
            all_gather: function!("ncclAllGather"),
            get_error_string: function!("ncclGetErrorString"),
            get_last_error: function!("ncclGetLastError"),
        };
        // Its threads may run until the process ends, and the pointers above must not outlive it.
        std::mem::forget(library);
        Ok(api)
    }

    /// What `code` means, and what the library says of its latest error where it says anything.
    pub(super) fn error(&self, code: c_int, comm: Comm) -> String {
        // SAFETY: both may be asked at any time and give text that stays, or null; a communicator may be null.
        let (meaning, last) = unsafe {
            (
                text((self.get_error_string)(code)),
                text((self.get_last_error)(comm)),
            )
        };
        let meaning = meaning.unwrap_or_else(|| format!("error {code}"));
        match last {
            Some(last) => format!("{meaning} ({last})"),
            None => meaning,
        }
    }
}

/// The text at `address` in one line; none where there is none.
///
/// # Safety
/// `address` is null or that of a text of C, which nobody changes meanwhile.
unsafe fn text(address: *const c_char) -> Option<String> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(address) }.to_string_lossy().into_owned();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_both_kinds_of_numbers() {
        for (code, version) in [
            (23_203, Version(2, 32, 3)),
            (21_805, Version(2, 18, 5)),
            (2804, Version(2, 8, 4)),
            (-1, Version(0, 0, 0)),
        ] {
            assert_eq!(Version::of_code(code), version);
        }
        assert!(Version(2, 8, 4) < OLDEST && Version(2, 32, 3) > OLDEST);
        assert_eq!(Version(2, 32, 3).to_string(), "2.32.3");
    }

    #[test]
    fn what_is_no_library_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libnccl.so.2");
        std::fs::write(&path, b"no library").unwrap();
        let reason = Api::load(&path).err().unwrap();
        assert!(reason.starts_with("cannot be loaded ("), "{reason}");
    }
}
