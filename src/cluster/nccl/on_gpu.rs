//! Ranks whose sums of tensors stay on their GPUs. Those that a step waits for go on candle's own stream, which orders them by itself;
//! those of gradients on a second one, which does nothing else: it waits by an event for what candle's has done before, and candle's
//! for it where the sum is used. So candle's memory is given back by its own stream alone, after all that uses it.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr as _, DevicePtrMut as _};
use candle_core::cuda_backend::{CudaDType, WrapErr as _};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, InplaceOp2, Layout, Tensor, bail,
};
use half::bf16;

use super::super::{PendingSum, Ranks, Reduction};
use super::abi::{Api, Kind, Operation, UniqueId};
use super::communicator::{Communicator, unique_id};
use crate::{Error, Result};

/// How long the end of a job waits for NCCL to stop.
const ABORT: Duration = Duration::from_secs(2);

/// Ranks of GPUs, and what connects them for everything else.
pub(super) struct Nccl {
    host: Arc<dyn Ranks>,
    communicator: Arc<Communicator>,
    gpu: CudaDevice,
    /// The stream of gradients.
    aside: Arc<CudaStream>,
    library: String,
}

impl Nccl {
    /// Connects the GPUs of all ranks of `host`, each of which calls it; `library` is what the record calls NCCL.
    ///
    /// # Errors
    /// What NCCL says, ranks that cannot reach each other.
    pub(super) fn connect(api: Api, library: String, host: Arc<dyn Ranks>, gpu: &CudaDevice) -> Result<Self> {
        let api = Arc::new(api);
        let mut id = match host.rank() {
            0 => unique_id(&api)?.0.to_vec(),
            _ => Vec::new(),
        };
        host.broadcast(&mut id, 0)?;
        let id = id.try_into().map_err(|id: Vec<u8>| {
            let reason = format!("expected an identifier from rank 0, found {} bytes", id.len());
            Error::failed("NCCL", reason)
        })?;
        let context = Arc::clone(gpu.cuda_stream().context());
        let of_driver = |error: candle_core::cuda_backend::cudarc::driver::DriverError| {
            Error::failed("GPU", error.to_string())
        };
        context.bind_to_thread().map_err(of_driver)?;
        let communicator = Communicator::start(api, UniqueId(id), host.rank(), host.size())?;
        let communicator = Arc::new(communicator);
        let (rank, others) = (host.rank(), Arc::clone(&host));
        communicator.watch(move |communicator, trouble| {
            // Whoever read this may have gone as well.
            let _ = writeln!(
                std::io::stderr(),
                "error: rank {rank} on {}: {trouble}",
                crate::cluster::host()
            );
            communicator.abort();
            others.abort(1);
        })?;
        Ok(Self {
            aside: context.new_stream().map_err(of_driver)?,
            host,
            communicator,
            gpu: gpu.clone(),
            library,
        })
    }

    fn has(&self, tensor: &Tensor) -> bool {
        self.sums_on(tensor.device())
    }

    /// Replaces `values` by what all ranks' reduce to, on `stream`.
    fn reduce(&self, values: &Tensor, reduction: Reduction, stream: &CudaStream) -> candle_core::Result<()> {
        // The thread that calls changes from step to step.
        stream.context().bind_to_thread().w()?;
        let operation = match reduction {
            Reduction::Sum => Operation::Sum,
            Reduction::Max => Operation::Max,
        };
        values.inplace_op1(&Reduce {
            communicator: &self.communicator,
            operation,
            stream,
        })
    }
}

/// The reduction of a tensor in its place.
struct Reduce<'a> {
    communicator: &'a Communicator,
    operation: Operation,
    stream: &'a CudaStream,
}

impl Reduce<'_> {
    fn values<T: CudaDType>(
        &self,
        storage: &mut CudaStorage,
        (from, to): (usize, usize),
        kind: Kind,
    ) -> candle_core::Result<()> {
        let slice = storage.as_cuda_slice_mut::<T>()?;
        let (start, _used) = slice.device_ptr_mut(self.stream);
        let place = start as usize + from * size_of::<T>();
        let what = (kind, self.operation);
        // SAFETY: the layout's values lie at `place`, in a storage that is borrowed for this alone; whoever asks for it orders what
        // comes later behind `stream`.
        let done = unsafe {
            let stream = self.stream.cu_stream().cast();
            self.communicator
                .all_reduce(place as *mut c_void, to - from, what, stream)
        };
        done.map_err(candle_core::Error::wrap)
    }
}

impl InplaceOp1 for Reduce<'_> {
    fn name(&self) -> &'static str {
        "reduce-over-ranks"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("ranks: expected a tensor on a GPU to reduce with NCCL")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some(place) = layout.contiguous_offsets() else {
            bail!("ranks: expected a contiguous tensor to reduce, found {layout:?}");
        };
        match storage.dtype() {
            DType::F32 => self.values::<f32>(storage, place, Kind::F32),
            DType::F64 => self.values::<f64>(storage, place, Kind::F64),
            DType::BF16 => self.values::<bf16>(storage, place, Kind::Bf16),
            other => bail!("ranks: expected f32, f64 or bf16 to reduce, found {other:?}"),
        }
    }
}

