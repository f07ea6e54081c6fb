//! The kernels for NVIDIA GPUs ([`macula_models::ops::cuda`]), which move all weights of a network in one launch. There is none for
//! SGD, which is composed.

use candle_core::{Device, Result, Tensor};
use macula_models::ops::cuda::optimizer::{self, Clip, Tables};
use macula_models::ops::cuda::{augment, targets};

use super::{AdamwUpdate, AveragedWeight, Clipping, CropKernel, Kernels, composed};

pub(super) struct Cuda;

impl Kernels for Cuda {
    fn adamw(&self, tables: &mut Tables, updates: Vec<AdamwUpdate>) -> Result<()> {
        adamw(tables, &updates, None)
    }

    fn average(&self, pairs: &[(AveragedWeight, &Tensor)]) -> Result<()> {
        let updates: Vec<optimizer::AdamwUpdate> = pairs
            .iter()
            .map(|(average, weights)| optimizer::AdamwUpdate {
                weights,
                moved: None,
                average: Some(averaged(average)),
                group: 0,
            })
            .collect();
        optimizer::adamw(&mut Tables::default(), &updates, None)
    }

    fn sums_of_squares(&self, groups: &[Vec<&Tensor>]) -> Result<Vec<f64>> {
        let Some(first) = groups.iter().flatten().next() else {
            return Ok(vec![0.; groups.len()]);
        };
        Clipping::sums_of_squares(self, &mut Tables::default(), groups, first.device())?.to_vec1()
    }

    fn centred_softmax(&self, logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
        match logits.dim(0)? {
            0 => composed::centred_softmax(logits, centre, inverse),
            _ => targets::centred_softmax(logits, centre, inverse),
        }
    }

    fn exponentials(&self, logits: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
        targets::exponentials(logits, inverse)
    }

    fn weighted_sums(&self, exponentials: &Tensor, of_row: &Tensor) -> Result<Tensor> {
        targets::weighted_sums(exponentials, of_row)
    }

    fn row_scales(&self, exponentials: &Tensor, of_prototype: &Tensor) -> Result<Tensor> {
        targets::row_scales(exponentials, of_prototype)
    }

    /// In their place.
    fn scaled(&self, exponentials: Tensor, of_prototype: &Tensor) -> Result<Tensor> {
        targets::scale(&exponentials, of_prototype)?;
        Ok(exponentials)
    }

    fn crops(&self) -> Option<CropKernel> {
        Some(augment::crops)
    }

    fn clipping(&self) -> Option<&dyn Clipping> {
        Some(self)
    }
}

impl Clipping for Cuda {
    fn sums_of_squares(
        &self,
        tables: &mut Tables,
        groups: &[Vec<&Tensor>],
        device: &Device,
    ) -> Result<Tensor> {
        let contiguous = |group: &Vec<&Tensor>| group.iter().map(|tensor| tensor.contiguous()).collect();
        let groups: Vec<Vec<Tensor>> = groups.iter().map(contiguous).collect::<Result<_>>()?;
        let groups: Vec<Vec<&Tensor>> = groups.iter().map(|group| group.iter().collect()).collect();
        optimizer::sums_of_squares(tables, &groups, device)
    }

    fn adamw(&self, tables: &mut Tables, updates: Vec<AdamwUpdate>, clip: &Clip) -> Result<()> {
        adamw(tables, &updates, Some(clip))
    }
}

fn adamw(tables: &mut Tables, updates: &[AdamwUpdate], clip: Option<&Clip>) -> Result<()> {
    let updates: Vec<optimizer::AdamwUpdate> = updates
        .iter()
        .map(|update| optimizer::AdamwUpdate {
            weights: update.weights,
            moved: update.moved.as_ref().map(|moved| optimizer::Moved {
                first: moved.first,
                second: moved.second,
                gradient: &moved.gradient,
                factors: moved.factors,
            }),
            average: update.average.as_ref().map(averaged),
            group: update.group,
        })
        .collect();
    optimizer::adamw(tables, &updates, clip)
}

fn averaged<'a>(average: &AveragedWeight<'a>) -> optimizer::AveragedWeight<'a> {
    optimizer::AveragedWeight {
        weights: average.weights,
        keep: average.keep,
        take: average.take,
    }
}
