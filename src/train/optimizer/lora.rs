//! LoRA (Hu et al. 2021) of the backbone: each matrix W [out, in] of its blocks moves by `scale * U D` alone, with U [out, rank] from
//! zeros and D [rank, in] from noise; everything else of the backbone stays. A step has the gradient G of W itself, which gives
//! those of U (`scale * G D^T`) and D (`scale * U^T G`) by the chain rule. So networks, kernels, the teacher's average and checkpoints
//! know nothing of it: the weights they see are merged after every step.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use macula_models::weights::Tensors;
use rand::Rng as _;

use super::{AdamW, AdamWOptions, Average, Moments, Parameter, Rates, copied, found};
use crate::train::network::{MASK_TOKEN, is_backbone};
use crate::train::param_groups::ParamGroup;
use crate::{Error, Result, rng};

/// Prefixes of the names of adapters, and of the start in a checkpoint.
const UP: &str = "up.";
const DOWN: &str = "down.";
const BASE: &str = "base.";

/// How far and how freely the backbone may move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraOptions {
    /// Rank of what is added to each matrix, 1 or more.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f64,
    /// Decides the noise.
    pub seed: u64,
}

/// AdamW over heads, and over the adapters of the backbone.
#[derive(Debug)]
pub struct Lora {
    /// All parameters of the run. It keeps no moments of the backbone, but for the mask token's.
    all: AdamW,
    adapters: AdamW,
    adapted: Vec<Adapted>,
    scale: f64,
}

/// A matrix and what moves it.
#[derive(Debug)]
struct Adapted {
    name: String,
    /// `start + scale * up down`
    weight: Var,
    start: Tensor,
    up: Var,
    down: Var,
}

impl Lora {
    /// Adapters for every matrix of the backbone's blocks among `parameters`.
    ///
    /// # Errors
    /// Constants out of range, names that come twice, a rank as large as a matrix.
    pub fn new(options: AdamWOptions, lora: &LoraOptions, parameters: Vec<Parameter>) -> Result<Self> {
        let (mut adapted, mut adapters) = (Vec::new(), Vec::new());
        for matrix in parameters.iter().filter(|parameter| is_matrix(parameter)) {
            let own = Adapted::new(matrix, lora)?;
            adapters.extend(own.parameters(matrix.group));
            adapted.push(own);
        }
        let mut all = AdamW::new(options, parameters)?;
        all.keep_only(moves_by_itself);
        Ok(Self {
            adapters: AdamW::new(options, adapters)?,
            all,
            adapted,
            scale: lora.scale,
        })
    }

    /// All parameters of the run.
    pub fn parameters(&self) -> &[Parameter] {
        self.all.parameters()
    }

    /// One step, as [`AdamW::step_and_average`].
    ///
    /// # Errors
    /// As there.
    pub fn step(
        &mut self,
        gradients: &mut GradStore,
        rates: &Rates,
        scale: impl Fn(&str) -> f64,
        teacher: Option<Average>,
    ) -> Result<()> {
        if let Some(teacher) = &teacher {
            teacher.check(self.all.parameters())?;
        }
        for adapted in &self.adapted {
            adapted.gradients(self.scale, gradients)?;
        }
        let of_matrix = |name: &str| scale(name.split_once('.').map_or(name, |(_, matrix)| matrix));
        self.adapters
            .step_and_average(gradients, rates, of_matrix, None)?;
        for adapted in &self.adapted {
            adapted.merge(self.scale)?;
        }
        self.all.step_and_average(gradients, rates, scale, teacher)
    }

    /// The moments of the parameters that move by themselves, and of the adapters.
    pub fn moments(&self) -> impl Iterator<Item = (&String, &Moments)> {
        self.all.state().iter().chain(self.adapters.state())
    }

    /// Adapters and starts.
    pub fn tensors(&self) -> Tensors {
        let of = |adapted: &Adapted| {
            let Adapted {
                name,
                start,
                up,
                down,
                ..
            } = adapted;
            [
                (format!("{BASE}{name}"), start.clone()),
                (format!("{UP}{name}"), up.as_tensor().clone()),
                (format!("{DOWN}{name}"), down.as_tensor().clone()),
            ]
        };
        self.adapted.iter().flat_map(of).collect()
    }

