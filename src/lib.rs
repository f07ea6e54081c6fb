//! One tool for the whole life of a frozen visual feature. Data flows one way:
//! `data -> train -> models -> export -> extract -> eval -> report`.
#![warn(missing_docs)]

pub mod cli;
pub mod curate;
pub mod data;
pub mod demo;
pub mod distill;
pub mod draw;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod extract;
pub mod files;
pub mod identity;
pub mod index;
pub mod lock;
pub mod programs;
mod quiet;
pub mod report;
pub mod rng;
pub mod runtime;
pub mod tables;
pub mod train;
pub mod viz;

pub use error::{Error, Result};
