//! The binary as a user runs it.

mod bad_images;
mod bad_inputs;
mod chain;
mod harness;