    /// Goes on from what [`Self::moments`] and [`Self::tensors`] gave.
    ///
    /// # Errors
    /// A tensor that is missing, spare or misshapen; nothing is changed then.
    pub fn load(&mut self, mut moments: BTreeMap<String, Moments>, tensors: &Tensors) -> Result<()> {
        let mut loaded = Vec::new();
        for Adapted {
            name,
            start,
            up,
            down,
            ..
        } in &self.adapted
        {
            let saved = |prefix: &str, own: &Tensor| {
                let name = format!("{prefix}{name}");
                copied(&name, found(tensors, &name)?, own)
            };
            loaded.push((saved(BASE, start)?, saved(UP, up)?, saved(DOWN, down)?));
        }
        let own = moments.extract_if(.., |name, _| name.starts_with(UP) || name.starts_with(DOWN));
        let own: BTreeMap<String, Moments> = own.collect();
        let before = self.adapters.state().clone();
        self.adapters.load_state(&own)?;
        if let Err(error) = self.all.load_state(&moments) {
            self.adapters.load_state(&before)?;
            return Err(error);
        }
        for (adapted, (start, up, down)) in self.adapted.iter_mut().zip(loaded) {
            adapted.start = start;
            adapted.up.set(&up)?;
            adapted.down.set(&down)?;
        }
        Ok(())
    }
}

/// Whether the parameter `name` learns as it would without adapters.
fn moves_by_itself(name: &str) -> bool {
    !is_backbone(name) || name == MASK_TOKEN
}

/// Whether a parameter is moved by adapters: the matrices of attention and feed-forward.
fn is_matrix(parameter: &Parameter) -> bool {
    is_backbone(&parameter.name) && parameter.name.contains(".blocks.") && parameter.var.rank() == 2
}

impl Adapted {
    fn new(parameter: &Parameter, lora: &LoraOptions) -> Result<Self> {
        let Parameter { name, var, .. } = parameter;
        let (outputs, inputs) = var.dims2()?;
        if lora.rank == 0 || lora.rank >= outputs.min(inputs) {
            let reason = format!(
                "expected 1 to below {}, for {name} is [{outputs}, {inputs}], found {}",
                outputs.min(inputs),
                lora.rank
            );
            return Err(Error::input("optimizer.lora_rank", reason));
        }
        let mut noise = rng::stream(lora.seed, &format!("lora {name}"), 0);
        let reach = 1. / (inputs as f32).sqrt();
        let values: Vec<f32> = (0..lora.rank * inputs)
            .map(|_| noise.random_range(-reach..reach))
            .collect();
        let device = var.device();
        let down = Tensor::from_vec(values, (lora.rank, inputs), &Device::Cpu)?.to_device(device)?;
        Ok(Self {
            name: name.clone(),
            weight: var.clone(),
            start: var.as_tensor().copy()?.detach(),
            up: Var::zeros((outputs, lora.rank), DType::F32, device)?,
            down: Var::from_tensor(&down)?,
        })
    }

    /// The adapters as parameters with the matrix's learning rate. They do not decay: that would be no decay of the matrix.
    fn parameters(&self, group: ParamGroup) -> [Parameter; 2] {
        [(UP, &self.up), (DOWN, &self.down)].map(|(prefix, var)| Parameter {
            name: format!("{prefix}{}", self.name),
            var: var.clone(),
            group: ParamGroup {
                wd_multiplier: 0.,
                ..group
            },
        })
    }

    /// Puts the gradients of the adapters beside that of the matrix.
    fn gradients(&self, scale: f64, gradients: &mut GradStore) -> Result<()> {
        let Some(whole) = gradients.get(&self.weight) else {
            return Ok(());
        };
        let whole = (whole.detach() * scale)?;
        let up = whole.matmul(&self.down.as_tensor().detach().t()?)?; // [out, rank]
        let down = self.up.as_tensor().detach().t()?.matmul(&whole)?; // [rank, in]
        gradients.insert(&self.up, up);
        gradients.insert(&self.down, down);
        Ok(())
    }

