//! Optimizer state that ranks divide among them (ZeRO stage 1; Rajbhandari et al. 2020). Every trained weight has an owner, which alone
//! keeps its moments, moves it and tells the others its new values. Gradients have been averaged before, and every rank takes the
//! teacher's average after, so that weights, losses and teacher are to the bit those of ranks that each keep everything.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use macula_models::weights::Layout;
use serde::{Deserialize, Serialize};

use super::exchange::{BUCKET, first_bucket};
use super::optimizer::{OptimizerState, Parameter};
use crate::cluster::Ranks;
use crate::{Error, Result};

/// Which rank owns each trained weight.
pub(super) struct Shards {
    owners: BTreeMap<String, usize>,
}

impl Shards {
    /// Divides `parameters` among `ranks`, about as many values for each: the largest first, each to a rank that has least.
    pub(super) fn new(parameters: &[Parameter], ranks: usize) -> Self {
        let size = |Parameter { name, var, .. }: &Parameter| (Reverse(var.elem_count()), name.clone());
        let mut sizes: Vec<(Reverse<usize>, String)> = parameters.iter().map(size).collect();
        sizes.sort_unstable();
        let mut owned = vec![0; ranks];
        let mut owners = BTreeMap::new();
        for (Reverse(size), name) in sizes {
            let least = (0..ranks).min_by_key(|&rank| owned[rank]).unwrap_or(0);
            owned[least] += size;
            owners.insert(name, least);
        }
        Self { owners }
    }

    /// Whether `rank` owns the weight `name`.
    pub(super) fn owns(&self, rank: usize, name: &str) -> bool {
        self.owners.get(name) == Some(&rank)
    }

    /// Brings the new values of those `parameters` that have a gradient, the same ones on every rank, from their owners to all.
    ///
    /// # Errors
    /// Ranks that cannot reach each other, failures of candle.
    pub(super) fn spread(
        &self,
        ranks: &dyn Ranks,
        parameters: &[Parameter],
        gradients: &GradStore,
    ) -> Result<()> {
        for owner in 0..ranks.size() {
            let moved = parameters
                .iter()
                .filter(|parameter| self.owns(owner, &parameter.name))
                .filter(|parameter| gradients.get(&parameter.var).is_some());
            let moved: Vec<&Var> = moved.map(|parameter| &parameter.var).collect();
            let mut rest = moved.as_slice();
            while !rest.is_empty() {
                let (bucket, after) = rest.split_at(first_bucket(rest, BUCKET, |weight| weight.elem_count()));
                tell(ranks, owner, bucket)?;
                rest = after;
            }
        }
        Ok(())
    }
}

/// Puts the values that `owner` has of `weights` in their place on the other ranks.
fn tell(ranks: &dyn Ranks, owner: usize, weights: &[&Var]) -> Result<()> {
    let mut bytes = Vec::new();
    if ranks.rank() == owner {
        for weight in weights {
            push(&mut bytes, &weight.as_detached_tensor())?;
        }
    }
    ranks.broadcast(&mut bytes, owner)?;
    if ranks.rank() == owner {
        return Ok(());
    }
    let mut rest = bytes.as_slice();
    for weight in weights {
        let Some((own, after)) = rest.split_at_checked(4 * weight.elem_count()) else {
            let values: usize = weights.iter().map(|weight| weight.elem_count()).sum();
            let reason = format!("expected {values} new values, found {}", bytes.len() / 4);
            return Err(Error::failed(format!("rank {owner}"), reason));
        };
        weight.set(&tensor(own, weight.dims(), weight.device())?)?;
        rest = after;
    }
    Ok(())
}

