//! Groups of flags that several verbs share, each under its heading in `--help`, and how they resolve. A verb's help lists its own
//! settings, then input, model, preprocessing, output, randomness, machine.

mod dtype;
mod machine;
mod model;
mod preprocess;
mod random;
mod result;
mod source;

use clap::Arg;

pub use dtype::{dtype, one_of};
pub use machine::{ReplicaArgs, RunArgs, ThreadArgs};
pub use model::{CheckpointArgs, ModelRunArgs};
pub use preprocess::{DecodeArgs, PreprocessArgs, colour};
pub use random::{BootstrapArgs, SeedArgs};
pub use result::{JsonArgs, NewArgs, ResultArgs};
pub use source::{ColumnArgs, FeatureColumnArgs, ImagesArgs, TrainTestArgs};

/// The heading of where images, features and labels come from.
pub const INPUT: &str = "Input";
/// The heading of the network and how it is run.
pub const MODEL: &str = "Model";
/// The heading of how files become network input.
pub const PREPROCESSING: &str = "Preprocessing";
/// The heading of what is written and printed.
pub const OUTPUT: &str = "Output";
/// The heading of seeds and resamples.
pub const RANDOMNESS: &str = "Randomness";
/// The heading of devices, threads and libraries.
pub const MACHINE: &str = "Machine";

/// What `--help` shows below the flags of a verb: commands to begin with, one a line.
pub fn examples(commands: &[&str]) -> String {
    format!("Examples:\n  {}", commands.join("\n  "))
}

/// Other words for flags of a group, by their ids, where a verb can say more than the group does: for `mut_args`, which leaves
/// the order of the flags alone.
pub fn reworded(words: &'static [(&'static str, &'static str)]) -> impl Fn(Arg) -> Arg {
    move |arg| match words.iter().find(|(id, _)| arg.get_id() == id) {
        Some((_, help)) => arg.help(*help),
        None => arg,
    }
}

/// `arg` with `text` behind its help: for a default that the library knows and a literal could only repeat.
pub fn with_default(arg: Arg, text: impl std::fmt::Display) -> Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.help(format!("{help} [default: {text}]"))
}
