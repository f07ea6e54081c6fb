//! Softmax attention on packed projections. Where the kernels of `fused_attention` suit, no scores are kept; elsewhere heads are taken
//! apart by one launch, multiplied by cuBLAS, with a softmax in the place of the scores, and put together by another launch. The
//! backward pass computes the probabilities anew instead of keeping T x T of them for every head of every block.

use candle_core::{Result, Tensor, bail};

use super::fused_attention::{self, Projection};
use super::geometry::{self, Chunked};
use super::launch::{Argument, Source, launch, typed, uninitialised};
use crate::ops::attention::Sizes;
use crate::ops::node::node1;

const NAME: &str = "attention";

/// [`crate::ops::attention`], of f32 or bf16.
pub(in crate::ops) fn attention(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    let attention = Attention {
        sizes: Sizes::new(qkv.dims())?,
        scale: scale as f32,
    };
    let Sizes { batch, tokens, .. } = attention.sizes;
    let (rows, width) = (attention.rows(), attention.sizes.width());
    let packed = qkv.detach().contiguous()?.reshape((rows, 3 * width))?;
    let out = uninitialised((rows, width), qkv.dtype(), qkv.device())?;
    let kept = attention.forward(&packed, None, &out)?;
    let out = out.reshape((batch, tokens, width))?;
    node1(NAME, qkv, out, move |[qkv], out, grad| {
        let [out, dout] = [out, grad].map(|tensor| tensor.detach().reshape((rows, width)));
        let dqkv = uninitialised(packed.shape(), packed.dtype(), packed.device())?;
        attention.backward(&packed, None, &out?, &kept, &dout?, &dqkv)?;
        Ok([Some(dqkv.reshape(qkv.shape())?)])
    })
}

/// Attention of these sizes, scores scaled by `scale`.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    sizes: Sizes,
    scale: f32,
}

/// What the backward pass needs beside the projection and the result.
pub(super) enum Kept {
    /// The logarithms of the sums of every row's exponentials, [B, H, T].
    LogSums(Tensor),
    Nothing,
}

impl Attention {
    /// With scores scaled by `1 / sqrt(d)`, of `[batch, tokens]` tokens of `heads` heads.
    pub(super) fn new([batch, tokens, width]: [usize; 3], heads: usize) -> Result<Self> {
        let head_dim = width / heads;
        Ok(Self {
            sizes: Sizes::new(&[batch, tokens, 3, heads, head_dim])?,
            scale: 1. / (head_dim as f32).sqrt(),
        })
    }

