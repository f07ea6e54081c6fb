//! Numbers that sum up predictions: each takes predictions or ranks and the truth and gives fractions from 0 to 1.

pub mod classification;
