//! Linear evaluation of patch features, one value or class a pixel: segmentation ([`segment`]) and depth ([`depth`]) share
//! everything but their loss. A window is what the network sees at once: the features of windows ([`PatchFeatures`]) give
//! each patch its logits by a linear layer ([`head`]), and those are resized to pixels ([`Bilinear`]), on which loss and
//! metric are taken. The windows of a test image meet on a [`Canvas`]. Training holds the features of all its windows; test
//! images come one at a time, so that a test set may be of any size.
//!
//! [`Protocol::Fast`] standardises the features of both tasks by the statistics of all training patches, trains briefly, and
//! chooses the learning rate on held-out training images. [`Protocol::Paper`] is the reference's: batch norm before the
//! layer of segmentation, nothing before that of depth (its batch norm is commented out there), and its optimizer, schedule
//! and learning rate. In both, features are extracted once and without augmentation, where the reference reads images in
//! every step.

mod adamw;
mod canvas;
pub mod depth;
mod features;
mod head;
mod learning_rate;
mod recipe;
pub mod segment;
mod upsample;

pub use canvas::Canvas;
pub use features::PatchFeatures;
pub use learning_rate::{HeadTraining, Trial};
pub use recipe::Protocol;
pub use upsample::Bilinear;

use crate::{Error, Result};

/// Fails unless there are `windows` of `size` pixels in `pixels` values called `what`, and an image for each.
fn check_windows(
    what: &str,
    pixels: usize,
    image_of: &[usize],
    windows: usize,
    size: (usize, usize),
) -> Result<()> {
    let expected = size.0 * size.1;
    if pixels == windows * expected && image_of.len() == windows {
        return Ok(());
    }
    let found = format!("found {pixels} pixels and {} windows", image_of.len());
    Err(Error::data(
        what,
        format!("expected {windows} windows of {expected} pixels, {found}"),
    ))
}
