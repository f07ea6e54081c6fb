//! MPI's functions and constants as binaries have them. There are three dialects: the standard ABI (MPI 5.0, MPICH 5 and later),
//! that of MPICH (also Intel MPI, Cray MPICH and MVAPICH) and that of Open MPI, whose handles are addresses of data. The constants are
//! those of the `mpi.h` of MPICH 5.0.2 (`mpi_abi.h`, `mpi.h`) and of Open MPI 4.1 and 5.0.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// A handle: a number of 32 bits in MPICH's dialect, of a pointer's size in the others. In the registers of x86-64 and AArch64, which
/// carry all arguments of the functions used here, the first is the low half of the second.
pub(super) type Handle = usize;

/// What answers `MPI_SUCCESS`.
pub(super) const SUCCESS: c_int = 0;
/// Room for a version or an error's text: more than any dialect writes (`MPI_MAX_LIBRARY_VERSION_STRING` is 8192 at most).
pub(super) const TEXT: usize = 16_384;

/// How a library's binary interface looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// That of MPI 5.0.
    Standard,
    /// That of MPICH.
    Mpich,
    /// That of Open MPI.
    OpenMpi,
}

/// The constants that are used, by dialect.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants {
    pub(super) world: Handle,
    pub(super) float: Handle,
    pub(super) double: Handle,
    pub(super) byte: Handle,
    pub(super) sum: Handle,
    pub(super) max: Handle,
    pub(super) in_place: usize,
    pub(super) errors_return: Handle,
    pub(super) thread_serialized: c_int,
}

/// `mpi_abi.h` of MPI 5.0.
const STANDARD: Constants = Constants {
    world: 0x101,
    float: 0x210,
    double: 0x214,
    byte: 0x247,
    sum: 0x21,
    max: 0x23,
    in_place: 1,
    errors_return: 0x143,
    thread_serialized: 2048,
};

/// `mpi.h` of MPICH; `MPI_IN_PLACE` is (void *) -1.
const MPICH: Constants = Constants {
    world: 0x4400_0000,
    float: 0x4c00_040a,
    double: 0x4c00_080b,
    byte: 0x4c00_010d,
    sum: 0x5800_0003,
    max: 0x5800_0001,
    in_place: usize::MAX,
    errors_return: 0x5400_0001,
    thread_serialized: 2,
};

/// The functions of a library that has been loaded, and its constants. The library stays for the rest of the process, as MPI
/// itself does.
pub(super) struct Api {
    pub(super) dialect: Dialect,
    pub(super) constants: Constants,
    pub(super) initialized: unsafe extern "C" fn(*mut c_int) -> c_int,
    pub(super) finalized: unsafe extern "C" fn(*mut c_int) -> c_int,
    pub(super) init_thread:
        unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    pub(super) finalize: unsafe extern "C" fn() -> c_int,
    pub(super) abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    pub(super) comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) set_errhandler: unsafe extern "C" fn(Handle, Handle) -> c_int,
    pub(super) barrier: unsafe extern "C" fn(Handle) -> c_int,
    pub(super) broadcast: unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle) -> c_int,
    pub(super) all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, c_int, Handle, Handle, Handle) -> c_int,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle) -> c_int,
    pub(super) all_to_all:
        unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle) -> c_int,
    pub(super) library_version: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    pub(super) error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
}

