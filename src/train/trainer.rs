//! One optimizer step: objective, gradients, clipping, update, teacher. Everything that a run carries from step to step
//! is in here, and nothing else is: files, clocks and signals are the run's.

use std::collections::{BTreeMap, HashSet};
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, TensorId, Var};
use macula_models::ops::{DirectGradients, gains_from};
use macula_models::weights::Tensors;

use super::clock::Clock;
use super::config::{Schedules, StepValues, TrainConfig};
use super::distillation::FrozenTargets;
use super::ema::NamedVars;
use super::exchange::{self, Gradient, Terms};
use super::feed::{self, MicroBatch};
use super::kernels::{Clip, Tables};
use super::method::{Method, StepLoss};
use super::network::{Network, NetworkConfig, is_backbone, part_of};
use super::optimizer::{
    Average, Optimizer, OptimizerState, Parameter, clip_scale, gradient_norms, norms_of, squares_on_device,
};
use super::param_groups::ParamGroupRules;
use super::sharding::{Parts, Shards};
use crate::cluster::{self, OneRank, Ranks};
use crate::device::{Dtype, set_products};
use crate::{Error, Result};

/// A run's networks, optimizer and place in its schedules.
pub struct Trainer {
    config: TrainConfig,
    schedules: Schedules,
    method: Method,
    optimizer: Optimizer,
    /// The teacher's side of the trained weights.
    averaged: NamedVars,
    /// What a GPU keeps from step to step for the norms of gradients.
    tables: Tables,
    clock: Clock,
    step: u64,
    /// The processes that share every step.
    ranks: Arc<dyn Ranks>,
    /// Whether gradients are sent while the backward pass goes on.
    sends_early: bool,
    /// Where ranks divide the optimizer's state: it then has this one's part.
    shards: Option<Shards>,
}

/// What a step did, the same on every rank but for times and targets.
#[derive(Debug)]
pub struct StepReport {
    /// The step's number, from 0.
    pub step: u64,
    /// Sum of the terms.
    pub loss: f64,
    /// The terms by name, weighted.
    pub terms: BTreeMap<String, f64>,
    /// Gradient norm of each sub-module before clipping.
    pub grad_norms: BTreeMap<String, f64>,
    /// The scheduled values.
    pub values: StepValues,
    /// The teacher's distributions for class tokens [2 B, K] of the step's last micro-batch.
    pub cls_targets: Option<Tensor>,
    /// Seconds of each part of the step.
    pub seconds: StepSeconds,
}

/// Where the time of a step went, in seconds; on a GPU that of asking for it, but for [`Trainer::time_parts`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepSeconds {
    /// The teacher's passes and its targets.
    pub teacher: f64,
    /// The student's passes and the losses.
    pub student: f64,
    /// Gradients.
    pub backward: f64,
    /// Clipping, the weights' update and the teacher's.
    pub update: f64,
    /// Gradients and terms on their way between ranks, and waiting for the slowest of them.
    pub exchange: f64,
}

impl StepSeconds {
    /// Adds those of another step.
    pub fn add(&mut self, other: &Self) {
        self.teacher += other.teacher;
        self.student += other.student;
        self.backward += other.backward;
        self.update += other.update;
        self.exchange += other.exchange;
    }
}

impl StepReport {
    /// The norm of the whole gradient before clipping.
    pub fn grad_norm(&self) -> f64 {
        let squares = self.grad_norms.values().map(|norm| norm * norm);
        squares.sum::<f64>().sqrt()
    }
}

/// What a checkpoint keeps of a trainer.
#[derive(Debug, Clone, Default)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// The student's weights by full name.
    pub student: Tensors,
    /// The teacher's.
    pub teacher: Tensors,
    /// The optimizer's.
    pub optimizer: OptimizerState,
    /// The objective's memory: `cls_centre`, `patch_centre`, `queue`, the weights of an earlier network.
    pub memory: Tensors,
}

impl Trainer {
    /// A trainer at step 0, student and teacher alike.
    ///
    /// # Errors
    /// A configuration that contradicts itself, weights that are not those of its networks.
    pub fn new(config: &TrainConfig, weights: &Tensors, device: &Device) -> Result<Self> {
        Self::with_teacher(config, weights, weights, device)
    }

