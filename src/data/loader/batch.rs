//! What a step takes.

use super::CropsOn;
use crate::data::augment::{MultiCropConfig, PlannedImage};
use crate::data::mask::BatchMasks;

/// The images of one step, as G global and L local crops each. Crops lie crop-major: that of sample b and place c has index
/// `c * B + b`, so that the first B are every image's first crop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The step, from 0.
    pub step: u64,
    /// Images B.
    pub size: usize,
    /// Row of the source that each sample came from: `[B]`.
    pub rows: Vec<u64>,
    /// Pass over the source whose crops each sample has, which with its row names them: `[B]`. None for an image that took
    /// another's place: its crops are of that place alone.
    pub views: Vec<Option<u64>>,
    /// Normalised, `[G * B, C, S, S]`. Empty where the step makes the crops.
    pub global: Vec<f32>,
    /// Normalised, `[L * B, C, s, s]`. Likewise.
    pub local: Vec<f32>,
    /// What the step makes crops of, by sample, all of them there once the batch is complete: `[B]`. Empty where the loader has
    /// made the crops.
    pub planned: Vec<Option<PlannedImage>>,
    /// Masks of the G * B global crops, where the loader was asked for them.
    pub masks: Option<BatchMasks>,
}

/// Values of one crop, and crops of one sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampleShape {
    global_values: usize, // C * S * S
    global_count: usize,  // G
    local_values: usize,  // C * s * s
    local_count: usize,   // L
    on: CropsOn,
}

impl SampleShape {
    /// As `config` makes them.
    pub(super) fn new(config: &MultiCropConfig, on: CropsOn) -> Self {
        Self {
            on,
            global_values: config.global_values(),
            global_count: config.global.count,
            local_values: config.local_values(),
            local_count: config.local.count,
        }
    }

    /// Values of a sample's global crops that the loader makes.
    pub(super) fn global(self) -> usize {
        self.made(self.global_values * self.global_count)
    }

    /// Values of a sample's local crops that the loader makes.
    pub(super) fn local(self) -> usize {
        self.made(self.local_values * self.local_count)
    }

    /// Whether the loader only says which crops to make.
    pub(super) fn is_planned(self) -> bool {
        self.on == CropsOn::Gpu
    }

    fn made(self, values: usize) -> usize {
        if self.is_planned() { 0 } else { values }
    }
}

impl Batch {
    /// Makes room for `size` samples. What the buffers hold is written over sample by sample.
    pub(super) fn prepare(&mut self, step: u64, size: usize, sample: SampleShape) {
        (self.step, self.size) = (step, size);
        self.rows.resize(size, 0);
        self.views.resize(size, None);
        self.global.resize(size * sample.global(), 0.0);
        self.local.resize(size * sample.local(), 0.0);
        self.planned.clear();
        if sample.is_planned() {
            self.planned.resize(size, None);
        }
        self.masks = None;
    }

    /// Enters a sample whose crops the step makes: its row and pass, and what they are made of.
    pub(super) fn plan(&mut self, sample: usize, (row, view): (u64, Option<u64>), planned: PlannedImage) {
        self.rows[sample] = row;
        self.views[sample] = view;
        self.planned[sample] = Some(planned);
    }

    /// Enters a sample: its row and pass, and its crops `[G, C, S, S]` and `[L, C, s, s]`.
    pub(super) fn put(
        &mut self,
        sample: usize,
        (row, view): (u64, Option<u64>),
        shape: SampleShape,
        global: &[f32],
        local: &[f32],
    ) {
        self.rows[sample] = row;
        self.views[sample] = view;
        scatter(global, shape.global_values, sample, self.size, &mut self.global);
        scatter(local, shape.local_values, sample, self.size, &mut self.local);
    }
}

/// Crop c of `crops`, `[C, values]`, to place `c * size + sample` of `out`, `[C * size, values]`.
fn scatter(crops: &[f32], values: usize, sample: usize, size: usize, out: &mut [f32]) {
    for (place, crop) in crops.chunks_exact(values).enumerate() {
        let start = (place * size + sample) * values;
        out[start..start + values].copy_from_slice(crop);
    }
}
