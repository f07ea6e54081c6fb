//! One file an evaluation protocol. Each takes matrix views and labels, never a path, and gives a plain result that
//! turns into an [`crate::table::EvalResult`].

pub mod knn;
pub mod linear_probe;
pub mod logistic;
pub mod scores;