    /// A trainer at step 0 whose teacher has other weights than its student.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_teacher(
        config: &TrainConfig,
        student: &Tensors,
        teacher: &Tensors,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        feed::check(config, device)?;
        round_as(config.compute, device)?;
        let method = Method::with_teacher(config, student, teacher, device)?;
        let of_teacher =
            |(name, _): (&String, &Var)| Some((name.clone(), method.teacher.weights().get(name)?.clone()));
        let averaged = method.student.trained().filter_map(of_teacher).collect();
        Ok(Self {
            optimizer: Optimizer::new(&config.optimizer, parameters(config, &method)?, config.seed)?,
            schedules: config.schedules(),
            config: config.clone(),
            method,
            averaged,
            tables: Tables::default(),
            clock: Clock::default(),
            step: 0,
            ranks: Arc::new(OneRank),
            sends_early: false,
            shards: None,
        })
    }

    /// A trainer with the initial weights of `config.seed`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn fresh(config: &TrainConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        let weights = NetworkConfig::new(config)?.initialise(config.seed)?;
        Self::new(config, &weights, device)
    }

    /// Gives a distillation its frozen teacher, which no checkpoint keeps.
    pub fn learn_from(&mut self, frozen: FrozenTargets) {
        self.method.learn_from(frozen);
    }

    /// Shares every step from here on with other ranks, each of which has its own images of the step, and where the settings say so
    /// its own part of the optimizer's state.
    ///
    /// Gradients are sent while the backward pass goes on where every rank has a core to spare for that, beside those of its threads.
    ///
    /// # Errors
    /// A batch that they cannot share, ranks that cannot reach each other.
    pub fn share_with(&mut self, ranks: &Arc<dyn Ranks>) -> Result<()> {
        self.config.check_ranks(ranks.size())?;
        self.method.share_with(Arc::clone(ranks));
        self.ranks = Arc::clone(ranks);
        if self.config.ranks.shard_optimizer && !ranks.is_one() {
            let shards = Shards::new(self.optimizer.parameters(), ranks.size());
            self.optimizer.keep_only(|name| shards.owns(ranks.rank(), name));
            self.shards = Some(shards);
        }
        // Threads of one process share its cores, and what they send each other is there at once.
        let spare = !ranks.is_one_process() && cluster::threads() > rayon::current_num_threads();
        self.send_early(!ranks.is_one() && !ranks.any(!spare)?);
        Ok(())
    }

    /// Whether gradients are sent while the backward pass goes on, the same on all ranks. On a GPU they never are.
    ///
    /// Sums over ranks within the backward pass (KoLeo, batch norm) do not meet them on the way: they are in heads and losses, and a
    /// block's gradient is whole once the last of the networks' passes has gone back through it, which is behind all of these.
    pub(crate) fn send_early(&mut self, early: bool) {
        self.sends_early = early && self.method.device().is_cpu();
    }

    /// From here on waits for the device at the end of every part of a step, so that [`StepSeconds`] are those of the parts and not of
    /// asking for them.
    pub fn time_parts(&mut self) {
        self.clock = Clock::apart(self.method.device());
        self.method.set_clock(self.clock.clone());
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Student, teacher and the objective's memory.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// As [`Self::method`], for a look at one micro-batch.
    #[cfg(test)]
    pub(crate) fn method_mut(&mut self) -> &mut Method {
        &mut self.method
    }

    /// The configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// One step on its micro-batches, each a batch of the loader or of a feed.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss or a gradient is: the weights are then those of the step before. Failures of
    /// candle.
    pub fn advance(&mut self, micro_batches: &[impl MicroBatch]) -> Result<StepReport> {
        // On a thread of the pool: from outside of it every parallel loop would put this thread to sleep and wake it again.
        rayon::scope(|_| self.step_on(micro_batches))
    }

    fn step_on(&mut self, micro_batches: &[impl MicroBatch]) -> Result<StepReport> {
        let values = self.schedules.at(self.step);
        let mut report = StepReport {
            step: self.step,
            loss: 0.,
            terms: BTreeMap::new(),
            grad_norms: BTreeMap::new(),
            values,
            cls_targets: None,
            seconds: StepSeconds::default(),
        };
        self.method.begin_step(self.step)?;
        let share = 1. / micro_batches.len().max(1) as f64;
        // Sharded, it needs the norms on the host: nothing may be told of weights that must not move.
        let clips_on_device = self.shards.is_none() && self.optimizer.clipping_on_device().is_some();
        let mut unread = Vec::new();
        let mut terms = Terms::default();
        let mut gradients: Option<GradStore> = None;
        let mut early = Early::default();
        for (place, batch) in micro_batches.iter().enumerate() {
            let number = self.step * self.config.accumulate as u64 + place as u64;
            let start = Instant::now();
            let pass = DirectGradients::default();
            let loss = pass.forward(|| self.method.loss(batch, number, &values))?;
            let share = share * self.weight(batch.batch().size, number)?;
            if !self.ranks.is_one() {
                for (name, term) in &loss.terms {
                    terms.add(name, value_of(term)?, share);
                }
            } else if clips_on_device {
                unread.extend(loss.terms.iter().cloned());
            } else {
                report.add(&loss, share)?;
            }
            report.seconds.teacher += loss.teacher_seconds;
            report.seconds.student += self.clock.since(start)? - loss.teacher_seconds;
            let start = Instant::now();
            let total = (&loss.total * share)?;
            let new = match self.sends_early && place + 1 == micro_batches.len() {
                true => early.backward(
                    (self.ranks.as_ref(), self.config.ranks.wire),
                    pass,
                    &total,
                    gradients.as_ref(),
                )?,
                false => pass.backward(&total)?,
            };
            report.seconds.backward += self.clock.since(start)?;
            gradients = Some(match gradients {
                None => new,
                Some(sum) => self.added(sum, new)?,
            });
            report.cls_targets = loss.cls_targets;
        }
        let Some(mut gradients) = gradients else {
            return Err(Error::failed("step", "expected at least one batch, found none"));
        };
        if !self.ranks.is_one() {
            let start = Instant::now();
            self.exchange(&terms, early, &mut gradients, &mut report)?;
            report.seconds.exchange = self.clock.since(start)?;
        }
        let start = Instant::now();
        let mut waited = 0.;
        if clips_on_device {
            self.update_on_device(&gradients, &unread, share, &mut report)?;
        } else {
            report.grad_norms = gradient_norms(&modules(&self.method.student), &gradients)?;
            waited = self.update(&mut gradients, &report)?;
        }
        report.seconds.update = self.clock.since(start)? - waited;
        report.seconds.exchange += waited;
        self.step += 1;
        Ok(report)
    }

    /// How much this rank's mean over `images` counts in the mean over ranks of micro-batch `number`: 1 where all have as many.
    fn weight(&self, images: usize, number: u64) -> Result<f64> {
        if self.ranks.is_one() {
            return Ok(1.);
        }
        let whole = self.config.batch_plan()?.size(number);
        Ok((images * self.ranks.size()) as f64 / whole as f64)
    }

    /// Brings the terms of all ranks into the report and the mean of their gradients into `gradients`.
    fn exchange(
        &self,
        terms: &Terms,
        early: Early,
        gradients: &mut GradStore,
        report: &mut StepReport,
    ) -> Result<()> {
        let trained = self.method.student.trained().map(|(_, var)| var);
        let trained: Vec<&Var> = trained.filter(|var| !early.has(var)).collect();
        let own: Vec<bool> = trained.iter().map(|var| gradients.get(var).is_some()).collect();
        let seen = exchange::compare(self.ranks.as_ref(), terms, &own)?;
        for (name, term) in &seen.terms {
            report.add_term(name, *term, 1.)?;
        }
        let moved = trained.iter().zip(&seen.has_gradient).filter(|(_, has)| **has);
        let moved: Vec<&Var> = moved.map(|(var, _)| *var).collect();
        exchange::average(self.ranks.as_ref(), self.config.ranks.wire, &moved, gradients)?;
        for (weight, gradient) in early.averaged {
            gradients.insert(&weight, gradient);
        }
        Ok(())
    }

    /// The sum of two micro-batches' gradients of the trained weights.
    fn added(&self, mut sum: GradStore, new: GradStore) -> Result<GradStore> {
        for (_, var) in self.method.student.trained() {
            let Some(gradient) = new.get(var) else { continue };
            let total = match sum.get(var) {
                Some(before) => (before + gradient)?,
                None => gradient.clone(),
            };
            sum.insert(var, total);
        }
        Ok(sum)
    }

    /// Clips each sub-module by itself, moves the weights and lets the teacher follow. Gives the seconds in which it waited for weights
    /// of other ranks.
    fn update(&mut self, gradients: &mut GradStore, report: &StepReport) -> Result<f64> {
        let max_norm = self.config.optimizer.max_norm();
        let scale = |name: &str| {
            let norm = report.grad_norms.get(part_of(name).0);
            norm.map_or(1., |&norm| clip_scale(norm, max_norm))
        };
        let teacher = Average {
            teacher: &self.averaged,
            momentum: report.values.momentum,
        };
        let rates = report.values.rates();
        let Some(shards) = &self.shards else {
            self.optimizer.step(gradients, &rates, scale, Some(teacher))?;
            return Ok(0.);
        };
        self.optimizer.step(gradients, &rates, scale, None)?;
        let start = Instant::now();
        shards.spread(self.ranks.as_ref(), self.optimizer.parameters(), gradients)?;
        let waited = self.clock.since(start)?;
        teacher.follow(self.optimizer.parameters())?;
        Ok(waited)
    }

    /// [`Self::update`] and the numbers of the report, with the step's one wait for the device behind everything it has to do: it
    /// clips by itself, and moves nothing where a term or a norm is not finite.
    fn update_on_device(
        &mut self,
        gradients: &GradStore,
        unread: &[(&'static str, Tensor)],
        share: f64,
        report: &mut StepReport,
    ) -> Result<()> {
        let Some((adamw, clipping)) = self.optimizer.clipping_on_device() else {
            return Err(Error::failed(
                "step",
                "expected an optimizer that clips on its device",
            ));
        };
        let modules = modules(&self.method.student);
        let device = self.method.device();
        let squares = squares_on_device(clipping, &mut self.tables, &modules, gradients, device)?;
        let gathered = || {
            if unread.is_empty() {
                return squares.to_dtype(DType::F64);
            }
            let terms: Vec<Tensor> = unread.iter().map(|(_, term)| term.detach()).collect();
            let terms = Tensor::stack(&terms, 0)?.to_dtype(DType::F64)?;
            Tensor::cat(&[&terms, &squares], 0)
        };
        let checked = gathered()?;
        let clip = Clip {
            squares: &squares,
            max_norm: self.config.optimizer.max_norm(),
            checked: &checked,
        };
        let group_of = |name: &str| {
            let before = modules.keys().take_while(|&&module| module != part_of(name).0);
            before.count() as u32
        };
        let teacher = Average {
            teacher: &self.averaged,
            momentum: report.values.momentum,
        };
        let rates = report.values.rates();
        adamw.step_clipped((clipping, &clip), gradients, &rates, group_of, teacher)?;
        let scalars: Vec<f64> = checked.to_vec1()?;
        let (terms, squares) = scalars.split_at(unread.len());
        for ((name, _), term) in unread.iter().zip(terms) {
            report.add_term(name, *term, share)?;
        }
        report.grad_norms = norms_of(&modules, squares)?;
        Ok(())
    }

    /// The state for a checkpoint; of the optimizer's this rank's part, where ranks divide it. Tensors are views: they change with
    /// the next step.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn state(&self) -> Result<TrainerState> {
        Ok(TrainerState {
            step: self.step,
            student: self.method.student.tensors(),
            teacher: self.method.teacher.tensors(),
            optimizer: self.optimizer.state(),
            memory: self.method.memory.tensors()?,
        })
    }

    /// How all ranks together keep the optimizer's state, where they divide it. `own` is this rank's part. All of them come here.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    pub(super) fn parts(&self, own: &OptimizerState) -> Result<Option<Parts>> {
        let shards = self.shards.as_ref();
        shards.map(|_| Parts::new(&self.ranks, own)).transpose()
    }

    /// Bytes of the optimizer's state that this rank keeps.
    pub(super) fn optimizer_bytes(&self) -> u64 {
        self.optimizer.state_bytes()
    }

    /// A trainer that goes on from `state`.
    ///
    /// # Errors
    /// A tensor that is missing, spare or misshapen.
    pub fn resume(config: &TrainConfig, state: &TrainerState, device: &Device) -> Result<Self> {
        let alone: Arc<dyn Ranks> = Arc::new(OneRank);
        Self::resume_on(config, state, device, &alone)
    }

    /// [`Self::resume`] as one of `ranks`, with which it [shares](Self::share_with) what follows; it copies what it keeps of the
    /// optimizer's state and no more.
    ///
    /// # Errors
    /// As both.
    pub fn resume_on(
        config: &TrainConfig,
        state: &TrainerState,
        device: &Device,
        ranks: &Arc<dyn Ranks>,
    ) -> Result<Self> {
        let mut trainer = Self::with_teacher(config, &state.student, &state.teacher, device)?;
        trainer.share_with(ranks)?;
        trainer.optimizer.load_state(&state.optimizer)?;
        trainer.method.memory.load(&state.memory)?;
        trainer.step = state.step;
        Ok(trainer)
    }
}

