//! Layers and activations.

use candle_core::{D, Result, Tensor};

use super::super::gelu::{CUBIC, GeluKind, QUICK, TANH};
use super::super::rotary::Rotary;
use super::wide;

/// [`super::super::linear`], in the type of `x`.
pub(in crate::ops) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (dtype, inputs) = (x.dtype(), x.dim(D::Minus1)?);
    let rows = x.elem_count() / inputs.max(1);
    let weight = weight.to_dtype(dtype)?; // [O, I]
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let product = x.reshape((rows, inputs))?.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => product.broadcast_add(&bias.to_dtype(dtype)?)?,
        None => product,
    }
    .reshape(shape)
}

/// [`super::super::gelu_of`], of any float type.
pub(in crate::ops) fn gelu(x: &Tensor, kind: GeluKind) -> Result<Tensor> {
    let twice = match kind {
        GeluKind::Gelu => return x.gelu_erf(),
        GeluKind::GeluTanh => ((x + (x.powf(3.)? * f64::from(CUBIC))?)? * f64::from(2. * TANH))?,
        GeluKind::QuickGelu => (x * f64::from(QUICK))?,
    };
    // 1 / (1 + e^-y), of operations that candle differentiates.
    x / (twice.neg()?.exp()? + 1.)?
}

/// [`super::super::swiglu`], of any float type.
pub(in crate::ops) fn swiglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let [gate, value] = [0, half].map(|start| x.narrow(D::Minus1, start, half)?.contiguous());
    gate?.silu()? * value?
}

/// [`super::super::layer_norm`], f32 or f64 whatever came.
pub(in crate::ops) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let x = wide(x)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred
        .broadcast_div(&deviation)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// [`super::super::l2_normalize`], f32 or f64 whatever came.
pub(in crate::ops) fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = wide(x)?;
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    // The bound inside of the root, whose slope at 0 is infinite.
    let length = squares.maximum(&(squares.ones_like()? * (eps * eps))?)?.sqrt()?;
    x.broadcast_div(&length)
}

/// [`super::super::weight_norm`].
pub(in crate::ops) fn weight_norm(directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let length = directions.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    directions.broadcast_mul(&(gain / length)?)
}

/// [`super::super::attention`]: products in the type of `qkv`, softmax in f32 or f64.
pub(in crate::ops) fn attention(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    let (batch, tokens, _, heads, head_dim) = qkv.dims5()?;
    let [query, key, value] = parts(qkv)?;
    let probabilities = probabilities(&query, &key, scale)?.to_dtype(qkv.dtype())?;
    let out = probabilities.matmul(&value)?; // [B, H, T, d]
    out.transpose(1, 2)?.reshape((batch, tokens, heads * head_dim))
}

/// [`super::super::attention_probabilities`].
pub(in crate::ops) fn attention_probabilities(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    let [query, key, _] = parts(&qkv.detach())?;
    probabilities(&query, &key, scale)
}

/// [`super::super::rotate`]: in f32 or f64, and back to the type of `qkv`.
pub(in crate::ops) fn rotate(qkv: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let half = rotary.half();
    let turned = wide(&qkv.narrow(2, 0, 2)?)?; // [B, T, 2, H, d]
    let table = |values: &[f32]| {
        let table = Tensor::new(values, qkv.device())?.reshape((1, rotary.tokens(), 1, 1, half))?;
        table.to_dtype(turned.dtype())
    };
    let (cos, sin) = (table(rotary.cos())?, table(rotary.sin())?);
    let (first, second) = (turned.narrow(4, 0, half)?, turned.narrow(4, half, half)?);
    let turned = Tensor::cat(
        &[
            (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
            (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
        ],
        4,
    )?;
    Tensor::cat(&[turned.to_dtype(qkv.dtype())?, qkv.narrow(2, 2, 1)?], 2)
}

/// Queries, keys and values, each [B, H, T, d].
fn parts(qkv: &Tensor) -> Result<[Tensor; 3]> {
    let qkv = qkv.permute((2, 0, 3, 1, 4))?.contiguous()?; // [3, B, H, T, d]
    Ok([qkv.get(0)?, qkv.get(1)?, qkv.get(2)?])
}

fn probabilities(query: &Tensor, key: &Tensor, scale: f64) -> Result<Tensor> {
    // Scaled before the product: it has T / d times as many values.
    let scores = wide(&(query * scale)?.matmul(&key.t()?)?)?; // [B, H, T, T]
    softmax(&scores)
}

/// Over the last dimension. The maximum is a constant here: it cancels in the gradient.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let exps = scores
        .broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?
        .exp()?;
    exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)
}
