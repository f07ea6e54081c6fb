//! Where, and on how many threads, to run.

use std::path::PathBuf;

use clap::Args;

use super::MACHINE;
use crate::cluster;
use crate::device::{CUDA_TRAINER, Device};
use crate::runtime::{Flavor, RuntimeOptions};
use crate::train::config::TrainConfig;
use crate::train::replicas;
use crate::{Error, Result};

/// The most threads that may be asked for: more than any machine of today has, and few enough to start anywhere.
const MAX_THREADS: usize = 1024;

/// How many threads to run on.
#[derive(Debug, Args)]
#[command(next_help_heading = MACHINE)]
pub struct ThreadArgs {
    /// Threads, up to 1024; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// On which device, on how many threads and with which library to run.
#[derive(Debug, Args)]
#[command(next_help_heading = MACHINE)]
pub struct RunArgs {
    /// auto, cpu, cuda[:N], or for ONNX files openvino or tensorrt[:N]
    #[arg(long, default_value = "auto")]
    pub device: Device,
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// ONNX Runtime library to use (libonnxruntime.so, onnxruntime.dll, libonnxruntime.dylib) [default: the first of
    /// ORT_DYLIB_PATH, macula's cache, an installed Python onnxruntime, the system]
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
}

/// Over how many copies of the network to divide a step.
#[derive(Debug, Args)]
#[command(next_help_heading = MACHINE)]
pub struct ReplicaArgs {
    /// Copies of the network in this process that share every batch, each with its part of --threads: sooner on a processor, for
    /// their memory; 1 on a GPU and beside a frozen teacher [default: by threads, batch and network]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
}

impl ReplicaArgs {
    /// As many as were asked for, or as train soonest.
    pub fn count(&self, config: &TrainConfig, threads: usize, device: &candle_core::Device) -> Result<usize> {
        match self.replicas {
            Some(0) => Err(Error::input("--replicas", "expected at least 1, found 0")),
            Some(copies) => Ok(copies),
            None => replicas::automatic(config, threads, device),
        }
    }

    /// Fails unless they are left to a run of so many processes.
    pub fn expect_one(&self, processes: usize) -> Result<()> {
        match self.replicas {
            None | Some(1) => Ok(()),
            Some(copies) => {
                let reason = format!("expected 1 in a run of {processes} processes, found {copies}");
                Err(Error::input("--replicas", reason))
            }
        }
    }
}

impl ThreadArgs {
    /// As many as were asked for; 0 for all cores, which is this process's share where it is one of many.
    pub fn of_process(&self) -> usize {
        match (self.threads, cluster::started_in()) {
            (0, Some(_)) => cluster::threads(),
            (threads, _) => threads,
        }
    }

    /// Sizes the pool that everything parallel runs on; 0 leaves it as it is, which is all cores where nobody has sized it.
    ///
    /// A process has one such pool: where it stands already, it must have as many threads as are asked for.
    pub fn start(&self) -> Result<()> {
        let threads = self.threads;
        if threads > MAX_THREADS {
            return Err(Error::input(
                "--threads",
                format!("expected at most {MAX_THREADS}, or 0 for all cores, found {threads}"),
            ));
        }
        if threads == 0 {
            if cluster::started_in().is_some() {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(self.of_process());
                // One that stands already stays as it is.
                let _ = pool.build_global();
            }
            return Ok(());
        }
        let built = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global();
        match built {
            Ok(()) => Ok(()),
            Err(_) if rayon::current_num_threads() == threads => Ok(()),
            Err(error) => Err(Error::failed("--threads", error.to_string())),
        }
    }
}

impl RunArgs {
    /// Where to compute: each process of a job on a GPU of its own, unless a number is given.
    pub fn device_of_process(&self) -> Device {
        match (self.device, cluster::gpu()) {
            (Device::Auto | Device::Cuda(0), Some(number)) if CUDA_TRAINER => Device::Cuda(number),
            (device, _) => device,
        }
    }

    /// The ONNX Runtime library as the flags name it.
    pub fn runtime(&self) -> RuntimeOptions {
        RuntimeOptions {
            ort_lib: self.ort_lib.clone(),
            flavor: Flavor::of_device(self.device),
            ..RuntimeOptions::default()
        }
    }
}
