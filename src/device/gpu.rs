//! The GPU that candle trains on: opened so that training may use it from any thread, and described for `macula doctor`. In a
//! build without CUDA there is none.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};

/// GPUs that have been opened, by number. One opening a number and process: another one would have a stream of its own, whose work
/// nothing orders against the first one's, although candle takes the tensors of both for those of one device.
struct Opened(Mutex<BTreeMap<usize, Device>>);

/// Those of this process. They are never closed, so that nothing is torn down while the process ends.
static OPENED: Opened = Opened(Mutex::new(BTreeMap::new()));

impl Opened {
    /// Device `number`, by `open` where it is not open yet.
    fn get_or_open(
        &self,
        number: usize,
        open: impl FnOnce() -> candle_core::Result<Device>,
    ) -> candle_core::Result<Device> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = opened.get(&number) {
            return Ok(device.clone());
        }
        let device = open()?;
        opened.insert(number, device.clone());
        Ok(device)
    }
}

/// GPU `number`, the same one every time.
///
/// # Errors
/// A GPU that does not answer; any in a build without CUDA.
pub(super) fn open(number: usize) -> candle_core::Result<Device> {
    OPENED.get_or_open(number, || open_anew(number))
}

#[cfg(feature = "cuda")]
fn open_anew(number: usize) -> candle_core::Result<Device> {
    // One stream for all threads. The one that candle takes by itself is another for each thread, and a step may run on another
    // thread of the pool than the step before it, whose updates it would then not wait for.
    let device = Device::new_cuda_with_stream(number)?;
    if let Device::Cuda(gpu) = &device {
        // SAFETY: tensors of this device are used on its one stream alone, which keeps the order of allocations, kernels, copies
        // and releases; events between streams would only cost time. Sums of gradients over ranks are made on another one, which
        // has events of its own (`cluster/nccl/on_gpu.rs`).
        #[allow(unsafe_code)]
        unsafe {
            gpu.disable_event_tracking();
        }
        keep_memory(gpu)?;
    }
    set_products(&device, DType::F32)?;
    Ok(device)
}

/// As in a build with CUDA.
#[cfg(not(feature = "cuda"))]
fn open_anew(number: usize) -> candle_core::Result<Device> {
    Device::new_cuda(number)
}

/// What a GPU may round in products.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rounding {
    /// Whether factors in f32 may lose all but 10 bits (TF32).
    tf32: bool,
    /// Whether every other factor keeps all of its bits and no algorithm may round one; else only sums are in f32 throughout, also
    /// where they are cut into parts.
    pedantic: bool,
}

impl Rounding {
    fn for_compute(compute: DType) -> Self {
        let is_rough = compute == DType::BF16;
        Self {
            tf32: is_rough,
            pedantic: !is_rough,
        }
    }
}

/// Says how a GPU is to multiply matrices from here on. In f32: every factor with all of its bits, whatever algorithm the library
/// chooses. In bf16: matrices of bf16 on tensor cores with sums in f32 throughout, also where a sum is cut into parts; those of f32,
/// such as products with prototypes, with 10 bits of their factors (TF32). Nothing to do on the CPU.
///
/// # Errors
/// A GPU that does not answer.
pub(crate) fn set_products(device: &Device, compute: DType) -> candle_core::Result<()> {
    let rounding = Rounding::for_compute(compute);
    candle_core::cuda::set_gemm_reduced_precision_f32(rounding.tf32);
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        use candle_core::cuda_backend::cudarc::cublas::sys::{cublasMath_t, cublasSetMathMode};

        // candle asks for the algorithm CUBLAS_GEMM_DEFAULT_TENSOR_OP, which may mean f16 factors in the default mode.
        let mode = match rounding.pedantic {
            true => cublasMath_t::CUBLAS_PEDANTIC_MATH,
            false => cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION,
        };
        // SAFETY: the handle lives as long as the device, and the call changes one setting of it.
        #[allow(unsafe_code)]
        unsafe { cublasSetMathMode(*gpu.cublas_handle().handle(), mode) }
            .result()
            .map_err(candle_core::Error::wrap)?;
    }
    #[cfg(not(feature = "cuda"))]
    let _ = (device, rounding.pedantic);
    Ok(())
}

