//! What an evaluation leaves in its folder, and how it is read again: `stored` finds and reads results (`result.json`),
//! `predictions` keeps what was predicted for each test row, `compare` reads the predictions of two classifiers and compares them row
//! by row. Nothing here computes a feature or a score of its own.

mod compare;
mod predictions;
mod stored;

pub use compare::{Paired, compare, paired};
pub use predictions::{PAIRS_FILE, PREDICTIONS_FILE, per_class_result, save_predictions};
pub use stored::{RESULT_FILE, StoredResult, read_all};
