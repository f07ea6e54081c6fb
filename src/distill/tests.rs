//! Whole steps of every distillation on small networks, from teachers of every kind.

mod helpers;
mod ranks;
mod steps;
mod teachers;
