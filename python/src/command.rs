//! The command line within the interpreter: as the command `macula`, and as a call that gives what it would print.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pyo3::prelude::*;

use crate::interruptible;
use crate::pools;

/// Runs the command line `args`, of which the first is the program's name, and gives the exit code.
#[pyfunction]
pub fn main(py: Python<'_>, args: Vec<String>) -> u8 {
    py.detach(|| macula::cli::run(args))
}

/// Runs the command line `args` and gives what it would print. `tick` is called ten times a second; what it raises, as a
/// signal does, ends a training after its step, with a checkpoint.
#[pyfunction]
#[pyo3(signature = (args, threads=0, tick=None))]
pub fn call(py: Python<'_>, args: Vec<String>, threads: usize, tick: Option<Py<PyAny>>) -> PyResult<String> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    interruptible::run(py, tick.as_ref(), &stop, move || {
        pools::check_not_forked("macula")?;
        // Of its own: a thread that waits takes other work of its pool, and a call may not begin within a call.
        pools::new(threads)?.install(|| macula::cli::call(args, told))
    })
}

/// Lets notices go to stderr from now on, as those of the command.
#[pyfunction]
pub fn start_log() {
    macula::cli::start_log();
}
