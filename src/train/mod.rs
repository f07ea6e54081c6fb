//! What a training step is made of. In this folder belongs everything that turns the outputs of student and teacher
//! into new weights: schedules over iterations, teacher targets and losses, the learning-rate and weight-decay rules of
//! each parameter, optimizers, and the teacher's moving average. The network itself and its differentiable operations
//! are `macula_models`; images, crops and masks are `data`. Losses and targets are plain functions of tensors, they hold no
//! network; whatever carries state from step to step (centre, moments) shows it, so that a checkpoint can keep it.
//! Other processes are reached through `cluster` alone, what a step sends them is in `exchange`, and in `sharding` where they divide the
//! optimizer's state.

pub mod bench;
pub mod checkpoint;
mod clock;
pub mod config;
pub(crate) mod cost;
pub mod distillation;
pub mod ema;
mod exchange;
pub mod feed;
pub(crate) mod identity;
mod kernels;
pub(crate) mod losses;
pub(crate) mod method;
pub(crate) mod network;
pub(crate) mod observe;
pub mod optimizer;
pub(crate) mod param_groups;
pub(crate) mod product_rates;
pub mod recipes;
pub mod replicas;
pub mod run;
pub(crate) mod schedule;
mod sharding;
pub(crate) mod start;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod trainer;
mod wire;
