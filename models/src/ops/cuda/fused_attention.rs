//! Attention that keeps no scores, on the tensor cores: one launch forward, one or two backward, on the packed projection as it is.

use candle_core::{DType, Result, Tensor};

use super::geometry;
use super::launch::{Argument, Source, launch, uninitialised};
use crate::ops::attention::Sizes;

/// Whether there are kernels for values of `dtype` and heads of this width (`FUSED_ATTENTION` in `fused_attention.cu`).
pub(super) fn suits(sizes: &Sizes, dtype: DType) -> bool {
    dtype == DType::BF16 && sizes.head_dim == 64
}

/// A packed projection [B T, 3 H d] without its bias [3 H d], and the scale of its scores.
pub(super) struct Projection<'a> {
    pub(super) qkv: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) scale: f32,
    pub(super) sizes: Sizes,
}

impl Projection<'_> {
    /// Writes the result to `out` [B T, H d]; the logarithms of the sums of every row's exponentials, to base 2, [B, H, T].
    pub(super) fn forward(&self, out: &Tensor) -> Result<Tensor> {
        let log_sums = self.row_values()?;
        self.launch(
            "fused_attention",
            &self.own_rows(),
            vec![
                Argument::Read(self.qkv),
                Argument::Optional(self.bias),
                Argument::Write(out),
                Argument::Write(&log_sums),
            ],
        )?;
        Ok(log_sums)
    }

    /// Writes the gradient of the projection to `dqkv` [B T, 3 H d] from `dout` [B T, H d], that of the result `out`.
    pub(super) fn backward(
        &self,
        out: &Tensor,
        log_sums: &Tensor,
        dout: &Tensor,
        dqkv: &Tensor,
    ) -> Result<()> {
        let sizes = &self.sizes;
        let matrices = sizes.batch * sizes.heads;
        if let Some(one_block) = geometry::attention_of_few(matrices, sizes.tokens, sizes.head_dim) {
            return self.launch(
                "fused_attention_backward",
                &one_block,
                vec![
                    Argument::Read(self.qkv),
                    Argument::Optional(self.bias),
                    Argument::Read(out),
                    Argument::Read(log_sums),
                    Argument::Read(dout),
                    Argument::Write(dqkv),
                ],
            );
        }
        let deltas = self.row_values()?;
        self.launch(
            "fused_attention_dquery",
            &self.own_rows(),
            vec![
                Argument::Read(self.qkv),
                Argument::Optional(self.bias),
                Argument::Read(out),
                Argument::Read(log_sums),
                Argument::Read(dout),
                // The rest of it is the next kernel's.
                Argument::Write(dqkv),
                Argument::Write(&deltas),
            ],
        )?;
        self.launch(
            "fused_attention_dkey_dvalue",
            &self.own_rows(),
            vec![
                Argument::Read(self.qkv),
                Argument::Optional(self.bias),
                Argument::Read(log_sums),
                Argument::Read(dout),
                Argument::Read(&deltas),
                Argument::Change(dqkv),
            ],
        )
    }

    /// A number for every row of every head to be written, [B, H, T].
    fn row_values(&self) -> Result<Tensor> {
        let sizes = &self.sizes;
        let shape = (sizes.batch, sizes.heads, sizes.tokens);
        uninitialised(shape, DType::F32, self.qkv.device())
    }

    fn own_rows(&self) -> geometry::Launch {
        let sizes = &self.sizes;
        geometry::attention_rows(sizes.batch * sizes.heads, sizes.tokens, sizes.head_dim)
    }

    fn launch(&self, name: &str, geometry: &geometry::Launch, mut arguments: Vec<Argument>) -> Result<()> {
        let sizes = &self.sizes;
        arguments.extend([
            Argument::Float(self.scale),
            Argument::Count(sizes.tokens),
            Argument::Count(sizes.heads),
        ]);
        launch(
            self.qkv.device(),
            Source::FusedAttention,
            &format!("{name}_{}", sizes.head_dim),
            geometry,
            &arguments,
        )
    }
}
