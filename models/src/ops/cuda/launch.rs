//! One call of a kernel: its arguments found in memory, and the call handed to the driver, or to what emulates one.

use std::cell::RefCell;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, DType, Device, DeviceLocation, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::geometry::{Chunked, Launch, WIDE};

/// A `.cu` file by its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source {
    Activation,
    Assemble,
    Attention,
    Augment,
    Columns,
    CrossEntropy,
    FusedAttention,
    GatherRows,
    LayerNorm,
    Normalise,
    Optimizer,
    Patches,
    Residual,
    Rotary,
    Targets,
}

/// What a kernel may do to a buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write all of it; what was there is never read.
    Write,
    /// Read it and write some or all of it.
    Change,
}

/// Memory that an argument points to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buffer {
    /// What is in it.
    pub dtype: DType,
    /// Where it is: on the GPU, or in this process's memory where calls are emulated.
    pub address: u64,
    /// Its length.
    pub bytes: usize,
    /// What the kernel does to it.
    pub access: Access,
}

/// An argument of a kernel as the kernel sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// An address; none is a null pointer.
    Buffer(Option<Buffer>),
    /// The address of a table of addresses.
    Table(Vec<Option<Buffer>>),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
}

/// Runs kernels on memory of this process, in the place of a GPU.
pub trait Launcher: Send + Sync {
    /// Runs `kernel`, whose buffers stay where they are for the length of the call.
    ///
    /// # Errors
    /// What went wrong.
    fn launch(&self, kernel: &str, launch: &Launch, cells: &[Cell]) -> std::result::Result<(), String>;

    /// Is told of every copy of so many bytes from the host that an operation asks for.
    fn copied(&self, _bytes: usize) {}
}

thread_local! {
    static EMULATOR: RefCell<Option<Arc<dyn Launcher>>> = const { RefCell::new(None) };
}

/// Runs `work` with the operations of this thread on CPU tensors as on a GPU, with kernels run by `launcher`: how they are tested
/// on a machine without one.
pub fn emulated<R>(launcher: Arc<dyn Launcher>, work: impl FnOnce() -> R) -> R {
    with_emulator(Some(launcher), work)
}

/// Runs `work` with the CPU's kernels for CPU tensors, inside of [`emulated`] as well: to compare the two.
pub(in crate::ops) fn with_cpu_kernels<R>(work: impl FnOnce() -> R) -> R {
    with_emulator(None, work)
}

fn with_emulator<R>(emulator: Option<Arc<dyn Launcher>>, work: impl FnOnce() -> R) -> R {
    struct Before(Option<Arc<dyn Launcher>>);
    impl Drop for Before {
        fn drop(&mut self) {
            EMULATOR.set(self.0.take());
        }
    }
    let _before = Before(EMULATOR.replace(emulator));
    work()
}

/// Whether this thread is inside of [`emulated`].
pub(in crate::ops) fn is_emulated() -> bool {
    EMULATOR.with_borrow(Option::is_some)
}

/// What emulates a GPU on this thread.
pub(super) fn emulator() -> Option<Arc<dyn Launcher>> {
    EMULATOR.with_borrow(Option::clone)
}

