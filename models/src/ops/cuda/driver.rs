//! Kernels on a GPU. All work of a device goes to its one stream, in the order it was asked for, so that neither a launch nor the
//! release of a tensor has to wait for anything.

use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Result, bail};

use super::geometry::Launch;
use super::launch::{Cell, Source};
use super::upload::at_once;

/// Name and PTX of a `.cu` file, translated by the build script.
macro_rules! module {
    ($name:literal) => {
        (
            concat!("macula_", $name),
            include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        )
    };
}

impl Source {
    fn module(self) -> (&'static str, &'static str) {
        match self {
            Self::Activation => module!("activation"),
            Self::Assemble => module!("assemble"),
            Self::Attention => module!("attention"),
            Self::Augment => module!("augment"),
            Self::Columns => module!("columns"),
            Self::CrossEntropy => module!("cross_entropy"),
            Self::FusedAttention => module!("fused_attention"),
            Self::GatherRows => module!("gather_rows"),
            Self::LayerNorm => module!("layer_norm"),
            Self::Normalise => module!("normalise"),
            Self::Optimizer => module!("optimizer"),
            Self::Patches => module!("patches"),
            Self::Residual => module!("residual"),
            Self::Rotary => module!("rotary"),
            Self::Targets => module!("targets"),
        }
    }
}

/// The kernels of a device that have been asked for, by name.
type Functions = HashMap<DeviceId, HashMap<String, CudaFunction>>;

/// The kernel `name`, which the driver looks up once.
fn function(device: &CudaDevice, source: Source, name: &str) -> Result<CudaFunction> {
    static FOUND: LazyLock<RwLock<Functions>> = LazyLock::new(RwLock::default);
    let known = FOUND.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = known.get(&device.id()).and_then(|known| known.get(name)) {
        return Ok(function.clone());
    }
    drop(known);
    let (module, ptx) = source.module();
    let function = device
        .get_or_load_custom_func(name, module, ptx)?
        .into_cuda_function();
    let mut known = FOUND.write().unwrap_or_else(PoisonError::into_inner);
    let of_device = known.entry(device.id()).or_default();
    of_device.insert(name.to_owned(), function.clone());
    Ok(function)
}

/// Queues copies of `values` to the front of `target`, none of which the host has to wait for.
pub(super) fn copy<T: DeviceRepr + 'static>(
    device: &CudaDevice,
    values: &[T],
    target: &mut CudaSlice<T>,
) -> Result<()> {
    let max = at_once::<T>();
    for (number, part) in values.chunks(max).enumerate() {
        let start = number * max;
        device.memcpy_htod(part, &mut target.slice_mut(start..start + part.len()))?;
    }
    Ok(())
}

/// Queues the kernel.
pub(super) fn launch(
    device: &CudaDevice,
    source: Source,
    kernel: &str,
    launch: &Launch,
    cells: &[Cell],
) -> Result<()> {
    let function = function(device, source, kernel)?;
    let stream = device.cuda_stream();
    // Released in the order of the stream: after the kernel has read them.
    let mut tables: Vec<CudaSlice<u64>> = Vec::new();
    let mut words: Vec<u64> = Vec::with_capacity(cells.len());
    for cell in cells {
        words.push(match cell {
            Cell::Buffer(buffer) => buffer.map_or(0, |buffer| buffer.address),
            Cell::Table(entries) => {
                let addresses: Vec<u64> = entries
                    .iter()
                    .map(|entry| entry.map_or(0, |buffer| buffer.address))
                    .collect();
                // SAFETY: filled at once, by the copy that follows in the order of the stream.
                #[allow(unsafe_code)]
                let mut table = unsafe { device.alloc::<u64>(addresses.len())? };
                copy(device, &addresses, &mut table)?;
                let (address, _) = table.device_ptr(&stream);
                tables.push(table);
                address
            }
            Cell::Int(value) => u64::from(value.cast_unsigned()),
            Cell::Float(value) => u64::from(value.to_bits()),
        });
    }
    let mut builder = stream.launch_builder(&function);
    // The driver reads as many of a word's bytes as the parameter has, the lower ones.
    for word in &words {
        builder.arg(word);
    }
    let [x, y] = launch.grid;
    let config = LaunchConfig {
        grid_dim: (x, y, 1),
        block_dim: (launch.block, 1, 1),
        shared_mem_bytes: launch.shared,
    };
    // SAFETY: number, order and types of the arguments and the bounds that they and the geometry imply are the kernel's; the
    // emulated tests check all of them, with the same calls. The tensors behind the addresses outlive the call, and memory is
    // released in the order of the stream.
    #[allow(unsafe_code)]
    unsafe {
        builder.launch(config).w()?;
    }
    Ok(())
}

/// Where a storage is.
pub(super) fn address(kernel: &str, storage: &CudaStorage) -> Result<u64> {
    fn pointer<T: DeviceRepr>(slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(slice.stream()).0
    }
    match &storage.slice {
        CudaStorageSlice::F32(values) => Ok(pointer(values)),
        CudaStorageSlice::F64(values) => Ok(pointer(values)),
        CudaStorageSlice::BF16(values) => Ok(pointer(values)),
        CudaStorageSlice::U32(values) => Ok(pointer(values)),
        CudaStorageSlice::U8(values) => Ok(pointer(values)),
        _ => bail!("{kernel}: expected f32, f64, bf16, u32 or u8"),
    }
}
