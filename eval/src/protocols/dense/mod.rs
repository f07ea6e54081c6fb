//! Linear evaluation of patch features, one value or class a pixel: segmentation ([`segment`]) and depth ([`depth`]) share
//! everything but their loss. A window is what the network sees at once: the features of windows ([`PatchFeatures`]) are
//! standardised, a linear layer gives each patch its logits ([`head`]), and those are resized to pixels ([`Bilinear`]), on
//! which loss and metric are taken. The windows of a test image meet on a [`Canvas`]. Training holds the features of all
//! its windows; test images come one at a time, so that a test set may be of any size.
//!
//! What differs from the reference, which reads images in every step: features are extracted once, without augmentation;
//! batch norm takes the statistics of all training patches at once, and its affine part is left to the linear layer that
//! follows; the learning rate is chosen on held-out training images.

mod canvas;
pub mod depth;
mod features;
mod head;
mod learning_rate;
pub mod segment;
mod upsample;

pub use canvas::Canvas;
pub use features::PatchFeatures;
pub use learning_rate::Trial;
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