/// An argument of a kernel. Tensors are contiguous.
pub(super) enum Argument<'a> {
    Read(&'a Tensor),
    /// A null pointer where there is none.
    Optional(Option<&'a Tensor>),
    Write(&'a Tensor),
    OptionalWrite(Option<&'a Tensor>),
    Change(&'a Tensor),
    Table(Vec<Option<(&'a Tensor, Access)>>),
    Count(usize),
    Float(f32),
    Flag(bool),
}

/// Launches `kernel` of `source` on `device`. A grid without blocks is nothing to do.
///
/// # Errors
/// A tensor that is not contiguous or on another device, a count beyond an `int`, a device without kernels, a failed launch.
pub(super) fn launch(
    device: &Device,
    source: Source,
    kernel: &str,
    launch: &Launch,
    arguments: &[Argument],
) -> Result<()> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    let cells: Vec<Cell> = arguments
        .iter()
        .map(|argument| argument.cell(kernel, device))
        .collect::<Result<_>>()?;
    match device {
        Device::Cpu => {
            let Some(launcher) = emulator() else {
                bail!("{kernel}: expected a GPU, found the CPU and nothing that emulates one")
            };
            launcher
                .launch(kernel, launch, &cells)
                .map_err(|reason| candle_core::Error::Msg(format!("{kernel}: {reason}")))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::driver::launch(device, source, kernel, launch, &cells),
        _ => bail!(
            "{kernel} ({source:?}): this build has no kernels for {:?}",
            device.location()
        ),
    }
}

/// The name of the kernel `name` for values of `dtype`.
///
/// # Errors
/// A type other than f32 and bf16.
pub(super) fn typed(name: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{name}_f32")),
        DType::BF16 => Ok(format!("{name}_bf16")),
        other => bail!("{name}: expected f32 or bf16 on this device, found {other:?}"),
    }
}

/// [`typed`], of threads that move one value or, where they can, several at once.
pub(super) fn wide(name: &str, dtype: DType, is_wide: bool) -> Result<String> {
    let name = typed(name, dtype)?;
    Ok(if is_wide { format!("{name}_wide") } else { name })
}

/// [`wide`], of threads by columns.
pub(super) fn strips(name: &str, dtype: DType, chunked: &Chunked) -> Result<String> {
    wide(name, dtype, chunked.is_wide)
}

/// Whether values of rows of `width` in `tensors` can be moved [`WIDE`] at once: all of a width that is a multiple, and at addresses
/// that are multiples of 16 bytes. Memory begins at one on every device.
pub(super) fn is_wide(width: usize, tensors: &[Option<&Tensor>]) -> bool {
    let fits = |tensor: &&Tensor| {
        (tensor.layout().start_offset() * tensor.dtype().size_in_bytes()).is_multiple_of(16)
    };
    width.is_multiple_of(WIDE) && tensors.iter().flatten().all(fits)
}

/// A tensor for a kernel to write.
pub(super) fn uninitialised(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() == 0 {
        // Memory of no bytes cannot be had on a GPU.
        return Tensor::zeros(1, dtype, device)?.narrow(0, 0, 0)?.reshape(shape);
    }
    // SAFETY: it is given to a kernel as `Write`, which fills all of it before anything reads it; any bits are numbers.
    #[allow(unsafe_code)]
    unsafe {
        Tensor::empty(shape, dtype, device)
    }
}

impl Argument<'_> {
    fn cell(&self, kernel: &str, device: &Device) -> Result<Cell> {
        let buffer = |tensor: &Tensor, access: Access| buffer(kernel, device, tensor, access);
        let optional = |tensor: Option<&Tensor>, access: Access| {
            let found = tensor.map(|tensor| buffer(tensor, access)).transpose();
            Ok::<_, candle_core::Error>(Cell::Buffer(found?))
        };
        match self {
            Self::Read(tensor) => optional(Some(tensor), Access::Read),
            Self::Optional(tensor) => optional(*tensor, Access::Read),
            Self::Write(tensor) => optional(Some(tensor), Access::Write),
            Self::OptionalWrite(tensor) => optional(*tensor, Access::Write),
            Self::Change(tensor) => optional(Some(tensor), Access::Change),
            Self::Table(entries) => {
                let entry = |entry: &Option<(&Tensor, Access)>| {
                    entry.map(|(tensor, access)| buffer(tensor, access)).transpose()
                };
                Ok(Cell::Table(entries.iter().map(entry).collect::<Result<_>>()?))
            }
            Self::Count(count) => match i32::try_from(*count) {
                Ok(count) => Ok(Cell::Int(count)),
                Err(_) => bail!("{kernel}: expected at most {}, found {count}", i32::MAX),
            },
            Self::Float(value) => Ok(Cell::Float(*value)),
            Self::Flag(flag) => Ok(Cell::Int(i32::from(*flag))),
        }
    }
}

/// What is wrong with a tensor at `there` for a kernel at `here`: with equal places, the GPU was opened twice, and the tensor is made
/// on another stream, which nothing here waits for.
fn another_device(here: DeviceLocation, there: DeviceLocation) -> String {
    let opened_twice = if here == there {
        ", opened a second time"
    } else {
        ""
    };
    format!("expected tensors of {here:?}, found one of {there:?}{opened_twice}")
}

fn buffer(kernel: &str, device: &Device, tensor: &Tensor, access: Access) -> Result<Buffer> {
    if !tensor.device().same_device(device) {
        let found = another_device(device.location(), tensor.device().location());
        bail!("{kernel}: {found}")
    }
    if !tensor.is_contiguous() {
        bail!(
            "{kernel}: expected contiguous tensors, found {:?} with strides {:?}",
            tensor.dims(),
            tensor.stride()
        )
    }
    let start = match access {
        Access::Read => address(kernel, &tensor.storage_and_layout().0)?,
        Access::Write | Access::Change => {
            let op = Locate {
                kernel,
                address: std::cell::Cell::new(0),
            };
            tensor.inplace_op1(&op)?;
            op.address.get()
        }
    };
    let size = tensor.dtype().size_in_bytes();
    Ok(Buffer {
        dtype: tensor.dtype(),
        address: start + (tensor.layout().start_offset() * size) as u64,
        bytes: tensor.elem_count() * size,
        access,
    })
}

/// The address of a storage that is only read.
fn address(kernel: &str, storage: &Storage) -> Result<u64> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values.as_ptr().expose_provenance() as u64),
        Storage::Cpu(CpuStorage::F64(values)) => Ok(values.as_ptr().expose_provenance() as u64),
        Storage::Cpu(CpuStorage::BF16(values)) => Ok(values.as_ptr().expose_provenance() as u64),
        Storage::Cpu(CpuStorage::U32(values)) => Ok(values.as_ptr().expose_provenance() as u64),
        Storage::Cpu(CpuStorage::U8(values)) => Ok(values.as_ptr().expose_provenance() as u64),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::driver::address(kernel, storage),
        _ => bail!("{kernel}: expected f32, f64, bf16, u32 or u8"),
    }
}

/// Finds the address of a storage that will be written: taken with exclusive access, used while its tensor is alive.
struct Locate<'a> {
    kernel: &'a str,
    address: std::cell::Cell<u64>,
}

