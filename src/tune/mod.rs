//! Choosing a recipe and its settings for the images at hand: several candidates are trained for a short while, the better half
//! goes on, until one is left that has had half of the whole time (successive halving, Jamieson and Talwalkar 2016). In this
//! folder belongs what decides which runs are made and which go on; a run itself is `train`'s, in a folder of its own, so that the
//! winner is a run like any other. `space` says what may be varied, `plan` how the time is shared, `judge` what decides, `agreement`
//! compares candidates where there are no labels, `record` says what is kept, `search` runs it.

mod agreement;
mod judge;
mod plan;
mod record;
mod search;
mod space;
#[cfg(test)]
mod tests;

pub use judge::Judge;
pub use record::{RECORD, Record, Settings};
pub use search::{SearchStart, TuneOutcome, TuneRequest, run};
pub use space::Space;
