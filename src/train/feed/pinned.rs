//! The way to an NVIDIA GPU: page-locked memory, which it reads by itself, and a stream that only copies. All that is unsafe about
//! it is in this file.
//!
//! Three things use the memory of a lane, and events keep them apart. The feed's thread writes page-locked memory only when the last
//! copy from it is over (the host waits). The copying stream writes the GPU's memory only when the step before has read it
//! (`released`). The computing stream reads only what has been copied (`copied`). The memory on the GPU is the lane's own for good
//! and only views of it are handed out, so that no pool gives it to anybody else between these three.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result, sys,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, Device, Result, Storage, Tensor, bail};

use super::Lane;
use super::load::{Load, Piece, Sent};

/// Bytes at whose multiples pieces begin.
const ALIGNMENT: usize = 256;

/// A lane, its two streams, and where the batch that goes through it lies.
struct PinnedLane {
    device: Device,
    /// The one stream that everything of the device is computed on.
    computing: Arc<CudaStream>,
    copying: Arc<CudaStream>,
    /// All pieces of a batch, one after the other.
    host: Option<PinnedHostSlice<u8>>,
    /// A flat tensor for each piece, not shorter than it.
    places: Vec<Tensor>,
    /// The end of the latest copy.
    copied: CudaEvent,
    /// The end of what reads the latest batch.
    released: CudaEvent,
}

/// `count` lanes to `gpu`, with one stream for their copies.
pub(super) fn lanes(gpu: &CudaDevice, count: usize) -> Result<Vec<Box<dyn Lane>>> {
    let computing = gpu.cuda_stream();
    let context = computing.context();
    let copying = context.new_stream().w()?;
    let lane = |_| -> Result<Box<dyn Lane>> {
        // The host waits for this one, and gives its core to others meanwhile.
        let blocking = Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
        Ok(Box::new(PinnedLane {
            device: Device::Cuda(gpu.clone()),
            copied: context.new_event(blocking).w()?,
            released: context.new_event(None).w()?,
            computing: Arc::clone(&computing),
            copying: Arc::clone(&copying),
            host: None,
            places: Vec::new(),
        }))
    };
    (0..count).map(lane).collect()
}

impl Lane for PinnedLane {
    fn send(&mut self, load: &Load) -> Result<Sent> {
        let mut ranges = Vec::with_capacity(load.pieces.len());
        let mut end = 0;
        for piece in &load.pieces {
            ranges.push(end..end + piece.bytes());
            end = (end + piece.bytes()).next_multiple_of(ALIGNMENT);
        }
        // The last copy is over before its page-locked memory is written or given back. The event that cudarc keeps with such memory
        // does not tell: it is not recorded where event tracking is off, as `runtime/gpu.rs` has it.
        self.copied.synchronize().w()?;
        self.make_room(&load.pieces, end)?;
        let Some(host) = &mut self.host else {
            bail!("feed: expected page-locked memory, found none")
        };
        let memory = host.as_mut_slice().w()?;
        for (piece, range) in load.pieces.iter().zip(&ranges) {
            piece.write(&mut memory[range.clone()]);
        }
        self.copying.wait(&self.released).w()?;
        self.copying.context().bind_to_thread().w()?;
        for (place, range) in self.places.iter().zip(ranges) {
            let (target, source) = (address(place)?, &memory[range]);
            // SAFETY: the piece goes to a tensor of the lane that is at least as long and of its type (`make_room`). No kernel reads
            // that meanwhile: those of the batch before are over when `released`, for which the copying stream has just been told
            // to wait, and those of this batch come after `copied`. Neither the tensor nor the page-locked memory is written
            // or given back before the host has waited for `copied`: above, and in `Drop`.
            #[allow(unsafe_code)]
            unsafe {
                result::memcpy_htod_async(target, source, self.copying.cu_stream()).w()?;
            }
        }
        self.copied.record(&self.copying).w()?;
        let views = self.places.iter().zip(&load.pieces);
        let views: Result<_> = views
            .map(|(place, piece)| place.narrow(0, 0, piece.len()))
            .collect();
        Ok(load.arrived(views?))
    }

    fn arrived(&self) -> Result<()> {
        // By the host, so that a copy that no step has hidden shows as waiting for data. By the stream, so that the order of
        // its work does not hang on what the host does.
        self.copied.synchronize().w()?;
        self.computing.wait(&self.copied).w()
    }

    fn release(&mut self) -> Result<()> {
        self.released.record(&self.computing).w()
    }
}

impl PinnedLane {
    /// Sees to it that memory on both sides is large enough for `pieces`, which take `bytes` on the host. Only while it grows,
    /// which is over after a few batches, do the streams wait for one another here.
    fn make_room(&mut self, pieces: &[Piece], bytes: usize) -> Result<()> {
        if self.host.as_ref().is_none_or(|host| host.len() < bytes) {
            // The old memory goes first.
            self.host = None;
            let context = self.copying.context();
            // SAFETY: bytes, of which any are valid; they are written before they are read.
            #[allow(unsafe_code)]
            let host = unsafe { context.alloc_pinned::<u8>(with_headroom(bytes)) }.w()?;
            self.host = Some(host);
        }
        self.places.truncate(pieces.len());
        let mut grown = false;
        for (number, piece) in pieces.iter().enumerate() {
            let fits = |place: &Tensor| place.dtype() == piece.dtype() && place.elem_count() >= piece.len();
            if self.places.get(number).is_some_and(fits) {
                continue;
            }
            // What an old place holds has been read: it goes back to the pool in the order of the computing stream, like every tensor.
            let place = Tensor::zeros(with_headroom(piece.len()), piece.dtype(), &self.device)?;
            match self.places.get_mut(number) {
                Some(old) => *old = place,
                None => self.places.push(place),
            }
            grown = true;
        }
        if grown {
            // A tensor is there when the computing stream has come to it.
            self.copying.join(&self.computing).w()?;
        }
        Ok(())
    }
}

impl Drop for PinnedLane {
    /// Waits for all copies, also those that a failure has kept from being recorded, before the memory on both sides goes.
    fn drop(&mut self) {
        // An error of the GPU is told to whoever asks it for something; there is nobody to tell here.
        let _ = self.copying.synchronize();
    }
}

/// More than is needed now, since images differ in size. Never nothing, which cannot be had.
fn with_headroom(length: usize) -> usize {
    (length + length / 4).max(1)
}

/// Where a tensor begins on the GPU.
fn address(place: &Tensor) -> Result<sys::CUdeviceptr> {
    fn of<T: DeviceRepr>(slice: &CudaSlice<T>) -> sys::CUdeviceptr {
        slice.device_ptr(slice.stream()).0
    }
    let (storage, _) = place.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => match &storage.slice {
            CudaStorageSlice::F32(values) => Ok(of(values)),
            CudaStorageSlice::U32(values) => Ok(of(values)),
            CudaStorageSlice::U8(values) => Ok(of(values)),
            _ => bail!("feed: expected f32, u32 or u8"),
        },
        _ => bail!("feed: expected a tensor on the GPU"),
    }
}
