//! The evaluation protocols, one concept a file: each takes feature matrices and labels, never a path, and gives back
//! the rows of one result table.

mod checks;
pub mod cluster;
pub mod dense;
pub mod knn;
pub mod leak;
pub mod linear_probe;
pub mod logistic;
pub mod predictions;
pub mod retrieval;
pub mod robustness;
pub mod scores;
pub mod svm;
pub mod zero_shot;
