//! What of a batch goes to the device, and what the step makes of it there: crops that the loader has made, or images and plans
//! that become crops by kernels.

use std::borrow::Cow;

#[cfg(any(feature = "cuda", test))]
use candle_core::DType;
use candle_core::{Device, Tensor};
use macula_models::ops::cuda::augment::{Change, Crop, CropShape, CropTable, Weights};

use crate::data::RgbImage;
use crate::data::augment::multi_crop_config::{MultiCropConfig, ViewConfig};
use crate::data::augment::planned::{PlannedCrop, PlannedCrops};
use crate::data::augment::{Colour, MultiCrop, PlannedImage, blur, photometric};
use crate::data::loader::Batch;
use crate::data::resize::{WeightRows, vertical_first};
use crate::train::kernels::kernels;
use crate::{Error, Result};

/// Values of one type, in as many parts as they lie in.
pub(super) enum Piece<'a> {
    F32(Vec<Cow<'a, [f32]>>),
    U32(Vec<Cow<'a, [u32]>>),
    U8(Vec<Cow<'a, [u8]>>),
}

/// A batch on its way to a device: its values, and how they are to be read there.
pub(super) struct Load<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    kind: Kind,
    size: usize,
    has_masks: bool,
}

/// Which pieces there are, in their order.
#[derive(Clone, Copy)]
enum Kind {
    /// Global crops and, where there are any, local ones.
    Made { has_local: bool },
    /// Pixels, values of levels; words and weights of the global crops and, where there are any, of the local ones.
    Planned {
        global: CropShape,
        local: Option<CropShape>,
    },
}

/// What a step needs of a batch on its device.
pub struct DeviceBatch {
    tensors: Vec<Tensor>, // one a piece, flat
    kind: Kind,
    size: usize,
    has_masks: bool,
}

impl Piece<'_> {
    /// A flat tensor of them, copied while the caller waits.
    pub(super) fn tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        fn flat<T: candle_core::WithDType>(
            parts: &[Cow<'_, [T]>],
            device: &Device,
        ) -> candle_core::Result<Tensor> {
            match parts {
                [part] => Tensor::from_slice(part, part.len(), device),
                parts => {
                    let all = parts.concat();
                    let count = all.len();
                    Tensor::from_vec(all, count, device)
                }
            }
        }
        match self {
            Self::F32(parts) => flat(parts, device),
            Self::U32(parts) => flat(parts, device),
            Self::U8(parts) => flat(parts, device),
        }
    }
}

// What page-locked memory needs to know of them.
#[cfg(any(feature = "cuda", test))]
impl Piece<'_> {
    /// Values.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(parts) => parts.iter().map(|part| part.len()).sum(),
            Self::U32(parts) => parts.iter().map(|part| part.len()).sum(),
            Self::U8(parts) => parts.iter().map(|part| part.len()).sum(),
        }
    }

    /// Their type.
    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::U32(_) => DType::U32,
            Self::U8(_) => DType::U8,
        }
    }

    /// Their length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.len() * self.dtype().size_in_bytes()
    }

    /// Writes them over `out`, [`Piece::bytes`] long, in the order of bytes that the machine has.
    pub(super) fn write(&self, out: &mut [u8]) {
        match self {
            Self::F32(parts) => write_words(parts, |value| value.to_ne_bytes(), out),
            Self::U32(parts) => write_words(parts, |value| value.to_ne_bytes(), out),
            Self::U8(parts) => {
                let mut rest = out;
                for part in parts {
                    let (own, after) = rest.split_at_mut(part.len());
                    own.copy_from_slice(part);
                    rest = after;
                }
            }
        }
    }
}

/// Words of four bytes, one after the other.
#[cfg(any(feature = "cuda", test))]
fn write_words<T: Copy>(parts: &[Cow<'_, [T]>], bytes: impl Fn(T) -> [u8; 4], out: &mut [u8]) {
    let mut rest = out.as_chunks_mut::<4>().0;
    for part in parts {
        let (own, after) = rest.split_at_mut(part.len());
        for (out, &value) in own.iter_mut().zip(part.iter()) {
            *out = bytes(value);
        }
        rest = after;
    }
}

impl<'a> Load<'a> {
    /// What goes to the device of `batch`, whose crops are `crops`.
    ///
    /// # Errors
    /// A batch that is not complete, or too large for what names its pixels.
    pub(super) fn new(batch: &'a Batch, crops: &MultiCrop) -> Result<Self> {
        let (mut pieces, kind) = if batch.planned.is_empty() {
            let has_local = crops.config().local.count > 0;
            let values = |values: &'a [f32]| Piece::F32(vec![Cow::Borrowed(values)]);
            let mut pieces = vec![values(&batch.global)];
            if has_local {
                pieces.push(values(&batch.local));
            }
            (pieces, Kind::Made { has_local })
        } else {
            planned(batch, crops)?
        };
        if let Some(masks) = &batch.masks {
            pieces.push(Piece::U8(vec![Cow::Borrowed(&masks.masks)]));
        }
        Ok(Self {
            pieces,
            kind,
            size: batch.size,
            has_masks: batch.masks.is_some(),
        })
    }

    /// What has arrived, flat tensors in the order of the pieces.
    pub(super) fn arrived(&self, tensors: Vec<Tensor>) -> DeviceBatch {
        DeviceBatch {
            tensors,
            kind: self.kind,
            size: self.size,
            has_masks: self.has_masks,
        }
    }
}

/// The pieces of a batch whose crops are still to be made.
fn planned<'a>(batch: &'a Batch, crops: &MultiCrop) -> Result<(Vec<Piece<'a>>, Kind)> {
    let images: Vec<&PlannedImage> = batch.planned.iter().flatten().collect();
    if images.len() != batch.size {
        let reason = format!("expected {} planned images, found {}", batch.size, images.len());
        return Err(Error::failed("batch", reason));
    }
    let config = crops.config();
    let pixels = images.iter().map(|image| Cow::Borrowed(image.image.data()));
    let mut pieces = vec![
        Piece::U8(pixels.collect()),
        Piece::F32(vec![Cow::Owned(crops.values())]),
    ];
    let mut side = |view: &ViewConfig, of: fn(&PlannedImage) -> &PlannedCrops| {
        let table = table(&images, view, of)?;
        pieces.push(Piece::U32(vec![Cow::Owned(table.words().to_vec())]));
        let weights = images
            .iter()
            .map(|image| Cow::Borrowed(of(image).weights.as_slice()));
        pieces.push(Piece::U32(weights.collect()));
        Ok::<_, Error>(table.shape())
    };
    let global = side(&config.global, |image| &image.global)?;
    let local = match config.local.count {
        0 => None,
        _ => Some(side(&config.local, |image| &image.local)?),
    };
    Ok((pieces, Kind::Planned { global, local }))
}

