//! Softmax attention: heads taken apart by one launch, batched products of cuBLAS, a softmax in the place of the scores, heads put
//! together by another launch. The backward pass computes the probabilities anew instead of keeping T x T of them for every
//! head of every block.

use candle_core::{Result, Tensor};

use super::columns::Partials;
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
    let (batch, tokens, width) = (
        attention.sizes.batch,
        attention.sizes.tokens,
        attention.sizes.width(),
    );
    let heads = attention.heads(&qkv.detach().contiguous()?, None)?;
    let out = attention.forward(&heads)?.reshape((batch, tokens, width))?;
    node1(NAME, qkv, out, move |[qkv], _, grad| {
        let (dqkv, _) = attention.backward(&heads, grad, false)?;
        Ok([Some(dqkv.reshape(qkv.shape())?)])
    })
}

/// Attention of these sizes, scores scaled by `scale`.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    sizes: Sizes,
    scale: f32,
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

    /// Scaled queries, keys and values [3, B H, T, d] from their packed projection, with its bias [3 H d] added.
    pub(super) fn heads(&self, qkv: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.split(qkv, bias, 3, self.scale)
    }

    /// The result [B T, H d] from [`Self::heads`].
    pub(super) fn forward(&self, heads: &Tensor) -> Result<Tensor> {
        let out = self.probabilities(heads)?.matmul(&heads.get(2)?)?; // [B H, T, d]
        let chunked = Chunked::new(self.rows(), self.sizes.width());
        self.merge([&out], 1., &chunked, &None)
    }

    /// The gradient of the packed projection [B T, 3 H d] from that of the result, and its column sums where asked.
    pub(super) fn backward(
        &self,
        heads: &Tensor,
        grad: &Tensor,
        with_sums: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let [query, key, value] = [heads.get(0)?, heads.get(1)?, heads.get(2)?];
        let grad = self.split(grad, None, 1, 1.)?.get(0)?; // [B H, T, d]
        let probabilities = self.probabilities(heads)?; // [B H, T, T]
        let dvalue = probabilities.t()?.matmul(&grad)?;
        let dscores = grad.matmul(&value.t()?)?;
        softmax_backward(&probabilities, &dscores)?;
        let dquery = dscores.matmul(&key)?;
        let dkey = dscores.t()?.matmul(&query)?;
        let width = 3 * self.sizes.width();
        let chunked = Chunked::with_sums(self.rows(), width);
        let partials = with_sums
            .then(|| Partials::new(chunked.chunks, width, &grad))
            .transpose()?;
        let dqkv = self.merge([&dquery, &dkey, &dvalue], self.scale, &chunked, &partials)?;
        let sums = partials.map(|partials| partials.sums()).transpose()?;
        Ok((dqkv, sums))
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
        let chunked = Chunked::new(self.rows(), parts * sizes.width());
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
            ],
        )?;
        Ok(heads)
    }

    /// `parts` [B H, T, d] each to [B T, parts H d].
    fn merge<const PARTS: usize>(
        &self,
        parts: [&Tensor; PARTS],
        first_scale: f32,
        chunked: &Chunked,
        partials: &Option<Partials>,
    ) -> Result<Tensor> {
        let (sizes, like) = (self.sizes, parts[0]);
        let shape = (self.rows(), PARTS * sizes.width());
        let packed = uninitialised(shape, like.dtype(), like.device())?;
        launch(
            like.device(),
            Source::Attention,
            &typed("merge_heads", like.dtype())?,
            &chunked.launch,
            &[
                Argument::Read(like),
                Argument::Optional(parts.get(1).copied()),
                Argument::Optional(parts.get(2).copied()),
                Argument::Write(&packed),
                Partials::optional(partials),
                Argument::Float(first_scale),
                Argument::Count(sizes.batch),
                Argument::Count(sizes.tokens),
                Argument::Count(PARTS),
                Argument::Count(sizes.heads),
                Argument::Count(sizes.head_dim),
                Argument::Count(chunked.chunk_rows),
            ],
        )?;
        Ok(packed)
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
