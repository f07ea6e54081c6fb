//! The one seam between a run and the other processes that share it.

use candle_core::{DType, Device, Tensor};

use super::PendingSum;
use crate::{Error, Result};

/// How values of all ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest. Not for what may be NaN.
    Max,
}

/// The processes (ranks) of a run, and this one among them. Every method but [`Ranks::rank`], [`Ranks::size`], [`Ranks::abort`] and
/// [`Ranks::library`] is called by all ranks, in the same order, and gives each the same. A rank that does not come leaves the others
/// waiting, so one that fails ends the job ([`Ranks::abort`]).
pub trait Ranks: Send + Sync {
    /// This process's number, from 0. Rank 0 writes.
    fn rank(&self) -> usize;

    /// How many there are, at least 1.
    fn size(&self) -> usize;

    /// Reduces `values` of all ranks, as many on each, in place.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()>;

    /// As [`Ranks::reduce_f32`].
    ///
    /// # Errors
    /// As there.
    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()>;

    /// What every rank gives, of any length, in rank order.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Sends each rank its part of `parts`, which is as many equal parts as there are ranks, and gives what came from each, in rank order.
    /// As long on every rank.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>>;

    /// Replaces `bytes` by those of rank `from`.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()>;

    /// Waits until every rank has come this far.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn barrier(&self) -> Result<()>;

    /// Takes leave of the others; no call follows.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn finish(&self) -> Result<()>;

    /// Ends all ranks, this one included, with exit code `code`; a run of one process goes on.
    fn abort(&self, code: u8);

    /// What connects them, for the record: the library with its version.
    fn library(&self) -> String;

    /// Whether they are threads of this process, which share its memory and its cores.
    fn is_one_process(&self) -> bool {
        false
    }

    /// The mean over ranks of each of `tensors` on the processor, f32, as many on each; one that a rank has not counts as zeros. Of ranks
    /// of one process: they read each other's, and all have the same memory in the end.
    ///
    /// # Errors
    /// Ranks of several processes, a tensor that no rank has, failures of candle.
    fn mean_in_memory(&self, tensors: Vec<Option<Tensor>>) -> Result<Vec<Tensor>> {
        let _ = tensors;
        Err(Error::failed("ranks", "expected those of one process"))
    }

    /// Whether there is but one.
    fn is_one(&self) -> bool {
        self.size() == 1
    }

    /// The elementwise sum of every rank's `tensor`, f32 or f64, on its device.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`]; a tensor of another type.
    fn sum(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        self.reduced(tensor, Reduction::Sum)
    }

    /// The elementwise maximum of every rank's `tensor`, as [`Ranks::sum`].
    ///
    /// # Errors
    /// As there.
    fn max(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        self.reduced(tensor, Reduction::Max)
    }

    /// The body of [`Ranks::sum`] and [`Ranks::max`]: by way of the host's memory.
    ///
    /// # Errors
    /// As there.
    fn reduced(&self, tensor: &Tensor, reduction: Reduction) -> candle_core::Result<Tensor> {
        if self.is_one() {
            return Ok(tensor.clone());
        }
        let (shape, device) = (tensor.shape(), tensor.device());
        let flat = tensor.detach().flatten_all()?;
        match tensor.dtype() {
            DType::F32 => {
                let mut values: Vec<f32> = flat.to_vec1()?;
                self.reduce_f32(&mut values, reduction).map_err(wrapped)?;
                Tensor::from_vec(values, shape, device)
            }
            DType::F64 => {
                let mut values: Vec<f64> = flat.to_vec1()?;
                self.reduce_f64(&mut values, reduction).map_err(wrapped)?;
                Tensor::from_vec(values, shape, device)
            }
            other => candle_core::bail!("ranks: expected f32 or f64 to reduce, found {other:?}"),
        }
    }

    /// Whether sums of tensors of `device` never leave it; else they go by way of the host's memory.
    fn sums_on(&self, device: &Device) -> bool {
        let _ = device;
        false
    }

    /// Begins to sum every rank's `values`, f32, contiguous and in memory that no other tensor has: where [`Ranks::sums_on`] their device
    /// also bf16, in their place and beside what the device is asked for meanwhile.
    ///
    /// # Errors
    /// As [`Ranks::sum`].
    fn sum_aside(&self, values: Tensor) -> candle_core::Result<PendingSum> {
        self.sum(&values).map(PendingSum::here)
    }

    /// The rows of every rank's `rows` [n, D], f32, in rank order: [sum of n, D]. D is the same on all, n need not be.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`]; not a matrix of f32, ranks of other widths.
    fn gather(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        if self.is_one() {
            return Ok(rows.clone());
        }
        let (_, width) = rows.dims2()?;
        let own: Vec<f32> = rows.detach().flatten_all()?.to_vec1()?;
        let all = self.gather_f32(&own).map_err(wrapped)?.concat();
        if width == 0 || !all.len().is_multiple_of(width) {
            candle_core::bail!(
                "ranks: expected rows of {width} from all, found {} values",
                all.len()
            );
        }
        let count = all.len() / width;
        Tensor::from_vec(all, (count, width), &Device::Cpu)?.to_device(rows.device())
    }

    /// What every rank gives, in rank order.
    ///
    /// # Errors
    /// As [`Ranks::gather_bytes`].
    fn gather_f32(&self, own: &[f32]) -> Result<Vec<Vec<f32>>> {
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let values = |bytes: Vec<u8>| {
            let words = bytes.as_chunks::<4>().0;
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        };
        Ok(self.gather_bytes(&bytes)?.into_iter().map(values).collect())
    }

    /// Whether it is so on any rank: what each has seen, and all have to do alike.
    ///
    /// # Errors
    /// As [`Ranks::reduce_f32`].
    fn any(&self, here: bool) -> Result<bool> {
        let mut flag = [f64::from(u8::from(here))];
        self.reduce_f64(&mut flag, Reduction::Max)?;
        Ok(flag[0] > 0.)
    }

    /// Fails on every rank unless all have the same `text`, such as the settings of a run.
    ///
    /// # Errors
    /// Names the first rank whose text is not rank 0's.
    fn agree(&self, what: &str, text: &str) -> Result<()> {
        if self.is_one() {
            return Ok(());
        }
        let all = self.gather_bytes(text.as_bytes())?;
        let Some(other) = all.iter().position(|text| *text != all[0]) else {
            return Ok(());
        };
        let [first, second] = [0, other].map(|rank| String::from_utf8_lossy(&all[rank]).into_owned());
        let (first, second) = first
            .lines()
            .zip(second.lines())
            .find(|(a, b)| a != b)
            .unwrap_or((&first, &second));
        let short = |line: &str| line.chars().take(200).collect::<String>();
        let reason = format!(
            "expected the same on all {} ranks, found `{}` on rank 0 and `{}` on rank {other}",
            self.size(),
            short(first),
            short(second)
        );
        Err(Error::input(what, reason))
    }
}

fn wrapped(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// A run of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneRank;

impl Ranks for OneRank {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn reduce_f32(&self, _: &mut [f32], _: Reduction) -> Result<()> {
        Ok(())
    }

    fn reduce_f64(&self, _: &mut [f64], _: Reduction) -> Result<()> {
        Ok(())
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        Ok(parts.to_vec())
    }

    fn broadcast(&self, _: &mut Vec<u8>, _: usize) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, _: u8) {}

    fn library(&self) -> String {
        "none".to_owned()
    }
}
