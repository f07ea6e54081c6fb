//! One tool for the whole life of a frozen visual feature. Data flows one way, and a folder imports only what stands before it in the
//! table of ARCHITECTURE.md: data, then training, export, extraction, evaluation, reports, and the command on top.
#![warn(missing_docs)]

pub mod cli;
pub mod cluster;
pub mod curate;
pub mod data;
pub mod demo;
pub mod device;
pub mod distill;
pub(crate) mod draw;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod extract;
pub mod files;
pub mod identity;
pub mod index;
pub mod lock;
pub mod memory;
pub(crate) mod programs;
mod quiet;
pub mod report;
pub mod results;
pub mod rng;
pub mod runtime;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tables;
pub mod train;
pub mod tune;
pub mod viz;

pub use error::{Error, ErrorKind, Result};