impl InplaceOp1 for Locate<'_> {
    fn name(&self) -> &'static str {
        "kernel-argument"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.address.set(match storage {
            CpuStorage::F32(values) => values.as_mut_ptr().expose_provenance() as u64,
            CpuStorage::F64(values) => values.as_mut_ptr().expose_provenance() as u64,
            CpuStorage::BF16(values) => values.as_mut_ptr().expose_provenance() as u64,
            CpuStorage::U32(values) => values.as_mut_ptr().expose_provenance() as u64,
            CpuStorage::U8(values) => values.as_mut_ptr().expose_provenance() as u64,
            _ => bail!("{}: expected f32, f64, bf16, u32 or u8", self.kernel),
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        self.address.set(super::driver::address(self.kernel, storage)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_of_another_device_is_told_from_one_of_a_second_opening() {
        let gpu = |gpu_id| DeviceLocation::Cuda { gpu_id };
        assert_eq!(
            another_device(gpu(0), DeviceLocation::Cpu),
            "expected tensors of Cuda { gpu_id: 0 }, found one of Cpu"
        );
        assert!(!another_device(gpu(0), gpu(1)).contains("second time"));
        assert_eq!(
            another_device(gpu(1), gpu(1)),
            "expected tensors of Cuda { gpu_id: 1 }, found one of Cuda { gpu_id: 1 }, opened a second time"
        );
    }
}
