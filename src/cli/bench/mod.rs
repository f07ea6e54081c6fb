//! `macula bench`: how fast this machine is at macula's work, one file a subcommand.

mod exchange;
mod extract;
mod ops;
mod products;
mod train;

use clap::{Args, Subcommand};

use super::args::examples;
use crate::Result;

/// Arguments of `macula bench`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula bench train",
    "macula bench extract --model hog --data sample:test",
]))]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Images a second of whole training steps, and where their time goes.
    Train(train::TrainBenchArgs),
    /// Images a second of an extraction by stage, and which stage is the limit.
    Extract(extract::ExtractBenchArgs),
    /// Every operation of training on the device against the CPU's kernels: differences and times.
    Ops(ops::OpsBenchArgs),
    /// Rates of the matrix products of training steps, by shape.
    Products(products::ProductsBenchArgs),
    /// Rates of the sums over processes that training on many of them needs, and whether they are right.
    Exchange(exchange::ExchangeBenchArgs),
}

impl BenchArgs {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Train(args) => args.run(),
            What::Extract(args) => args.run(),
            What::Ops(args) => args.run(),
            What::Products(args) => args.run(),
            What::Exchange(args) => args.run(),
        }
    }
}
