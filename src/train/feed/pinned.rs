//! The driver's side of a lane to an NVIDIA GPU: page-locked memory, which it reads by itself, and a stream that only copies. The
//! order in which they are used is `lane`'s.

use std::ops::Range;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result, sys,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, DType, Device, Result, Storage, Tensor, bail};

use super::Lane;
use super::lane::{StagedLane, Stream, Streams};
use super::load::Piece;

/// The two streams of a GPU's lanes.
struct GpuStreams {
    device: Device,
    computing: Arc<CudaStream>,
    copying: Arc<CudaStream>,
}

/// `count` lanes to `gpu`, with one stream for their copies.
pub(super) fn lanes(gpu: &CudaDevice, count: usize) -> Result<Vec<Box<dyn Lane>>> {
    let computing = gpu.cuda_stream();
    let copying = computing.context().new_stream().w()?;
    let lane = |_| -> Result<Box<dyn Lane>> {
        Ok(Box::new(StagedLane::new(GpuStreams {
            device: Device::Cuda(gpu.clone()),
            computing: Arc::clone(&computing),
            copying: Arc::clone(&copying),
        })?))
    };
    (0..count).map(lane).collect()
}

/// An event that keeps no time, and at which a thread that waits gives its core to others: cudarc makes events of either kind only.
struct Event {
    event: sys::CUevent,
    /// Its context, which outlives it.
    stream: Arc<CudaStream>,
}

// SAFETY: the driver's handles may be used by any thread whose context is the event's, and every use binds that first.
#[allow(unsafe_code)]
unsafe impl Send for Event {}
// SAFETY: as above; the driver's calls on one event exclude each other.
#[allow(unsafe_code)]
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // An error of the GPU is told to whoever asks it for something; there is nobody to tell here.
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: made by `GpuStreams::event` and destroyed once; the driver keeps what is still recorded.
            #[allow(unsafe_code)]
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl GpuStreams {
    fn stream(&self, stream: Stream) -> Result<sys::CUstream> {
        let stream = match stream {
            Stream::Computing => &self.computing,
            Stream::Copying => &self.copying,
        };
        stream.context().bind_to_thread().w()?;
        Ok(stream.cu_stream())
    }
}

impl Streams for GpuStreams {
    type Host = PinnedHostSlice<u8>;
    type Event = Event;

    fn page_locked(&self, bytes: usize) -> Result<Self::Host> {
        let context = self.copying.context();
        // SAFETY: bytes, of which any are valid; they are written before they are read.
        #[allow(unsafe_code)]
        unsafe { context.alloc_pinned::<u8>(bytes) }.w()
    }

    fn length(&self, host: &Self::Host) -> usize {
        host.len()
    }

    fn write(&self, host: &mut Self::Host, start: usize, piece: &Piece) -> Result<()> {
        // The event that cudarc keeps with such memory, which this waits for, does not tell of copies: it is not recorded where event
        // tracking is off, as `device/gpu.rs` has it.
        let memory = host.as_mut_slice().w()?;
        piece.write(&mut memory[start..start + piece.bytes()]);
        Ok(())
    }

    fn place(&self, count: usize, dtype: DType) -> Result<Tensor> {
        Tensor::zeros(count, dtype, &self.device)
    }

    fn event(&self) -> Result<Event> {
        let flags = [
            sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC,
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        ];
        let flags = flags.into_iter().fold(0, |all, flag| all | flag as u32);
        self.computing.context().bind_to_thread().w()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes one handle into the place it is given.
        #[allow(unsafe_code)]
        unsafe { sys::cuEventCreate(&raw mut event, flags) }
            .result()
            .w()?;
        Ok(Event {
            event,
            stream: Arc::clone(&self.computing),
        })
    }

    fn record(&self, event: &Event, stream: Stream) -> Result<()> {
        // SAFETY: both are of this context and alive.
        #[allow(unsafe_code)]
        unsafe { result::event::record(event.event, self.stream(stream)?) }.w()
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are of this context and alive.
        #[allow(unsafe_code)]
        unsafe { result::stream::wait_event(self.stream(stream)?, event.event, flags) }.w()
    }

    fn wait_here(&self, event: &Event) -> Result<()> {
        self.computing.context().bind_to_thread().w()?;
        // SAFETY: it is of this context and alive.
        #[allow(unsafe_code)]
        unsafe { result::event::synchronize(event.event) }.w()
    }

    fn join(&self) -> Result<()> {
        self.copying.join(&self.computing).w()
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, host: &Self::Host, bytes: Range<usize>, place: &Tensor) -> Result<()> {
        let target = address(place)?;
        let stream = self.stream(Stream::Copying)?;
        // The slice's own event is not waited for: nothing has recorded it.
        let source = &host.as_slice().w()?[bytes];
        // SAFETY: the caller's.
        unsafe { result::memcpy_htod_async(target, source, stream) }.w()
    }

    fn finish(&self) {
        // An error of the GPU is told to whoever asks it for something; there is nobody to tell here.
        let _ = self.copying.synchronize();
    }
}

/// Where a tensor begins on the GPU.
fn address(place: &Tensor) -> Result<sys::CUdeviceptr> {
    fn pointer<T: DeviceRepr>(slice: &CudaSlice<T>) -> sys::CUdeviceptr {
        slice.device_ptr(slice.stream()).0
    }
    let (storage, _) = place.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => match &storage.slice {
            CudaStorageSlice::F32(values) => Ok(pointer(values)),
            CudaStorageSlice::U32(values) => Ok(pointer(values)),
            CudaStorageSlice::U8(values) => Ok(pointer(values)),
            _ => bail!("feed: expected f32, u32 or u8"),
        },
        _ => bail!("feed: expected a tensor on the GPU"),
    }
}
