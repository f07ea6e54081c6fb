//! The keys of past batches, which stand in for a larger batch as negatives (He et al. 2020, section 3.2;
//! facebookresearch/moco `moco/builder.py`, `_dequeue_and_enqueue`).

use candle_core::{D, DType, Device, Result, Tensor, bail};
use macula_models::ops;
use rand::Rng;

use super::{expect_matrix, matrix};

/// The latest N keys, newest first. A batch of any size may be pushed: the order of negatives means nothing to the loss, so
/// new keys go to the front and as many old ones fall off the end, where the reference writes at a pointer and needs N to
/// be a multiple of the batch.
#[derive(Debug, Clone)]
pub struct KeyQueue {
    keys: Tensor, // [N, D]
}

impl KeyQueue {
    /// `size` random directions of `width` dimensions, as the reference starts: until the queue has been filled once, the
    /// loss contrasts with noise.
    ///
    /// # Errors
    /// A size or a width of 0.
    pub fn random(size: usize, width: usize, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        if size == 0 || width == 0 {
            bail!("key queue: expected a size and a width of at least 1, found {size} x {width}");
        }
        let values: Vec<f32> = (0..size * width).map(|_| standard_normal(rng)).collect();
        let keys = Tensor::from_vec(values, (size, width), &Device::Cpu)?;
        Ok(Self {
            keys: ops::l2_normalize(&keys, 1e-12)?.to_device(device)?,
        })
    }

    /// The queue of a checkpoint: `keys` [N, D] as [`Self::keys`] gave them.
    ///
    /// # Errors
    /// Not a matrix.
    pub fn from_keys(keys: &Tensor) -> Result<Self> {
        matrix("key queue", keys)?;
        Ok(Self {
            keys: keys.detach().to_dtype(DType::F32)?,
        })
    }

    /// The keys [N, D]. Pushing does not change tensors that were handed out.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// For each of the normalised `keys` [B, D] the one in the queue with the highest cosine to it, [B, D].
    ///
    /// # Errors
    /// Keys of another width.
    pub fn nearest(&self, keys: &Tensor) -> Result<Tensor> {
        let (_, width) = self.keys.dims2()?;
        let (batch, _) = matrix("key queue", keys)?;
        expect_matrix("key queue", keys, batch, width)?;
        let keys = keys.detach().to_dtype(DType::F32)?;
        let cosines = ops::linear(&keys, &self.keys, None, DType::F32)?; // [B, N]
        self.keys.index_select(&cosines.argmax(D::Minus1)?, 0)
    }

    /// Takes in the normalised keys [B, D] of a batch, after its loss has been computed. Of more than N the first N stay.
    ///
    /// # Errors
    /// Keys of another width.
    pub fn push(&mut self, keys: &Tensor) -> Result<()> {
        let (size, width) = self.keys.dims2()?;
        let (batch, _) = matrix("key queue", keys)?;
        expect_matrix("key queue", keys, batch, width)?;
        let taken = batch.min(size);
        let newest = keys.detach().to_dtype(DType::F32)?.narrow(0, 0, taken)?;
        self.keys = Tensor::cat(&[newest, self.keys.narrow(0, 0, size - taken)?], 0)?;
        Ok(())
    }
}

