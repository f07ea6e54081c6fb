//! A result that was computed outside of candle's graph, put into it with the function that computes its gradients.
//!
//! candle's own operations are handed storages and return one. Here the forward pass is a function of tensors, which may launch
//! kernels, multiply matrices and keep what it likes; its result then becomes the value of a node, without a copy.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail,
};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

use super::direct_gradients::DirectGradients;

/// From inputs, result and the result's gradient (contiguous) to the gradients of the inputs.
type Backward<const N: usize> =
    Box<dyn Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync>;

struct Node<const N: usize> {
    name: &'static str,
    shape: Shape,
    /// Until the node is made.
    value: Mutex<Option<Storage>>,
    backward: Backward<N>,
}

impl<const N: usize> Node<N> {
    fn new(
        name: &'static str,
        value: &Tensor,
        backward: impl Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self {
            name,
            shape: value.shape().clone(),
            value: Mutex::new(Some(taken(name, value)?)),
            backward: Box::new(backward),
        })
    }

    fn value(&self) -> Result<Storage> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match value.take() {
            Some(value) => Ok(value),
            None => bail!("{}: the value of a node was taken twice", self.name),
        }
    }

    fn cpu_value(&self) -> Result<(CpuStorage, Shape)> {
        match self.value()? {
            Storage::Cpu(value) => Ok((value, self.shape.clone())),
            _ => bail!("{}: expected a result on the CPU like the arguments", self.name),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_value(&self) -> Result<(CudaStorage, Shape)> {
        match self.value()? {
            Storage::Cuda(value) => Ok((value, self.shape.clone())),
            _ => bail!("{}: expected a result on the GPU like the arguments", self.name),
        }
    }
}

impl CustomOp1 for Node<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu_value()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda_value()
    }

    fn bwd(&self, first: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradients = (self.backward)([first], result, &grad.contiguous()?)?;
        let [first] = DirectGradients::through_graph([first], gradients)?;
        Ok(first)
    }
}

impl CustomOp2 for Node<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu_value()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda_value()
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = (self.backward)([first, second], result, &grad.contiguous()?)?;
        let [first, second] = DirectGradients::through_graph([first, second], gradients)?;
        Ok((first, second))
    }
}

impl CustomOp3 for Node<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu_value()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda_value()
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        third: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients = (self.backward)([first, second, third], result, &grad.contiguous()?)?;
        let [first, second, third] = DirectGradients::through_graph([first, second, third], gradients)?;
        Ok((first, second, third))
    }
}

/// `value` as a function of one tensor; as it is where that carries no gradient. `value` is used up: nothing else may hold it.
pub(super) fn node1(
    name: &'static str,
    x: &Tensor,
    value: Tensor,
    backward: impl Fn([&Tensor; 1], &Tensor, &Tensor) -> Result<[Option<Tensor>; 1]> + Send + Sync + 'static,
) -> Result<Tensor> {
    match x.track_op() {
        true => x.apply_op1(Node::new(name, &value, backward)?),
        false => Ok(value),
    }
}

/// [`node1`] of two tensors.
pub(super) fn node2(
    name: &'static str,
    [first, second]: [&Tensor; 2],
    value: Tensor,
    backward: impl Fn([&Tensor; 2], &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    match first.track_op() || second.track_op() {
        true => first.apply_op2(second, Node::new(name, &value, backward)?),
        false => Ok(value),
    }
}

/// [`node1`] of three tensors.
pub(super) fn node3(
    name: &'static str,
    [first, second, third]: [&Tensor; 3],
    value: Tensor,
    backward: impl Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    match first.track_op() || second.track_op() || third.track_op() {
        true => first.apply_op3(second, third, Node::new(name, &value, backward)?),
        false => Ok(value),
    }
}

/// The storage of a tensor, in whose place an empty one is left.
fn taken(name: &'static str, tensor: &Tensor) -> Result<Storage> {
    if tensor.layout().start_offset() != 0 || !tensor.is_contiguous() {
        bail!("{name}: expected a result that has its storage to itself")
    }
    let op = Take {
        name,
        taken: RefCell::new(None),
    };
    tensor.inplace_op1(&op)?;
    match op.taken.into_inner() {
        Some(storage) => Ok(storage),
        None => bail!("{name}: expected a result on the CPU or a GPU"),
    }
}

struct Take {
    name: &'static str,
    taken: RefCell<Option<Storage>>,
}

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let whole = std::mem::replace(storage, CpuStorage::U8(Vec::new()));
        *self.taken.borrow_mut() = Some(Storage::Cpu(whole));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device().clone();
        let empty = CudaStorage::wrap_cuda_slice(device.alloc_zeros::<u8>(1)?, device);
        let whole = std::mem::replace(storage, empty);
        *self.taken.borrow_mut() = Some(Storage::Cuda(whole));
        Ok(())
    }
}
