//! Elementwise updates of a tensor in place, parallel over fixed chunks; f32.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail};
use macula_models::ops::vectors::wide;
use rayon::prelude::*;

use super::super::expect_shape;

/// Elements per task, and per partial sum: fixed, so that results do not depend on the number of threads.
pub(super) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Applies `change(&mut target, source)` to every pair of elements. `target` and `source` have one shape.
///
/// # Errors
/// Other types than f32, other devices than the CPU, tensors that are not contiguous, shapes that differ.
pub(super) fn update(
    name: &'static str,
    target: &Tensor,
    source: &Tensor,
    change: impl Fn(&mut f32, f32) + Sync,
) -> Result<()> {
    expect_shape(name, target, source)?;
    target.inplace_op2(source, &Update { name, change })
}

/// Applies `change(&mut target, first, second)` to every triple of elements, as [`update`] does to pairs.
///
/// # Errors
/// As [`update`].
pub(super) fn update_with_two(
    name: &'static str,
    target: &Tensor,
    first: &Tensor,
    second: &Tensor,
    change: impl Fn(&mut f32, f32, f32) + Sync,
) -> Result<()> {
    expect_shape(name, target, first)?;
    expect_shape(name, target, second)?;
    target.inplace_op3(first, second, &Update { name, change })
}

/// The sum of squares of a CPU tensor's values, added up in f64.
///
/// # Errors
/// As [`update`].
pub(super) fn sum_of_squares(name: &str, tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("{name}: expected a tensor on the CPU, this device is not supported yet")
    };
    let of_chunk = |chunk: &[f32]| {
        wide(
            #[inline(always)]
            || squares(chunk),
        )
    };
    let chunks: Vec<f64> = values(name, storage, layout)?
        .par_chunks(ELEMENTS_PER_TASK)
        .map(of_chunk)
        .collect();
    Ok(chunks.iter().sum())
}

/// The sum of squares in f64, in lanes so that it vectorises.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (blocks, rest) = values.as_chunks::<8>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}

/// Runs `work` on the values of `target`, which it may change. Calls on tensors of different storage can be nested.
///
/// # Errors
/// As [`update`].
pub(super) fn with_values_mut<R>(
    name: &'static str,
    target: &Tensor,
    work: impl FnOnce(&mut [f32]) -> Result<R>,
) -> Result<R> {
    let op = Work {
        name,
        work: RefCell::new(Some(work)),
        result: RefCell::new(None),
    };
    target.inplace_op1(&op)?;
    match op.result.into_inner() {
        Some(result) => result,
        None => bail!("{name}: expected a tensor on the CPU, this device is not supported yet"),
    }
}

struct Work<F, R> {
    name: &'static str,
    work: RefCell<Option<F>>,
    result: RefCell<Option<Result<R>>>,
}

impl<R, F: FnOnce(&mut [f32]) -> Result<R>> InplaceOp1 for Work<F, R> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let target = values_mut(self.name, target, layout)?;
        let work = self.work.borrow_mut().take();
        *self.result.borrow_mut() = work.map(|work| work(target));
        Ok(())
    }
}

struct Update<F> {
    name: &'static str,
    change: F,
}

impl<F: Fn(&mut f32, f32) + Sync> InplaceOp2 for Update<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let source = values(self.name, source, source_layout)?;
        values_mut(self.name, target, target_layout)?
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(source.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(target, source)| {
                wide(
                    #[inline(always)]
                    || {
                        for (target, &source) in target.iter_mut().zip(source) {
                            (self.change)(target, source);
                        }
                    },
                );
            });
        Ok(())
    }
}

impl<F: Fn(&mut f32, f32, f32) + Sync> InplaceOp3 for Update<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<()> {
        let first = values(self.name, first, first_layout)?;
        let second = values(self.name, second, second_layout)?;
        values_mut(self.name, target, target_layout)?
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(first.par_chunks(ELEMENTS_PER_TASK))
            .zip(second.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|((target, first), second)| {
                wide(
                    #[inline(always)]
                    || {
                        for ((target, &first), &second) in target.iter_mut().zip(first).zip(second) {
                            (self.change)(target, first, second);
                        }
                    },
                );
            });
        Ok(())
    }
}

fn values<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = range(name, layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[start..end]),
        _ => bail!("{name}: expected f32 values"),
    }
}

fn values_mut<'a>(name: &str, storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = range(name, layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("{name}: expected f32 values"),
    }
}

fn range(name: &str, layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => bail!("{name}: expected a contiguous tensor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::values as all;
    use candle_core::{DType, Device, Var};

    #[test]
    fn every_element_of_a_large_variable_changes_in_place() {
        let count = 3 * ELEMENTS_PER_TASK + 5;
        let target = Var::ones(count, DType::F32, &Device::Cpu).unwrap();
        let source = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
        update("add", &target, &source, |t, s| *t += s).unwrap();
        update_with_two("subtract both", &target, &source, &source, |t, a, b| {
            *t -= 2. * a - b
        })
        .unwrap();
        assert!(all(&target).iter().all(|&x| x == 1.));
        assert_eq!(sum_of_squares("sum", &target).unwrap(), count as f64);
    }

    #[test]
    fn what_cannot_be_updated_is_named() {
        let make = |dtype, count| Tensor::ones(count, dtype, &Device::Cpu).unwrap();
        let run = |target: &Tensor, source: &Tensor| {
            let result = update("ema", target, source, |t, s| *t = s);
            result.unwrap_err().to_string()
        };
        let single = |count| make(DType::F32, count);
        assert!(run(&single(2), &single(3)).starts_with("ema: expected shape [2], found [3]"));
        let double = make(DType::F64, 2);
        assert!(run(&single(2), &double).contains("ema: expected f32 values"));
        assert!(run(&double, &single(2)).contains("ema: expected f32 values"));
    }
}