/// The rows of all ranks into one tensor, as many of each.
struct Gather<'a> {
    communicator: &'a Communicator,
    stream: &'a CudaStream,
}

impl InplaceOp2 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather-over-ranks"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("ranks: expected tensors on a GPU to gather with NCCL")
    }

    fn cuda_fwd(
        &self,
        all: &mut CudaStorage,
        all_layout: &Layout,
        own: &CudaStorage,
        own_layout: &Layout,
    ) -> candle_core::Result<()> {
        let places = (all_layout.contiguous_offsets(), own_layout.contiguous_offsets());
        let (Some((to, _)), Some((from, end))) = places else {
            bail!("ranks: expected contiguous rows to gather, found {own_layout:?}");
        };
        let all = all.as_cuda_slice_mut::<f32>()?;
        let own = own.as_cuda_slice::<f32>()?;
        let (own, _read) = own.device_ptr(self.stream);
        let (all, _written) = all.device_ptr_mut(self.stream);
        let place = |start: u64, offset: usize| start as usize + offset * size_of::<f32>();
        // SAFETY: `own` holds as many values and `all` as many of every rank, both of this GPU; candle's stream, on which this runs,
        // orders it.
        let done = unsafe {
            let (own, all) = (place(own, from) as *const c_void, place(all, to) as *mut c_void);
            let stream = self.stream.cu_stream().cast();
            self.communicator
                .all_gather(own, all, end - from, Kind::F32, stream)
        };
        done.map_err(candle_core::Error::wrap)
    }
}

impl Ranks for Nccl {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        self.host.reduce_f32(values, reduction)
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        self.host.reduce_f64(values, reduction)
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.host.gather_bytes(own)
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        self.host.trade(parts)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        self.host.broadcast(bytes, from)
    }

    fn barrier(&self) -> Result<()> {
        self.host.barrier()
    }

    fn finish(&self) -> Result<()> {
        self.host.barrier()?;
        let context = self.gpu.cuda_stream().context().clone();
        let waited = context.synchronize();
        waited.map_err(|error| Error::failed("GPU", error.to_string()))?;
        self.communicator.finish()?;
        self.host.finish()
    }

    fn abort(&self, code: u8) {
        let (communicator, (tell, told)) = (Arc::clone(&self.communicator), channel());
        let abort = move || {
            communicator.abort();
            let _ = tell.send(());
        };
        // On a thread of its own: whether it comes back depends on the other ranks, and the end of the job must not.
        if thread::Builder::new().spawn(abort).is_ok() {
            let _ = told.recv_timeout(ABORT);
        }
        self.host.abort(code);
    }

    fn library(&self) -> String {
        format!("{} and {}", self.library, self.host.library())
    }

    fn sums_on(&self, device: &Device) -> bool {
        matches!(device, Device::Cuda(gpu) if gpu.id() == self.gpu.id())
    }

    fn reduced(&self, tensor: &Tensor, reduction: Reduction) -> candle_core::Result<Tensor> {
        if !self.has(tensor) {
            return self.host.reduced(tensor, reduction);
        }
        let reduced = tensor.detach().force_contiguous()?;
        self.reduce(&reduced, reduction, &self.gpu.cuda_stream())?;
        Ok(reduced)
    }

    fn sum_aside(&self, values: Tensor) -> candle_core::Result<PendingSum> {
        if !self.has(&values) {
            return self.host.sum(&values).map(PendingSum::here);
        }
        let own = self.gpu.cuda_stream();
        self.aside.join(&own).w()?;
        self.reduce(&values, Reduction::Sum, &self.aside)?;
        let done = self.aside.record_event(None).w()?;
        let arrive = move || own.wait(&done).w();
        Ok(PendingSum::on_its_way(values, Box::new(arrive)))
    }

    fn gather(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        if !self.has(rows) || rows.dtype() != DType::F32 {
            return self.host.gather(rows);
        }
        let (own, width) = rows.dims2()?;
        let counts = self.host.gather_bytes(&(own as u64).to_le_bytes());
        let counts = counts.map_err(candle_core::Error::wrap)?;
        let count = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes) as usize;
        let counts: Vec<usize> = counts.iter().map(count).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        if most * width == 0 {
            return Ok(rows.clone());
        }
        // NCCL takes as much of every rank: what is missing is cut off again.
        let rows = rows.detach();
        let padded = match most - own {
            0 => rows.contiguous()?,
            missing => {
                let missing = Tensor::zeros((missing, width), DType::F32, rows.device())?;
                Tensor::cat(&[&rows, &missing], 0)?
            }
        };
        let all = Tensor::zeros((counts.len() * most, width), DType::F32, rows.device())?;
        let stream = self.gpu.cuda_stream();
        stream.context().bind_to_thread().w()?;
        all.inplace_op2(
            &padded,
            &Gather {
                communicator: &self.communicator,
                stream: &stream,
            },
        )?;
        let parts: Vec<Tensor> = counts
            .iter()
            .enumerate()
            .map(|(rank, &count)| all.narrow(0, rank * most, count))
            .collect::<candle_core::Result<_>>()?;
        Tensor::cat(&parts, 0)
    }
}