/// A draw from the standard normal distribution (Box and Muller 1958).
pub(super) fn standard_normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2. * (1. - rng.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    (radius * angle.cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::train::losses::info_nce_loss;
    use crate::train::testing::{assert_close, values};
    use candle_core::Var;

    fn numbered(rows: std::ops::Range<usize>) -> Tensor {
        let values: Vec<f32> = rows.clone().flat_map(|row| [row as f32, 1.]).collect();
        Tensor::from_vec(values, (rows.len(), 2), &Device::Cpu).unwrap()
    }

    fn rows(queue: &KeyQueue) -> Vec<f64> {
        values(&queue.keys().narrow(1, 0, 1).unwrap())
    }

    #[test]
    fn starts_with_repeatable_directions_of_no_preference() {
        let draw = |counter| {
            let mut rng = stream(7, "queue", counter);
            KeyQueue::random(4096, 3, &mut rng, &Device::Cpu).unwrap()
        };
        let queue = draw(0);
        assert_eq!(values(queue.keys()), values(draw(0).keys()));
        assert_ne!(values(queue.keys()), values(draw(1).keys()));
        let squares = queue.keys().sqr().unwrap();
        let ones = Tensor::ones(4096, DType::F32, &Device::Cpu).unwrap();
        assert_close("lengths", &squares.sum(1).unwrap(), &ones, 1e-6);
        // Uniform on the sphere: means 0 and mean squares 1/3, each within 5 standard errors.
        for mean in values(&queue.keys().mean(0).unwrap()) {
            assert!(mean.abs() < 5. * (1f64 / 3. / 4096.).sqrt(), "{mean}");
        }
        for mean in values(&squares.mean(0).unwrap()) {
            assert!(
                (mean - 1. / 3.).abs() < 5. * (4f64 / 45. / 4096.).sqrt(),
                "{mean}"
            );
        }
    }

    /// Moments of 40,000 draws, each within 5 standard errors.
    #[test]
    fn draws_are_standard_normal() {
        let mut rng = stream(11, "queue", 0);
        let draws: Vec<f64> = (0..40_000)
            .map(|_| f64::from(standard_normal(&mut rng)))
            .collect();
        let moment = |power: i32| draws.iter().map(|draw| draw.powi(power)).sum::<f64>() / 40_000.;
        // The variance of x^k is E x^2k - (E x^k)^2, and E x^2k = 1 * 3 * .. * (2k - 1).
        for (power, expected, variance) in [(1, 0., 1.), (2, 1., 2.), (3, 0., 15.), (4, 3., 96.)] {
            let found = moment(power);
            let error = (variance / 40_000f64).sqrt();
            assert!((found - expected).abs() < 5. * error, "{power}: {found}");
        }
    }

    #[test]
    fn the_oldest_keys_make_room() {
        let mut queue = KeyQueue::from_keys(&numbered(0..5)).unwrap();
        queue.push(&numbered(10..12)).unwrap();
        assert_eq!(rows(&queue), [10., 11., 0., 1., 2.]);
        queue.push(&numbered(20..24)).unwrap();
        assert_eq!(rows(&queue), [20., 21., 22., 23., 10.]);
        queue.push(&numbered(30..37)).unwrap();
        assert_eq!(rows(&queue), [30., 31., 32., 33., 34.]);
        queue.push(&numbered(0..0)).unwrap();
        assert_eq!(rows(&queue), [30., 31., 32., 33., 34.]);
        let wide = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
        let error = queue.push(&wide).unwrap_err().to_string();
        assert!(
            error.starts_with("key queue: expected shape [1, 2], found [1, 3]"),
            "{error}"
        );
    }

    #[test]
    fn the_nearest_key_is_found_for_each() {
        let keys = Tensor::new(&[[1f32, 0.], [0.6, 0.8], [-1., 0.]], &Device::Cpu).unwrap();
        let queue = KeyQueue::from_keys(&keys).unwrap();
        let asked = Tensor::new(&[[-0.8f32, 0.6], [0., 1.], [0.96, 0.28]], &Device::Cpu).unwrap();
        let found = queue.nearest(&asked).unwrap();
        let expected = keys.index_select(&Tensor::new(&[2u32, 1, 0], &Device::Cpu).unwrap(), 0);
        assert_eq!(values(&found), values(&expected.unwrap()));
        let wide = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
        let error = queue.nearest(&wide).unwrap_err().to_string();
        assert!(
            error.starts_with("key queue: expected shape [1, 2], found [1, 3]"),
            "{error}"
        );
    }

    #[test]
    fn pushing_before_the_backward_pass_changes_no_gradient() {
        let mut rng = stream(3, "queue", 0);
        let mut random = |size| KeyQueue::random(size, 4, &mut rng, &Device::Cpu).unwrap();
        let (mut queue, keys) = (random(8), random(3));
        let queries = Var::from_tensor(random(3).keys()).unwrap();
        let gradient = |push: bool, queue: &mut KeyQueue| {
            let loss = info_nce_loss(&queries, keys.keys(), queue.keys(), 0.2).unwrap();
            if push {
                queue.push(keys.keys()).unwrap();
            }
            values(loss.backward().unwrap().get(&queries).unwrap())
        };
        let plain = gradient(false, &mut queue);
        assert_eq!(gradient(true, &mut queue), plain);
        assert_ne!(gradient(false, &mut queue), plain);
    }
}