/// Gradients that were averaged while the backward pass went on.
#[derive(Default)]
struct Early {
    /// The weights that were sent, whether or not any rank had a gradient for them.
    weights: HashSet<TensorId>,
    averaged: Vec<Gradient>,
}

impl Early {
    fn has(&self, weight: &Tensor) -> bool {
        self.weights.contains(&weight.id())
    }

    /// The backward pass of a step's last micro-batch, whose early gradients another thread sends; the store has the others. `earlier`
    /// has those of the micro-batches before.
    fn backward(
        &mut self,
        (ranks, wire): (&dyn Ranks, Dtype),
        pass: DirectGradients,
        total: &Tensor,
        earlier: Option<&GradStore>,
    ) -> Result<GradStore> {
        let weights = pass.early();
        self.weights = weights.iter().map(Tensor::id).collect();
        let (tell, told) = mpsc::channel();
        let all = weights.as_slice();
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || exchange::average_early(ranks, wire, all, earlier, &told));
            let rest = || {
                let mut store = pass.backward_telling(total, tell.clone())?;
                for weight in &weights {
                    if let Some(gradient) = store.remove(weight) {
                        // Not in all of its uses, and so not told before. Who has stopped listening will say why.
                        let _ = tell.send((weight.clone(), gradient));
                    }
                }
                Ok::<_, Error>(store)
            };
            let store = rest();
            drop(tell);
            let averaged = sending.join().unwrap_or_else(|panic| resume_unwind(panic));
            self.averaged = averaged?;
            store
        })
    }
}

