//! Rotary positions: queries and keys of a packed projection are turned in place, a launch each way.

use candle_core::{Device, Result, Tensor, bail};

use super::geometry::Chunked;
use super::launch::{Argument, Source, is_wide, launch, strips};
use super::upload::upload;
use crate::ops::Rotary;
use crate::ops::node::node1;

const NAME: &str = "rotary";

/// [`crate::ops::rotate`], of f32 or bf16.
pub(in crate::ops) fn rotate(qkv: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (batch, tokens, _, heads, head_dim) = qkv.dims5()?;
    let packed = (batch * tokens, 3 * heads * head_dim);
    let angles = Angles::new(rotary, qkv.device())?;
    let out = qkv.detach().contiguous()?.copy()?.reshape(packed)?;
    angles.turn(&out, None)?;
    node1(NAME, qkv, out.reshape(qkv.shape())?, move |[qkv], _, grad| {
        let dqkv = grad.contiguous()?.copy()?.reshape(packed)?;
        angles.turn_back(&dqkv)?;
        Ok([Some(dqkv.reshape(qkv.shape())?)])
    })
}

/// The angles of the tokens of images of one size, on a device.
#[derive(Clone)]
pub(super) struct Angles {
    cosines: Tensor, // [T, d / 2]
    sines: Tensor,   // [T, d / 2]
}

impl Angles {
    pub(super) fn new(rotary: &Rotary, device: &Device) -> Result<Self> {
        let table = |values: &[f32]| upload(values, (rotary.tokens(), rotary.half()), device);
        Ok(Self {
            cosines: table(rotary.cos())?,
            sines: table(rotary.sin())?,
        })
    }

    /// Adds the `bias` [3 H d], where there is one, to `qkv` [B T, 3 H d] in place, and turns its queries and keys.
    pub(super) fn turn(&self, qkv: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        self.launch(qkv, bias, 1.)
    }

    /// Turns queries and keys of `dqkv` [B T, 3 H d] back in place: the gradient of [`Self::turn`].
    pub(super) fn turn_back(&self, dqkv: &Tensor) -> Result<()> {
        self.launch(dqkv, None, -1.)
    }

    fn launch(&self, qkv: &Tensor, bias: Option<&Tensor>, sign: f32) -> Result<()> {
        let ((rows, width), (tokens, half)) = (qkv.dims2()?, self.cosines.dims2()?);
        let heads = width / (6 * half);
        if heads * 6 * half != width || !rows.is_multiple_of(tokens) {
            bail!(
                "{NAME}: expected rows of images of {tokens} tokens and heads of {}, found {:?}",
                2 * half,
                qkv.dims()
            )
        }
        let parts = if bias.is_some() { 3 } else { 2 };
        let is_wide = is_wide(half, &[Some(qkv), bias, Some(&self.cosines), Some(&self.sines)]);
        let chunked = Chunked::new(rows, parts * heads * half, is_wide);
        launch(
            qkv.device(),
            Source::Rotary,
            &strips(NAME, qkv.dtype(), &chunked)?,
            &chunked.launch,
            &[
                Argument::Change(qkv),
                Argument::Optional(bias),
                Argument::Read(&self.cosines),
                Argument::Read(&self.sines),
                Argument::Count(rows),
                Argument::Count(tokens),
                Argument::Count(heads),
                Argument::Count(parts),
                Argument::Count(half),
                Argument::Float(sign),
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )
    }
}

/// The angles that branches have, each table on the device once however many of them share it.
#[derive(Default)]
pub(super) struct Uploaded<'a>(Vec<(&'a [Rotary], Vec<Angles>)>);

impl<'a> Uploaded<'a> {
    /// Those of `rotary`, a table for each size of images.
    pub(super) fn get(&mut self, rotary: &'a [Rotary], device: &Device) -> Result<Vec<Angles>> {
        if let Some((_, angles)) = self.0.iter().find(|(known, _)| std::ptr::eq(*known, rotary)) {
            return Ok(angles.clone());
        }
        let angles: Vec<Angles> = rotary
            .iter()
            .map(|rotary| Angles::new(rotary, device))
            .collect::<Result<_>>()?;
        self.0.push((rotary, angles.clone()));
        Ok(angles)
    }
}
