//! How fast this machine is at the matrix products of training steps, shape by shape.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use macula_models::ops::linear;
use serde::Serialize;

/// Rows, outputs and inputs of linear layers in the two steps that trainers are compared by: tokens of a batch of 64 in ViTs of
/// width 192 and 384, rows in a head, rows against 4,096 and 65,536 prototypes.
pub const SIZES: [[usize; 3]; 10] = [
    [12_928, 576, 192],
    [12_928, 192, 192],
    [12_928, 768, 192],
    [12_928, 192, 768],
    [4_096, 1_152, 384],
    [4_096, 1_536, 384],
    [4_096, 384, 1_536],
    [1_408, 2_048, 2_048],
    [1_408, 4_096, 256],
    [1_408, 65_536, 256],
];

/// Those of geometries c and d on a GPU: both sizes of crops of a batch of 64 through ViTs of width 384 and 768 (`qkv` or the first
/// layer, the second one, `proj`), and the head's rows against 65,536 prototypes.
pub const GPU_SIZES: [[usize; 3]; 6] = [
    [58_496, 1_536, 384],
    [58_496, 384, 1_536],
    [58_496, 384, 384],
    [58_496, 3_072, 768],
    [58_496, 768, 3_072],
    [5_568, 65_536, 256],
];

/// Repetitions of a product, of which the fastest counts.
const REPETITIONS: usize = 5;

/// Rates of one linear layer, in 1e9 operations a second.
#[derive(Debug, Clone, Serialize)]
pub struct ProductRate {
    /// Rows, outputs and inputs.
    pub size: [usize; 3],
    /// `x weight^T`.
    pub forward: f64,
    /// `dy weight`.
    pub input_gradient: f64,
    /// `dy^T x`.
    pub weight_gradient: f64,
}

/// Times the three products of a linear layer of `size` in `compute`.
///
/// # Errors
/// When candle fails, for lack of memory most likely.
pub fn product_rate(size: [usize; 3], compute: DType, device: &Device) -> Result<ProductRate> {
    let [rows, outputs, inputs] = size;
    let x = Var::randn(0f32, 1., (rows, inputs), device)?;
    let weight = Var::randn(0f32, 1., (outputs, inputs), device)?;
    let operations = 2. * rows as f64 * outputs as f64 * inputs as f64;
    let forward = min_seconds(device, || {
        linear(&x.detach(), &weight.detach(), None, compute).map(drop)
    })?;
    // A backward pass without the product: the gradient of the sum and candle's walk over the graph.
    let nothing = {
        let y = Var::zeros((rows, outputs), DType::F32, device)?.sum_all()?;
        min_seconds(device, || y.backward().map(drop))?
    };
    let backward = |x: &Tensor, weight: &Tensor| -> Result<f64> {
        let y = linear(x, weight, None, compute)?.sum_all()?;
        let whole = min_seconds(device, || y.backward().map(drop))?;
        // Where a product is so small that the rest hides it, a lower bound of its rate.
        Ok(if whole > nothing { whole - nothing } else { whole })
    };
    let rate = |seconds: f64| operations / seconds / 1e9;
    Ok(ProductRate {
        size,
        forward: rate(forward),
        input_gradient: rate(backward(&x, &weight.detach())?),
        weight_gradient: rate(backward(&x.detach(), &weight)?),
    })
}

/// The least time of `work`.
pub(super) fn min_seconds(device: &Device, work: impl Fn() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..=REPETITIONS {
        let start = Instant::now();
        work()?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_of_a_layer_has_a_rate() {
        for compute in [DType::F32, DType::BF16] {
            let rate = product_rate([64, 48, 32], compute, &Device::Cpu).unwrap();
            for rate in [rate.forward, rate.input_gradient, rate.weight_gradient] {
                assert!(rate.is_finite() && rate > 0., "{rate}");
            }
        }
    }
}