impl StepReport {
    fn add(&mut self, loss: &StepLoss, share: f64) -> Result<()> {
        for (name, term) in &loss.terms {
            self.add_term(name, value_of(term)?, share)?;
        }
        Ok(())
    }

    fn add_term(&mut self, name: &str, term: f64, share: f64) -> Result<()> {
        if !term.is_finite() {
            return Err(Error::NotFinite {
                what: format!("loss term {name}"),
                value: term,
            });
        }
        *self.terms.entry(name.to_owned()).or_default() += term * share;
        self.loss += term * share;
        Ok(())
    }
}

/// The value of a term, which is a scalar of f32.
fn value_of(term: &Tensor) -> Result<f64> {
    term.to_scalar::<f32>().map(f64::from).map_err(Error::from)
}

/// The trained weights of each sub-module.
fn modules(student: &Network) -> BTreeMap<&str, Vec<&Var>> {
    let mut modules: BTreeMap<&str, Vec<&Var>> = BTreeMap::new();
    for (name, var) in student.trained() {
        modules.entry(part_of(name).0).or_default().push(var);
    }
    modules
}

/// Lets a GPU round as coarsely as `compute` where products are of f32 matrices, such as those with prototypes: they then keep
/// 10 bits of their factors (TF32). Says so where `compute` is not the faster one.
///
/// # Errors
/// A GPU that does not answer.
fn round_as(compute: Dtype, device: &Device) -> Result<()> {
    if compute == Dtype::Bf16 && !gains_from(compute.dtype(), device) {
        tracing::warn!(
            "compute=bf16: this processor has no instructions for it (avx512_bf16); f32 is faster here"
        );
    }
    set_products(device, compute.dtype()).map_err(Error::from)
}

/// The trained weights with their learning-rate and weight-decay rules.
fn parameters(config: &TrainConfig, method: &Method) -> Result<Vec<Parameter>> {
    let rules = ParamGroupRules {
        depth: config.backbone.depth,
        layer_decay: config.optimizer.layer_decay,
        patch_embed_multiplier: config.optimizer.patch_embed_multiplier,
    };
    let parameter = |(name, var): (&String, &Var)| {
        let (_, own) = part_of(name);
        Ok(Parameter {
            name: name.clone(),
            var: var.clone(),
            group: match is_backbone(name) {
                true => rules.backbone(own)?,
                false => ParamGroupRules::head(own),
            },
        })
    };
    method.student.trained().map(parameter).collect()
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
pub(crate) mod tests;
