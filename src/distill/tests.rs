//! Whole steps of every distillation on small networks, from teachers of every kind.

mod helpers;
mod steps;
mod teachers;
