//! One tool for the whole life of a frozen visual feature. Data flows one way:
//! `data -> train -> models -> export -> extract -> eval -> report`.
#![warn(missing_docs)]

pub mod error;
pub mod runtime;

pub use error::{Error, Result};
