//! The CUDA kernels on the processor: their sources compiled by a C++ compiler with what CUDA gives them emulated, and every small
//! launch run three times with its threads in different orders. A launch fails when the orders give different bits, when an argument is
//! not of the parameter's type, when values moved at once are not aligned, when something is written that should only be read or
//! lies before a buffer; what is read or written behind a buffer ends the process with a word.
//!
//! What it cannot see, and a GPU has to show (`benchmarks/cuda/first_run.sh`):
//! - the driver's side: streams, events, copies and their waits, two openings of one device, loading of modules, memory running out
//!   (`train/feed/lane_tests.rs` has a stand-in for streams and events; `device/gpu.rs` opens a device once);
//! - cuBLAS: which algorithm, how its products round, which layouts it takes. Here products are candle's on the processor;
//! - candle's own kernels: copies of strided tensors, casts, sums, `index_select`;
//! - what nvcc makes of a source: whether it compiles at all (host functions in kernels, for one), which operations it fuses (here none
//!   are), how `expf`, `erff` and `ex2.approx` round; the PTX of `mma`, `ldmatrix` and `cp.async`,
//!   of which there are twins by what is documented (a copy arrives when its thread waits for it, and leaves no number until then);
//! - blocks that run at the same time: one ends before the next begins, so that a kernel which adds to what another block adds to is right
//!   here; warps that drift apart between two barriers run in three orders and in no others;
//! - shared memory beyond what a GPU gives a block (`geometry.rs` has tests of its own), registers, spills (`ptxas -v`), bank conflicts,
//!   occupancy, and speed altogether;
//! - a misaligned access of a single value, which is aligned by its type; those of several values at once are checked;
//! - addresses of more than 2^31 values, since nothing so large is run.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::DType;
use libloading::Library;
use macula_models::ops::cuda::geometry::Launch;
use macula_models::ops::cuda::{Access, Buffer, Cell, Launcher};

const ORDERS: u32 = 3;
/// Beyond so many threads a launch is run in one order only.
const MANY_THREADS: u64 = 1 << 15;

/// The kernels, compiled once a process.
pub fn launcher() -> Arc<dyn Launcher> {
    static EMULATOR: OnceLock<Arc<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Arc::new(Emulator::compile())).clone()
}

struct Emulator {
    library: Library,
    /// The emulation has one GPU, so to say.
    busy: Mutex<()>,
}

type Run = extern "C" fn(*const c_char, u32, u32, u32, usize, *const u64, u32) -> *const c_char;

impl Emulator {
    fn compile() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Also compiled into the tests of a package beside this one.
        let models = match root.join("models").is_dir() {
            true => root.join("models"),
            false => root.to_path_buf(),
        };
        let here = models.join("tests/cuda_emulation");
        let kernels = std::fs::read_dir(models.join("src/ops/cuda")).unwrap();
        let kernels = kernels.map(|file| file.unwrap().path());
        let is_kernel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "cu");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("kernels.so");
        let run = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
            .args([
                "-std=c++17",
                "-O2",
                "-ffp-contract=off",
                "-fPIC",
                "-shared",
                "-Wall",
                "-Wno-unused-function",
            ])
            // A fiber leaves a function by a jump and comes back to it, which the checks of fortified builds refuse.
            .args([
                "-U_FORTIFY_SOURCE",
                "-Wno-unknown-pragmas",
                "-Wno-subobject-linkage",
            ])
            .arg("-include")
            .arg(here.join("emulation.h"))
            .arg("-o")
            .arg(&library)
            .args(["-x", "c++"])
            .args(kernels.filter(is_kernel))
            .args([here.join("broken.cu"), here.join("emulation.cpp")])
            .output()
            .expect("a C++ compiler");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && said.is_empty(), "{said}");
        // SAFETY: the library has just been made of our sources, whose start-up code registers the kernels.
        #[allow(unsafe_code)]
        let library = unsafe { Library::new(&library).unwrap() };
        Self {
            library,
            busy: Mutex::new(()),
        }
    }

    fn symbol<T>(&self, name: &str) -> libloading::Symbol<'_, T> {
        // SAFETY: the types are those of `emulation.cpp`.
        #[allow(unsafe_code)]
        unsafe {
            self.library.get(name).unwrap()
        }
    }

    /// The types of a kernel's parameters.
    fn kinds(&self, kernel: &CStr) -> Option<String> {
        let kinds =
            self.symbol::<extern "C" fn(*const c_char) -> *const c_char>("kernel_kinds")(kernel.as_ptr());
        // SAFETY: a constant of the library, or null.
        #[allow(unsafe_code)]
        let kinds = (!kinds.is_null()).then(|| unsafe { CStr::from_ptr(kinds) });
        kinds.map(|kinds| kinds.to_str().unwrap().to_owned())
    }
}

/// A buffer's copy before a guard page.
struct Guarded<'a> {
    emulator: &'a Emulator,
    memory: *mut u8,
    bytes: usize,
}

impl<'a> Guarded<'a> {
    fn new(emulator: &'a Emulator, bytes: usize) -> Self {
        let memory = emulator.symbol::<extern "C" fn(usize) -> *mut u8>("guarded_new")(bytes);
        Self {
            emulator,
            memory,
            bytes,
        }
    }

    fn address(&self) -> u64 {
        let data = self
            .emulator
            .symbol::<extern "C" fn(*mut u8) -> *mut u8>("guarded_data");
        data(self.memory).expose_provenance() as u64
    }

    fn is_intact(&self) -> bool {
        self.emulator
            .symbol::<extern "C" fn(*mut u8) -> i32>("guarded_intact")(self.memory)
            != 0
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        self.emulator.symbol::<extern "C" fn(*mut u8)>("guarded_delete")(self.memory);
    }
}

