//! `macula._macula`: what the Python package `macula` stands on. Arrays, paths and settings as JSON come in, arrays and tables
//! go out; names, defaults and documentation for users are in `python/macula`. The interpreter's lock is released while
//! anything computes, and signals are looked at ten times a second.
#![allow(missing_docs)] // python/macula documents what users see

mod arrays;
mod command;
mod errors;
mod evaluate;
mod extract;
mod folder;
mod images;
mod index;
mod interruptible;
mod model;
mod pools;
mod settings;
mod table;

use pyo3::prelude::*;

/// As the command's: the large buffers of a batch are asked for again in the next one. Python and other modules keep theirs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule(gil_used = false)]
mod _macula {
    #[pymodule_export]
    use super::arrays::Values;
    #[pymodule_export]
    use super::command::{call, main, start_log};
    #[pymodule_export]
    use super::evaluate::{Outcome, cluster, knn, linear_probe, logreg, retrieval};
    #[pymodule_export]
    use super::extract::{collect, extract};
    #[pymodule_export]
    use super::folder::Folder;
    #[pymodule_export]
    use super::index::Index;
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::table::Table;
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        macula::memory::keep_freed();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
