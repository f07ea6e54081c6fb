//! The binary as a user runs it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bad_images;
mod bad_inputs;
mod bands;
mod chain;
mod compare;
mod curate;
mod dense;
mod distill;
mod export;
mod harness;
mod help;
mod hosted;
mod hostile_folder;
mod identity;
mod index;
#[cfg(unix)]
mod kills;
mod labels;
mod leaves_nothing;
mod limits;
mod modes;
#[cfg(target_os = "linux")]
mod mpi;
mod numbers;
mod preprocess;
mod protocols;
mod report;
mod retrieval;
mod robustness;
#[cfg(feature = "serve")]
mod serve;
mod sources;
mod suite;
#[cfg(unix)]
mod torchrun;
mod train;
mod tune;
mod video;
mod viz;