/// The most memory that tensors of `device` have held at once, in bytes; `None` where that is no GPU or nothing counts it.
#[cfg(feature = "cuda")]
pub(crate) fn peak_memory(device: &Device) -> Option<u64> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let Device::Cuda(gpu) = device else {
        return None;
    };
    let stream = gpu.cuda_stream();
    if !stream.context().has_async_alloc() {
        return None;
    }
    let mut max = 0_u64;
    // SAFETY: the device is that of a context in use, its default pool lives as long, and this attribute is a number of 64 bits.
    #[allow(unsafe_code)]
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).ok()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut max).cast()).ok()?;
    }
    Some(max)
}

/// As in a build with CUDA.
#[cfg(not(feature = "cuda"))]
pub(crate) fn peak_memory(_: &Device) -> Option<u64> {
    None
}

/// Lets the pool that tensors come from keep what they give back. By itself it returns all of it to the driver whenever the host
/// waits for the GPU, and the next step asks for it again.
#[cfg(feature = "cuda")]
fn keep_memory(gpu: &candle_core::CudaDevice) -> candle_core::Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let stream = gpu.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the device is that of a context in use, its default pool lives as long, and this attribute is a number of 64 bits.
    #[allow(unsafe_code)]
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).w()
    }
}

/// Name, driver and free memory of the first GPU; `None` where there is none to train on.
#[cfg(feature = "cuda")]
pub(crate) fn describe() -> Option<String> {
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys};

    let context = CudaContext::new(0).ok()?;
    let (free, total) = context.mem_get_info().ok()?;
    let mut version = 0;
    // SAFETY: the driver writes one number into the place it is given.
    #[allow(unsafe_code)]
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .ok()?;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    Some(format!(
        "{}, driver for CUDA {}.{}, {:.1} of {:.1} GiB free",
        context.name().ok()?,
        version / 1000,
        version % 1000 / 10,
        gib(free),
        gib(total)
    ))
}

/// As in a build with CUDA.
#[cfg(not(feature = "cuda"))]
pub(crate) fn describe() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_opened_once_a_number() {
        let opened = Opened(Mutex::new(BTreeMap::new()));
        let mut calls = Vec::new();
        for number in [0, 1, 0, 0, 1] {
            let open = || {
                calls.push(number);
                Ok(Device::Cpu)
            };
            opened.get_or_open(number, open).unwrap();
        }
        assert_eq!(calls, [0, 1]);
    }

    #[test]
    fn one_that_did_not_answer_is_queried_again() {
        let opened = Opened(Mutex::new(BTreeMap::new()));
        let fails = || Err(candle_core::Error::Msg("busy".into()));
        assert!(opened.get_or_open(0, fails).is_err());
        assert!(opened.get_or_open(0, || Ok(Device::Cpu)).is_ok());
        assert!(opened.get_or_open(0, fails).is_ok());
    }

    #[test]
    fn f32_is_never_rounded_and_bf16_only_in_its_factors() {
        let of = |compute| {
            let Rounding { tf32, pedantic } = Rounding::for_compute(compute);
            (tf32, pedantic)
        };
        assert_eq!(of(DType::F32), (false, true));
        assert_eq!(of(DType::BF16), (true, false));
    }

    /// Where there is a GPU: the teacher of a distillation and its student ask for it one after the other.
    #[test]
    #[cfg(feature = "cuda")]
    #[ignore = "needs an NVIDIA GPU"]
    fn whoever_asks_for_a_gpu_gets_the_same_one() {
        let (first, second) = (open(0).unwrap(), open(0).unwrap());
        assert!(first.same_device(&second));
    }
}