impl Api {
    /// Loads the library at `path`, which is absolute.
    ///
    /// # Errors
    /// In words, without the path: what the loader says, a function that is missing.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        // Global, or Open MPI's own plug-ins do not find its symbols.
        //
        // SAFETY: loading runs the library's initialisers. It is the MPI that launched this process, or one that the user named.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| format!("cannot be loaded ({error})"))?;
        let dialect = Dialect::of(path, &library);
        let constants = match dialect {
            Dialect::Standard => STANDARD,
            Dialect::Mpich => MPICH,
            Dialect::OpenMpi => open_mpi(&library)?,
        };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types are those of the MPI standard, with handles as the dialect has them (`Handle`).
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| format!("has no {}", $name))?
            };
        }
        let api = Self {
            dialect,
            constants,
            initialized: function!("MPI_Initialized"),
            finalized: function!("MPI_Finalized"),
            init_thread: function!("MPI_Init_thread"),
            finalize: function!("MPI_Finalize"),
            abort: function!("MPI_Abort"),
            comm_rank: function!("MPI_Comm_rank"),
            comm_size: function!("MPI_Comm_size"),
            set_errhandler: function!("MPI_Comm_set_errhandler"),
            barrier: function!("MPI_Barrier"),
            broadcast: function!("MPI_Bcast"),
            all_reduce: function!("MPI_Allreduce"),
            all_gather: function!("MPI_Allgather"),
            all_to_all: function!("MPI_Alltoall"),
            library_version: function!("MPI_Get_library_version"),
            error_string: function!("MPI_Error_string"),
        };
        // MPI cannot be unloaded and loaded again, and the pointers above must not outlive it.
        std::mem::forget(library);
        Ok(api)
    }

    /// What the library says of itself, its first line: `Open MPI v5.0.11, ..`.
    pub(super) fn version(&self) -> String {
        let whole = text_of(|text, length| {
            // SAFETY: `text` has room for more than the standard's longest, and the call may come before MPI is initialised.
            unsafe { (self.library_version)(text, length) }
        });
        let lines = whole
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        match self.dialect {
            // `MPICH Version: 5.0.2`, then a page on how it was built.
            Dialect::Standard | Dialect::Mpich => lines.map(|line| line.replace("Version: ", "")).next(),
            // `Open MPI v5.0.11, package: .., ident: ..`.
            Dialect::OpenMpi => lines
                .map(|line| line.split(',').next().unwrap_or("").to_owned())
                .next(),
        }
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| "MPI of an unknown version".to_owned())
    }

    /// What `code` means.
    pub(super) fn error(&self, code: c_int) -> String {
        let text = text_of(|text, length| {
            // SAFETY: as in `version`; any number may be asked about.
            unsafe { (self.error_string)(code, text, length) }
        });
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() {
            format!("error {code}")
        } else {
            text
        }
    }
}

impl Dialect {
    /// Which `library` at `path` speaks. MPICH's own library has the standard's symbols too, so that its name decides.
    fn of(path: &Path, library: &Library) -> Self {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // SAFETY: only the address is looked at.
        let open_mpi: Result<Symbol<*mut c_void>, _> = unsafe { library.get(b"ompi_mpi_comm_world") };
        if name.starts_with("libmpi_abi.") {
            Self::Standard
        } else if open_mpi.is_ok() {
            Self::OpenMpi
        } else {
            Self::Mpich
        }
    }
}

/// Open MPI's handles are the addresses of these.
fn open_mpi(library: &Library) -> Result<Constants, String> {
    let address = |name: &str| {
        // SAFETY: the symbol is data, of which only the address is taken.
        let symbol: Result<Symbol<*mut c_void>, _> = unsafe { library.get(name.as_bytes()) };
        let symbol = symbol.map_err(|_| format!("has no {name}"))?;
        Ok::<_, String>(symbol.into_raw() as Handle)
    };
    Ok(Constants {
        world: address("ompi_mpi_comm_world")?,
        float: address("ompi_mpi_float")?,
        double: address("ompi_mpi_double")?,
        byte: address("ompi_mpi_byte")?,
        sum: address("ompi_mpi_op_sum")?,
        max: address("ompi_mpi_op_max")?,
        in_place: 1,
        errors_return: address("ompi_mpi_errors_return")?,
        thread_serialized: 2,
    })
}

/// The text that `write` leaves.
fn text_of(write: impl FnOnce(*mut c_char, *mut c_int) -> c_int) -> String {
    let mut text = vec![0u8; TEXT];
    let mut length: c_int = 0;
    let done = write(text.as_mut_ptr().cast(), &raw mut length);
    let length = usize::try_from(length).unwrap_or(0).min(TEXT);
    match done {
        SUCCESS => String::from_utf8_lossy(&text[..length])
            .trim_end_matches('\0')
            .to_owned(),
        _ => String::new(),
    }
}