    /// Writes the result to `out` [B T, H d] from the packed projection `qkv` [B T, 3 H d] without its bias [3 H d].
    pub(super) fn forward(&self, qkv: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<Kept> {
        self.expect(&[(qkv, 3), (out, 1)])?;
        if fused_attention::suits(&self.sizes, qkv.dtype()) {
            let log_sums = self.projection(qkv, bias).forward(out)?;
            return Ok(Kept::LogSums(log_sums));
        }
        let heads = self.heads(qkv, bias)?;
        let result = self.probabilities(&heads)?.matmul(&heads.get(2)?)?; // [B H, T, d]
        self.merge([&result], 1., out)?;
        Ok(Kept::Nothing)
    }

    /// Writes the gradient of the projection to `dqkv` [B T, 3 H d] from `dout` [B T, H d], that of the result `out`.
    pub(super) fn backward(
        &self,
        qkv: &Tensor,
        bias: Option<&Tensor>,
        out: &Tensor,
        kept: &Kept,
        dout: &Tensor,
        dqkv: &Tensor,
    ) -> Result<()> {
        self.expect(&[(qkv, 3), (out, 1), (dout, 1), (dqkv, 3)])?;
        if let Kept::LogSums(log_sums) = kept {
            return self.projection(qkv, bias).backward(out, log_sums, dout, dqkv);
        }
        let heads = self.heads(qkv, bias)?;
        let [query, key, value] = [heads.get(0)?, heads.get(1)?, heads.get(2)?];
        let grad = self.split(dout, None, 1, 1.)?.get(0)?; // [B H, T, d]
        let probabilities = self.probabilities(&heads)?; // [B H, T, T]
        let dvalue = probabilities.t()?.matmul(&grad)?;
        let dscores = grad.matmul(&value.t()?)?;
        softmax_backward(&probabilities, &dscores)?;
        let dquery = dscores.matmul(&key)?;
        let dkey = dscores.t()?.matmul(&query)?;
        self.merge([&dquery, &dkey, &dvalue], self.scale, dqkv)
    }

    /// Tensors must be [B T, parts H d], of one type.
    fn expect(&self, tensors: &[(&Tensor, usize)]) -> Result<()> {
        for (tensor, parts) in tensors {
            let (expected, dtype) = ([self.rows(), parts * self.sizes.width()], tensors[0].0.dtype());
            if tensor.dims() != expected || tensor.dtype() != dtype {
                let (dims, found) = (tensor.dims(), tensor.dtype());
                bail!("{NAME}: expected {expected:?} of {dtype:?}, found {dims:?} of {found:?}")
            }
        }
        Ok(())
    }

    fn projection<'a>(&self, qkv: &'a Tensor, bias: Option<&'a Tensor>) -> Projection<'a> {
        Projection {
            qkv,
            bias,
            scale: self.scale,
            sizes: self.sizes,
        }
    }

    /// Scaled queries, keys and values [3, B H, T, d] from their packed projection, with its bias [3 H d] added.
    fn heads(&self, qkv: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.split(qkv, bias, 3, self.scale)
    }

    /// `softmax(q k^T)`, [B H, T, T].
    fn probabilities(&self, heads: &Tensor) -> Result<Tensor> {
        let scores = heads.get(0)?.matmul(&heads.get(1)?.t()?)?;
        let (matrices, tokens, width) = scores.dims3()?;
        let rows = matrices * tokens;
        launch(
            scores.device(),
            Source::Attention,
            &typed("softmax_forward", scores.dtype())?,
            &geometry::warp_rows(rows),
            &[
                Argument::Change(&scores),
                Argument::Count(rows),
                Argument::Count(width),
            ],
        )?;
        Ok(scores)
    }

    fn rows(&self) -> usize {
        self.sizes.batch * self.sizes.tokens
    }

    fn split(
        &self,
        packed: &Tensor,
        bias: Option<&Tensor>,
        parts: usize,
        first_scale: f32,
    ) -> Result<Tensor> {
        let sizes = self.sizes;
        let chunked = Chunked::new(self.rows(), parts * sizes.width(), false);
        let shape = (parts, sizes.batch * sizes.heads, sizes.tokens, sizes.head_dim);
        let heads = uninitialised(shape, packed.dtype(), packed.device())?;
        launch(
            packed.device(),
            Source::Attention,
            &typed("split_heads", packed.dtype())?,
            &chunked.launch,
            &[
                Argument::Read(packed),
                Argument::Optional(bias),
                Argument::Write(&heads),
                Argument::Float(first_scale),
                Argument::Count(sizes.batch),
                Argument::Count(sizes.tokens),
                Argument::Count(parts),
                Argument::Count(sizes.heads),
                Argument::Count(sizes.head_dim),
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )?;
        Ok(heads)
    }

    /// `parts` [B H, T, d] each to `packed` [B T, parts H d].
    fn merge<const PARTS: usize>(
        &self,
        parts: [&Tensor; PARTS],
        first_scale: f32,
        packed: &Tensor,
    ) -> Result<()> {
        let (sizes, like) = (self.sizes, parts[0]);
        let chunked = Chunked::new(self.rows(), PARTS * sizes.width(), false);
        launch(
            like.device(),
            Source::Attention,
            &typed("merge_heads", like.dtype())?,
            &chunked.launch,
            &[
                Argument::Read(like),
                Argument::Optional(parts.get(1).copied()),
                Argument::Optional(parts.get(2).copied()),
                Argument::Write(packed),
                Argument::Float(first_scale),
                Argument::Count(sizes.batch),
                Argument::Count(sizes.tokens),
                Argument::Count(PARTS),
                Argument::Count(sizes.heads),
                Argument::Count(sizes.head_dim),
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )
    }
}

/// The gradient of the scores in the place of that of their softmax.
fn softmax_backward(probabilities: &Tensor, grad: &Tensor) -> Result<()> {
    let (matrices, tokens, width) = grad.dims3()?;
    let rows = matrices * tokens;
    launch(
        grad.device(),
        Source::Attention,
        &typed("softmax_backward", grad.dtype())?,
        &geometry::warp_rows(rows),
        &[
            Argument::Read(probabilities),
            Argument::Change(grad),
            Argument::Count(rows),
            Argument::Count(width),
        ],
    )
}