fn at<'a>(address: u64, bytes: usize) -> &'a mut [u8] {
    if bytes == 0 {
        return &mut [];
    }
    // SAFETY: a buffer of the launch or its copy, for whose length both stay where they are; one thread at a time is here.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address as usize), bytes)
    }
}

/// The buffers of a launch by address, each once; whether any argument reads it and whether any writes.
fn buffers(cells: &[Cell]) -> BTreeMap<u64, (usize, bool, bool)> {
    let mut all = BTreeMap::new();
    let listed = cells.iter().flat_map(|cell| match cell {
        Cell::Buffer(buffer) => vec![*buffer],
        Cell::Table(entries) => entries.clone(),
        Cell::Int(_) | Cell::Float(_) => Vec::new(),
    });
    for Buffer {
        address,
        bytes,
        access,
        ..
    } in listed.flatten()
    {
        let entry = all.entry(address).or_insert((bytes, false, false));
        assert_eq!(
            entry.0, bytes,
            "two arguments start at one place and differ in length"
        );
        entry.1 |= access != Access::Write;
        entry.2 |= access != Access::Read;
    }
    let ranges: Vec<(u64, u64, bool)> = all
        .iter()
        .map(|(start, (bytes, _, is_written))| (*start, start + *bytes as u64, *is_written))
        .collect();
    for two in ranges.windows(2) {
        let apart = two[0].1 <= two[1].0 || !two[0].2 && !two[1].2;
        assert!(apart, "an argument that is written overlaps another one");
    }
    all
}

fn kind_of(cell: &Cell) -> char {
    match cell {
        Cell::Buffer(None) => '0',
        Cell::Buffer(Some(buffer)) => match buffer.dtype {
            DType::F32 => 'F',
            DType::F64 => 'D',
            DType::BF16 => 'B',
            DType::U32 => 'U',
            DType::U8 => 'C',
            _ => '?',
        },
        Cell::Table(_) => 'T',
        Cell::Int(_) => 'i',
        Cell::Float(_) => 'f',
    }
}

impl Launcher for Emulator {
    fn launch(&self, kernel: &str, launch: &Launch, cells: &[Cell]) -> Result<(), String> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let name = CString::new(kernel).unwrap();
        let expected = self.kinds(&name).ok_or("there is no such kernel")?;
        let given: String = cells.iter().map(kind_of).collect();
        let fits =
            |(expected, given): (char, char)| expected == given || given == '0' && expected.is_uppercase();
        if expected.len() != given.len() || !expected.chars().zip(given.chars()).all(fits) {
            return Err(format!("expected arguments {expected}, found {given}"));
        }
        let buffers = buffers(cells);
        let mut first: Option<BTreeMap<u64, Vec<u8>>> = None;
        let [x, y] = launch.grid;
        let threads = u64::from(x) * u64::from(y) * u64::from(launch.block);
        // One order of many threads is enough: small launches of the same kernel have shown that others change nothing.
        let orders = if threads > MANY_THREADS {
            ORDERS - 1..ORDERS
        } else {
            0..ORDERS
        };
        for order in orders {
            let copies: BTreeMap<u64, Guarded> = buffers
                .iter()
                .map(|(&address, &(bytes, is_read, _))| {
                    let copy = Guarded::new(self, bytes);
                    let values = at(copy.address(), bytes);
                    match is_read {
                        true => values.copy_from_slice(at(address, bytes)),
                        // No number, in any type.
                        false => values.fill(0xff),
                    }
                    (address, copy)
                })
                .collect();
            let place =
                |buffer: &Option<Buffer>| buffer.map_or(0, |buffer| copies[&buffer.address].address());
            let mut tables = Vec::new();
            let words: Vec<u64> = cells
                .iter()
                .map(|cell| match cell {
                    Cell::Buffer(buffer) => place(buffer),
                    Cell::Table(entries) => {
                        let table = Guarded::new(self, 8 * entries.len());
                        let words = at(table.address(), table.bytes);
                        for (word, entry) in words.chunks_exact_mut(8).zip(entries) {
                            word.copy_from_slice(&place(entry).to_ne_bytes());
                        }
                        tables.push(table);
                        tables[tables.len() - 1].address()
                    }
                    Cell::Int(value) => u64::from(value.cast_unsigned()),
                    Cell::Float(value) => u64::from(value.to_bits()),
                })
                .collect();
            let run = self.symbol::<Run>("kernel_run");
            let failure = run(
                name.as_ptr(),
                x,
                y,
                launch.block,
                launch.shared as usize,
                words.as_ptr(),
                order,
            );
            if !failure.is_null() {
                // SAFETY: a message that the library keeps until the next run.
                #[allow(unsafe_code)]
                return Err(unsafe { CStr::from_ptr(failure) }.to_string_lossy().into_owned());
            }
            for (&address, &(bytes, _, is_written)) in &buffers {
                if !copies[&address].is_intact() {
                    return Err("wrote before a buffer".into());
                }
                if !is_written && at(copies[&address].address(), bytes) != at(address, bytes) {
                    return Err("wrote into a buffer that it should only read".into());
                }
            }
            let written: BTreeMap<u64, Vec<u8>> = copies
                .iter()
                .map(|(address, copy)| (*address, at(copy.address(), copy.bytes).to_vec()))
                .collect();
            match &first {
                Some(first) if *first != written => {
                    return Err("the order of its threads changes the result: a barrier is missing".into());
                }
                Some(_) => {}
                None => first = Some(written),
            }
        }
        for (address, values) in first.unwrap_or_default() {
            at(address, values.len()).copy_from_slice(&values);
        }
        Ok(())
    }
}