/// Adds the values of a tensor of f32 to `bytes`.
fn push(bytes: &mut Vec<u8>, tensor: &Tensor) -> Result<()> {
    bytes.reserve(4 * tensor.elem_count());
    for value in tensor.flatten_all()?.to_vec1::<f32>()? {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

/// The tensor whose values [`push`] has turned into `bytes`.
fn tensor(bytes: &[u8], shape: &[usize], device: &Device) -> Result<Tensor> {
    let words = bytes.as_chunks::<4>().0;
    let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    Tensor::from_vec(values, shape, device).map_err(Error::from)
}

/// The optimizer's state as the ranks keep it together, a part on each. Rank 0 reads it for a checkpoint, a tensor at a time.
pub(super) struct Parts {
    ranks: Arc<dyn Ranks>,
    /// What rank 0 has not itself, by name.
    elsewhere: BTreeMap<String, Part>,
    steps: BTreeMap<String, u64>,
}

struct Part {
    owner: usize,
    shape: Vec<usize>,
}

/// What a rank has.
#[derive(Serialize, Deserialize)]
struct Inventory {
    shapes: BTreeMap<String, Vec<usize>>,
    steps: BTreeMap<String, u64>,
}

impl Parts {
    /// Learns what each of `ranks` has; `own` is this rank's part. All of them come here.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    pub(super) fn new(ranks: &Arc<dyn Ranks>, own: &OptimizerState) -> Result<Self> {
        let shape = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.dims().to_vec());
        let own = Inventory {
            shapes: own.tensors.iter().map(shape).collect(),
            steps: own.steps.clone(),
        };
        let own = serde_json::to_vec(&own).map_err(|error| Error::failed("ranks", error.to_string()))?;
        let (mut elsewhere, mut steps) = (BTreeMap::new(), BTreeMap::new());
        for (owner, bytes) in ranks.gather_bytes(&own)?.iter().enumerate() {
            let has: Inventory = serde_json::from_slice(bytes)
                .map_err(|error| Error::failed(format!("rank {owner}"), error.to_string()))?;
            steps.extend(has.steps);
            if owner > 0 {
                let part = |(name, shape)| (name, Part { owner, shape });
                elsewhere.extend(has.shapes.into_iter().map(part));
            }
        }
        let ranks = Arc::clone(ranks);
        Ok(Self {
            ranks,
            elsewhere,
            steps,
        })
    }

    /// The steps of all parameters.
    pub(super) fn steps(&self) -> &BTreeMap<String, u64> {
        &self.steps
    }

    /// Names and layouts of what rank 0 has to ask for.
    pub(super) fn elsewhere(&self) -> impl Iterator<Item = (&String, Layout)> {
        self.elsewhere.iter().map(|(name, part)| {
            let layout = Layout {
                dtype: DType::F32,
                shape: part.shape.clone(),
            };
            (name, layout)
        })
    }

    /// Asks for a tensor, on rank 0, while the others [answer](Self::answer).
    ///
    /// # Errors
    /// A name that no rank has, ranks that cannot reach each other.
    pub(super) fn ask(&self, name: &str) -> Result<Tensor> {
        let part = self.part(name)?;
        self.ranks.broadcast(&mut name.as_bytes().to_vec(), 0)?;
        let mut bytes = Vec::new();
        self.ranks.broadcast(&mut bytes, part.owner)?;
        tensor(&bytes, &part.shape, &Device::Cpu)
    }

    /// Tells the others, on rank 0, that nothing more is asked.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    pub(super) fn end(&self) -> Result<()> {
        self.ranks.broadcast(&mut Vec::new(), 0)
    }

    /// Gives of `own` what rank 0 asks for, until it has everything.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) fn answer(&self, own: &OptimizerState) -> Result<()> {
        loop {
            let mut name = Vec::new();
            self.ranks.broadcast(&mut name, 0)?;
            if name.is_empty() {
                return Ok(());
            }
            let name = String::from_utf8_lossy(&name);
            let part = self.part(&name)?;
            let mut bytes = Vec::new();
            if part.owner == self.ranks.rank() {
                let asked = own.tensors.get(&*name).ok_or_else(|| nobody_has(&name))?;
                push(&mut bytes, asked)?;
            }
            self.ranks.broadcast(&mut bytes, part.owner)?;
        }
    }

    fn part(&self, name: &str) -> Result<&Part> {
        self.elsewhere.get(name).ok_or_else(|| nobody_has(name))
    }
}

fn nobody_has(name: &str) -> Error {
    Error::failed(
        format!("optimizer state {name}"),
        "expected it on one of the ranks, found none",
    )
}

#[cfg(test)]
#[path = "sharding_tests.rs"]
mod tests;
