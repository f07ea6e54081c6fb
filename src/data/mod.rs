//! From a name to network input: where images come from ([`source`]), how a file becomes pixels ([`decode`]), and how
//! pixels become the tensor a network reads ([`resize`], [`transform`], several images at once in [`batch`]), masks and depths staying as stored ([`samples`]);
//! for training, how they are varied first ([`augment`]), masked ([`mask`]) and put together into batches ahead of the steps
//! ([`loader`]); for tests of robustness, how they are corrupted ([`corrupt`]). Images that are no pictures are [`bands`]. Everything here is exact: the same file gives
//! the same tensor in training's evaluation, in extraction and in the check of an export, and that tensor is the one Pillow
//! and torchvision would give. Nothing here knows of networks or devices, and only the loader knows of threads.

pub mod augment;
pub mod bands;
pub(crate) mod batch;
pub(crate) mod corrupt;
pub mod decode;
pub(crate) mod image;
pub(crate) mod loader;
pub(crate) mod mask;
pub(crate) mod resize;
pub mod samples;
pub mod source;
pub(crate) mod transform;

pub use bands::{BandImage, Bands};
pub use batch::{BatchReader, ImageBatch};
pub use decode::{DecodeError, DecodeOptions, SampleRange, decode};
pub use image::{Image, ImageView, RgbImage};
pub use resize::{Interpolation, Window, resize};
pub use source::{Columns, Record, RowError, Source, SourceIdentity, open, open_shuffled};
pub use transform::Preprocess;

#[cfg(test)]
mod tests;