/// The crops of one kind, crop-major.
fn table(
    images: &[&PlannedImage],
    view: &ViewConfig,
    of: fn(&PlannedImage) -> &PlannedCrops,
) -> Result<CropTable> {
    // Where each image's pixels and weights begin.
    let mut starts = Vec::with_capacity(images.len());
    let (mut pixels, mut weights) = (0, 0);
    for image in images {
        starts.push((pixels, weights));
        pixels += image.image.data().len() / 3;
        weights += of(image).weights.len();
    }
    let mut table = CropTable::new(view.size as usize);
    for place in 0..view.count {
        for (image, &starts) in images.iter().zip(&starts) {
            let planned = of(image).crops.get(place).ok_or_else(|| {
                let found = of(image).crops.len();
                Error::failed("batch", format!("expected {} crops, found {found}", view.count))
            })?;
            let crop = crop(planned, &image.image, starts, view.size);
            table.push(&crop)?;
        }
    }
    Ok(table)
}

/// A crop of an image whose pixels and weights begin at the given places among those of the batch.
fn crop(planned: &PlannedCrop, image: &RgbImage, (pixels, weights): (usize, usize), size: u32) -> Crop {
    let plan = &planned.plan;
    let window = plan.window;
    let rows = |rows: WeightRows| Weights {
        start: weights + rows.start,
        words: rows.words,
    };
    Crop {
        start: pixels + window.top as usize * image.width() as usize + window.left as usize,
        stride: image.width(),
        width: window.width,
        height: window.height,
        vertical_first: vertical_first((window.width, window.height), (size, size)),
        columns: rows(planned.columns),
        rows: rows(planned.rows),
        mirrored: plan.flip,
        changes: plan.colours.map(|colour| colour.map(change)),
        grey: plan.grey,
        blur: plan.blur.map(blur::kernel),
        threshold: plan.solarize,
    }
}

/// A change of colour in the numbers that the processor also computes with.
fn change(colour: Colour) -> Change {
    match colour {
        Colour::Brightness(factor) => Change::Brightness(factor as f32),
        Colour::Contrast(factor) => Change::Contrast(factor as f32),
        Colour::Saturation(factor) => Change::Saturation(factor as f32),
        Colour::Hue(turns) => Change::Hue(photometric::hue_shift(turns)),
    }
}

impl DeviceBatch {
    /// Copies `batch` to `device` while the caller waits.
    ///
    /// # Errors
    /// A batch that is not complete or too large; failures of candle.
    pub fn upload(batch: &Batch, crops: &MultiCrop, device: &Device) -> Result<Self> {
        let load = Load::new(batch, crops)?;
        let tensors = load.pieces.iter().map(|piece| piece.tensor(device));
        let tensors: candle_core::Result<_> = tensors.collect();
        Ok(load.arrived(tensors?))
    }

    /// The crops, [G B, C, S, S] and, where there are any, [L B, C, s, s]: as they came, or made here.
    ///
    /// # Errors
    /// Crops of another size than configured, failures of candle.
    pub fn crops(&self, config: &MultiCropConfig) -> candle_core::Result<(Tensor, Option<Tensor>)> {
        let shaped = |place: usize, view: &ViewConfig| {
            let side = view.size as usize;
            self.tensors[place].reshape((view.count * self.size, config.channels(), side, side))
        };
        match self.kind {
            Kind::Made { has_local } => {
                let local = has_local.then(|| shaped(1, &config.local));
                Ok((shaped(0, &config.global)?, local.transpose()?))
            }
            Kind::Planned { global, local } => {
                let [pixels, values, rest @ ..] = &self.tensors[..] else {
                    candle_core::bail!("crops: expected pixels and values, found neither")
                };
                let Some(crops) = kernels(pixels.device()).crops() else {
                    let found = pixels.device().location();
                    candle_core::bail!("crops: expected a device that makes them, found {found:?}")
                };
                let made = |place: usize, shape| crops(pixels, &rest[place], &rest[place + 1], values, shape);
                let local = local.map(|shape| made(2, shape));
                Ok((made(0, global)?, local.transpose()?))
            }
        }
    }

    /// Everything, flat.
    #[cfg(test)]
    pub(super) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The masks, flat, where there are any.
    pub fn masks(&self) -> Option<&Tensor> {
        self.tensors.last().filter(|_| self.has_masks)
    }
}