    fn merge(&self, scale: f64) -> Result<()> {
        let (up, down) = (self.up.as_tensor().detach(), self.down.as_tensor().detach());
        let moved = (up.matmul(&down)? * scale)?;
        self.weight.set(&(&self.start + moved)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ema::NamedVars;
    use crate::train::param_groups::RateSchedule;
    use crate::train::testing::{assert_close, values};

    const NAME: &str = "backbone.blocks.0.mlp.fc1.weight";
    const GROUP: ParamGroup = ParamGroup {
        lr_multiplier: 0.5,
        wd_multiplier: 1.,
        schedule: RateSchedule::Backbone,
    };
    const RATES: Rates = Rates {
        learning_rate: 1e-1,
        backbone_learning_rate: 2e-2,
        last_layer_learning_rate: 0.,
        weight_decay: 0.1,
    };

    fn matrix(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.7).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn lora() -> Lora {
        let parameter = |name: &str, tensor: Tensor| Parameter {
            name: name.to_owned(),
            var: Var::from_tensor(&tensor).unwrap(),
            group: GROUP,
        };
        let parameters = vec![
            parameter(NAME, matrix(6, 4)),
            parameter("backbone.norm.weight", matrix(1, 4)),
            parameter("dino_head.mlp.0.weight", matrix(3, 4)),
        ];
        let options = LoraOptions {
            rank: 2,
            scale: 3.,
            seed: 7,
        };
        Lora::new(AdamWOptions::default(), &options, parameters).unwrap()
    }

    /// `sum((W - 1)^2)` of all weights.
    fn loss(weights: &[&Tensor]) -> Tensor {
        let terms: Vec<Tensor> = weights
            .iter()
            .map(|w| (*w - 1.).unwrap().sqr().unwrap().sum_all().unwrap())
            .collect();
        Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()
    }

    fn step(lora: &mut Lora, teacher: &NamedVars) {
        let weights: Vec<&Tensor> = lora.parameters().iter().map(|p| p.var.as_tensor()).collect();
        let mut gradients = loss(&weights).backward().unwrap();
        let average = Average {
            teacher,
            momentum: 0.5,
        };
        lora.step(&mut gradients, &RATES, |_| 0.25, Some(average))
            .unwrap();
    }

    fn teacher(lora: &Lora) -> NamedVars {
        let copy = |p: &Parameter| (p.name.clone(), Var::from_tensor(&p.var.copy().unwrap()).unwrap());
        lora.parameters().iter().map(copy).collect()
    }

    /// The same numbers as from AdamW over adapters whose product is in the graph.
    #[test]
    fn adapters_move_as_in_a_graph_that_has_them() {
        let mut lora = lora();
        let teacher = teacher(&lora);
        let Adapted { start, up, down, .. } = &lora.adapted[0];
        let start = start.clone();
        let copies = [(UP, up), (DOWN, down)].map(|(name, var)| Parameter {
            name: name.to_owned(),
            var: Var::from_tensor(&var.copy().unwrap()).unwrap(),
            group: ParamGroup {
                wd_multiplier: 0.,
                ..GROUP
            },
        });
        let mut plain = AdamW::new(AdamWOptions::default(), copies.to_vec()).unwrap();
        let merged = |plain: &AdamW| {
            let [up, down] = [0, 1].map(|i| plain.parameters()[i].var.as_tensor().clone());
            (&start + (up.matmul(&down).unwrap() * 3.).unwrap()).unwrap()
        };
        let mut average = start.clone();
        for number in 0..4 {
            step(&mut lora, &teacher);
            let gradients = loss(&[&merged(&plain)]).backward().unwrap();
            plain
                .step_and_average(&gradients, &RATES, |_| 0.25, None)
                .unwrap();
            let expected = merged(&plain).detach();
            assert_close(
                &format!("step {number}"),
                &lora.adapted[0].weight,
                &expected,
                1e-6,
            );
            average = ((&average + &expected).unwrap() * 0.5).unwrap();
        }
        assert_close("teacher", &teacher[NAME], &average, 1e-6);
        let moved = |name: &str| {
            let own = lora.parameters().iter().find(|p| p.name == name).unwrap();
            let start = matrix(if name.contains("head") { 3 } else { 1 }, 4);
            values(&own.var) != values(&start)
        };
        assert!(moved("dino_head.mlp.0.weight") && !moved("backbone.norm.weight"));
    }

    #[test]
    fn a_state_that_does_not_fit_changes_nothing() {
        let mut other = lora();
        let average = teacher(&other);
        step(&mut other, &average);
        let moments = || -> BTreeMap<String, Moments> {
            let pairs = other.moments();
            pairs
                .map(|(name, moments)| (name.clone(), moments.clone()))
                .collect()
        };
        let mut own = lora();
        let mut refused = |moments, tensors: &Tensors| own.load(moments, tensors).unwrap_err().to_string();
        let mut short = other.tensors();
        short.remove(&format!("{DOWN}{NAME}"));
        assert_eq!(
            refused(moments(), &short),
            format!("optimizer state down.{NAME}: expected it in the checkpoint, found none")
        );
        let mut few = moments();
        few.remove("dino_head.mlp.0.weight");
        assert_eq!(
            refused(few, &other.tensors()),
            "optimizer state dino_head.mlp.0.weight: expected it in the checkpoint, found none"
        );
        assert!(own.adapters.state().values().all(|moments| moments.steps == 0));
        assert!(values(&own.adapted[0].up).iter().all(|&value| value == 0.));
        own.load(moments(), &other.tensors()).unwrap();
        assert_eq!(values(&own.adapted[0].up), values(&other.adapted[0].up));
        // Earlier versions kept moments of what stays.
        let mut spare = moments();
        let head = spare["dino_head.mlp.0.weight"].clone();
        spare.insert("backbone.norm.weight".to_owned(), head);
        own.load(spare, &other.tensors()).unwrap();
        let kept: Vec<&String> = own.moments().map(|(name, _)| name).collect();
        let adapters = [UP, DOWN].map(|prefix| format!("{prefix}{NAME}"));
        assert_eq!(kept.len(), 3);
        assert!(adapters.iter().all(|name| kept.contains(&name)));
    }
}
