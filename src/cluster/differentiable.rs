//! Sums over ranks inside of what is differentiated.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::{Ranks, Reduction};
use crate::Error;

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
        sum.map_err(|error: Error| candle_core::Error::wrap(error))?;
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.0.sum(gradient).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::cluster::threads::{Network, on_ranks};

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
}
