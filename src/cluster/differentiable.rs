//! Sums over ranks, and rows of all of them, inside of what is differentiated.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::{Ranks, Reduction};

/// The elementwise sum of every rank's `tensor`, f32, as part of a loss that is the sum of all ranks' losses: its gradient is the sum
/// of the gradients that ranks have for it, so that all ranks differentiate what they sum, in the same order.
///
/// # Errors
/// Ranks that cannot reach each other, a tensor of another type.
pub fn sum_with_gradient(ranks: &Arc<dyn Ranks>, tensor: &Tensor) -> Result<Tensor> {
    let here = tensor.to_device(&Device::Cpu)?.contiguous()?;
    here.apply_op1(SumOverRanks(Arc::clone(ranks)))?
        .to_device(tensor.device())
}

struct SumOverRanks(Arc<dyn Ranks>);

impl CustomOp1 for SumOverRanks {
    fn name(&self) -> &'static str {
        "sum-over-ranks"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("ranks: expected a contiguous tensor to sum, found {layout:?}");
        };
        let mut values = storage.as_slice::<f32>()?[from..to].to_vec();
        let sum = self.0.reduce_f32(&mut values, Reduction::Sum);
        sum.map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.0.sum(gradient).map(Some)
    }
}

/// The rows of every rank's `rows` [n, D], f32, in rank order: [sum of n, D], as part of a loss that is the sum of all ranks' losses:
/// the gradient of a row is the sum of those that ranks have for it, as in [`sum_with_gradient`].
///
/// # Errors
/// As there.
pub fn gather_with_gradient(ranks: &Arc<dyn Ranks>, rows: &Tensor) -> Result<Tensor> {
    let (own, _) = rows.dims2()?;
    let counts = ranks.gather_bytes(&(own as u64).to_le_bytes());
    let counts = counts.map_err(candle_core::Error::wrap)?;
    let count = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes) as usize;
    let op = GatherOverRanks {
        ranks: Arc::clone(ranks),
        first: counts[..ranks.rank()].iter().map(count).sum(),
        all: counts.iter().map(count).sum(),
    };
    let here = rows.to_device(&Device::Cpu)?.contiguous()?;
    here.apply_op1(op)?.to_device(rows.device())
}

struct GatherOverRanks {
    ranks: Arc<dyn Ranks>,
    /// The place of this rank's first row.
    first: usize,
    /// Rows of all ranks.
    all: usize,
}

impl CustomOp1 for GatherOverRanks {
    fn name(&self) -> &'static str {
        "gather-over-ranks"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some((from, to)), &[_, width]) = (layout.contiguous_offsets(), layout.dims()) else {
            bail!("ranks: expected contiguous rows to gather, found {layout:?}");
        };
        let gathered = self.ranks.gather_f32(&storage.as_slice::<f32>()?[from..to]);
        let values = gathered.map_err(candle_core::Error::wrap)?.concat();
        if values.len() != self.all * width {
            let found = values.len();
            bail!(
                "ranks: expected {} rows of {width} from all, found {found} values",
                self.all
            );
        }
        Ok((CpuStorage::F32(values), Shape::from((self.all, width))))
    }

    fn bwd(&self, rows: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let own = self.ranks.sum(gradient)?.narrow(0, self.first, rows.dim(0)?)?;
        own.contiguous().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::cluster::simulated::{Network, on_ranks};

    #[test]
    fn gradients_of_a_sum_are_those_of_all_ranks_losses() {
        let found = on_ranks(3, Network::default(), |ranks| {
            let own = ranks.rank() as f32 + 1.;
            let x = Var::new(&[own, 2. * own], &Device::Cpu).unwrap();
            // Rank r has r + 1 times the square of the sum as its loss.
            let sum = sum_with_gradient(&ranks, &x).unwrap();
            let loss = (sum.sqr().unwrap().sum_all().unwrap() * f64::from(own)).unwrap();
            let gradients = loss.backward().unwrap();
            let gradient = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
            (sum.to_vec1::<f32>().unwrap(), gradient)
        });
        for (sum, gradient) in found {
            assert_eq!((sum, gradient), (vec![6., 12.], vec![72., 144.]));
        }
    }

    #[test]
    fn gathered_rows_get_the_gradients_of_all_ranks() {
        let found = on_ranks(2, Network::default(), |ranks| {
            // One row on the first rank, two on the second.
            let own = ranks.rank() + 1;
            let rows: Vec<f32> = (0..2 * own).map(|value| (value + 10 * own) as f32).collect();
            let x = Var::from_tensor(&Tensor::from_vec(rows, (own, 2), &Device::Cpu).unwrap()).unwrap();
            let all = gather_with_gradient(&ranks, &x).unwrap();
            // Rank r has r + 1 times half the sum of squares as its loss.
            let loss = (all.sqr().unwrap().sum_all().unwrap() * (own as f64 / 2.)).unwrap();
            let gradient = loss
                .backward()
                .unwrap()
                .get(&x)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            (all.to_vec2::<f32>().unwrap(), gradient)
        });
        let all = vec![vec![10., 11.], vec![20., 21.], vec![22., 23.]];
        let of = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let times_three = |row: &Vec<f32>| row.iter().map(|value| 3. * value).collect();
            rows.iter().map(times_three).collect()
        };
        assert_eq!(found[0], (all.clone(), of(&all[..1])));
        assert_eq!(found[1], (all.clone(), of(&all[1..])));
    }
}
