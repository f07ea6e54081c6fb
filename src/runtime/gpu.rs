//! The GPU that candle trains on: opened so that training may use it from any thread, and described for `macula doctor`. In a
//! build without CUDA there is none.

use candle_core::Device;

/// Opens GPU `number`.
///
/// # Errors
/// A GPU that does not answer; any in a build without CUDA.
#[cfg(feature = "cuda")]
pub(super) fn open(number: usize) -> candle_core::Result<Device> {
    // One stream for all threads. The one that candle takes by itself is another for each thread, and a step may run on another
    // thread of the pool than the step before it, whose updates it would then not wait for.
    let device = Device::new_cuda_with_stream(number)?;
    if let Device::Cuda(gpu) = &device {
        // SAFETY: tensors of this device are used on its one stream alone, which keeps the order of allocations, kernels, copies
        // and releases; events between streams would only cost time.
        #[allow(unsafe_code)]
        unsafe {
            gpu.disable_event_tracking();
        }
        keep_memory(gpu)?;
    }
    Ok(device)
}

/// As in a build with CUDA.
#[cfg(not(feature = "cuda"))]
pub(super) fn open(number: usize) -> candle_core::Result<Device> {
    Device::new_cuda(number)
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
    let mut most = 0_u64;
    // SAFETY: the device is that of a context in use, its default pool lives as long, and this attribute is a number of 64 bits.
    #[allow(unsafe_code)]
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).ok()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut most).cast()).ok()?;
    }
    Some(most)
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
pub(super) fn describe() -> Option<String> {
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
pub(super) fn describe() -> Option<String> {
    None
}
