//! Numbers of the host on a GPU, without a wait for it. The driver stages a copy from memory that is not page-locked, and from
//! [`MAX_AT_ONCE`] on the host may have to wait until the stream has come to it: what is longer goes in several copies.

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{CudaDType, cudarc::driver::DeviceRepr};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::launch::{emulator, uninitialised};

/// Most bytes of one copy: up to 64 KiB the driver takes them over at once.
pub(super) const MAX_AT_ONCE: usize = 64 << 10;

/// A number that is uploaded.
#[cfg(feature = "cuda")]
pub trait Number: WithDType + CudaDType + DeviceRepr {}
#[cfg(feature = "cuda")]
impl<T: WithDType + CudaDType + DeviceRepr> Number for T {}

/// A number that is uploaded.
#[cfg(not(feature = "cuda"))]
pub trait Number: WithDType {}
#[cfg(not(feature = "cuda"))]
impl<T: WithDType> Number for T {}

/// `values` as a tensor of `shape` on `device`; the host does not wait for a GPU.
///
/// # Errors
/// A shape of another number of values, failures of candle.
pub fn upload<T: Number>(values: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() != values.len() {
        bail!(
            "upload: expected {} values, found {}",
            shape.elem_count(),
            values.len()
        )
    }
    let out = uninitialised(shape, T::DTYPE, device)?;
    if !values.is_empty() {
        out.inplace_op1(&Fill { values })?;
    }
    Ok(out)
}

/// The values that one copy takes.
pub(super) fn at_once<T>() -> usize {
    (MAX_AT_ONCE / size_of::<T>()).max(1)
}

struct Fill<'a, T> {
    values: &'a [T],
}

impl<T: Number> InplaceOp1 for Fill<'_, T> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let Some(emulator) = emulator() {
            for part in self.values.chunks(at_once::<T>()) {
                emulator.copied(size_of_val(part));
            }
        }
        *storage = T::to_cpu_storage(self.values);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device.clone();
        super::driver::copy(&device, self.values, T::as_cuda_slice_mut(storage)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::geometry::Launch;
    use super::super::launch::{Cell, Launcher, emulated};
    use super::*;

    #[derive(Default)]
    struct Copies(Mutex<Vec<usize>>);

    impl Launcher for Copies {
        fn launch(&self, _: &str, _: &Launch, _: &[Cell]) -> std::result::Result<(), String> {
            Ok(())
        }

        fn copied(&self, bytes: usize) {
            self.0.lock().unwrap().push(bytes);
        }
    }

    #[test]
    fn what_is_long_goes_in_several_copies_and_arrives_whole() {
        let copies = Arc::new(Copies::default());
        let values: Vec<u32> = (0..40_000).collect();
        let doubles = vec![0.5f64; 3];
        let (long, short, none) = emulated(copies.clone(), || {
            let device = &Device::Cpu;
            (
                upload(&values, (200, 200), device).unwrap(),
                upload(&doubles, 3, device).unwrap(),
                upload::<f32>(&[], (0, 7), device).unwrap(),
            )
        });
        assert_eq!(*copies.0.lock().unwrap(), [65_536, 65_536, 28_928, 24]);
        assert_eq!(long.flatten_all().unwrap().to_vec1::<u32>().unwrap(), values);
        assert_eq!(short.to_vec1::<f64>().unwrap(), doubles);
        assert_eq!(none.dims(), [0, 7]);
        assert!(upload(&doubles, 4, &Device::Cpu).is_err());
    }
}
