//! The binary as a user runs it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bad_images;
mod bad_inputs;
mod chain;
mod compare;
mod curate;
mod dense;
mod distill;
mod export;
mod harness;
mod index;
mod labels;
mod numbers;
mod report;
mod retrieval;
mod robustness;
mod train;
mod video;
mod viz;
