//! Pictures of what features know. `pca` colours patches by their principal components, `attention` shows where the class
//! token of a checkpoint looks, `neighbours` what lies beside what, `map` a whole feature folder on a plane. `images` chooses
//! rows and prepares them as the model sees them, `palette` holds colours. Each picture is one PNG, drawn with `crate::draw`.

pub(crate) mod attention;
pub(crate) mod images;
pub(crate) mod map;
pub(crate) mod neighbours;
mod palette;
pub(crate) mod pca;

pub use attention::{AttentionOptions, attention};
pub use images::Choice;
pub use map::{MapMethod, MapOptions, map};
pub use neighbours::{NeighboursOptions, neighbours};
pub use pca::{Foreground, PcaOptions, pca};
