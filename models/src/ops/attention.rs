//! Softmax attention on the packed projection `[B, T, 3, H, d]`, every (image, head) pair a task of its own.
//!
//! Queries, keys and values are read in place through strides, so neither pass permutes or cuts the projection. The
//! backward pass computes the probabilities anew instead of keeping T x T of them for every head of every block.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::backend::backend;
use super::cpu::{Matrix, Shared, f32_slice, stored, with_f32};
use super::element::Element;
use super::precision::Precision;
use super::vectors::{dot, softmax_row, wide};

const NAME: &str = "attention";

/// `softmax(scale * q k^T) v` for each head: `qkv` [B, T, 3, H, d] (query, key, value) to [B, T, H d]; f32.
///
/// # Errors
/// Another number of dimensions, a third one that is not 3, a type other than f32, a device without this operation.
pub fn attention(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    backend(qkv.device()).attention(qkv, scale)
}

/// [`attention`] by the kernels of this file.
pub(super) fn on_cpu(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    qkv.contiguous()?.apply_op1(Attention::scaled(scale))
}

/// The probabilities behind [`attention`], to look at: [B, T, 3, H, d] to [B, H, T, T], every row summing to one.
///
/// Not differentiable: a backward pass through it is an error.
///
/// # Errors
/// As [`attention`].
pub fn attention_probabilities(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    backend(qkv.device()).attention_probabilities(qkv, scale)
}

/// [`attention_probabilities`] by the kernels of this file.
pub(super) fn probabilities_on_cpu(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    qkv.contiguous()?
        .apply_op1(Probabilities(Attention::scaled(scale)))
}

/// The operation and its kernels.
pub(super) struct Attention {
    scale: f32,
    /// Of the factors of its products.
    precision: Precision,
}

struct Probabilities(Attention);

/// The sizes of a packed projection.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Sizes {
    pub(super) fn new(dims: &[usize]) -> Result<Self> {
        match *dims {
            [batch, tokens, 3, heads, head_dim] if dims.iter().all(|&dim| dim > 0) => Ok(Self {
                batch,
                tokens,
                heads,
                head_dim,
            }),
            _ => bail!(
                "{NAME}: expected [batch, tokens, 3, heads, head width], none of them 0, found {dims:?}"
            ),
        }
    }

    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Query, key and value of the `task`-th (image, head) pair, each [T, d].
    fn qkv<'a, T>(&self, values: &'a [T], task: usize) -> [Matrix<'a, T>; 3] {
        let (image, head) = (task / self.heads, task % self.heads);
        let start = image * self.tokens * 3 * self.width() + head * self.head_dim;
        [0, 1, 2].map(|part| Matrix::new(&values[start + part * self.width()..], 3 * self.width()))
    }

    /// The [T, d] part of a [B, T, H d] tensor that belongs to the `task`-th pair.
    fn head<'a, T>(&self, values: &'a [T], task: usize) -> Matrix<'a, T> {
        let (image, head) = (task / self.heads, task % self.heads);
        let start = image * self.tokens * self.width() + head * self.head_dim;
        Matrix::new(&values[start..], self.width())
    }

    /// A tensor [B, T, parts, H, d] of which every (image, head) pair computes its own `parts` matrices [T, d], in parallel:
    /// `fill(scratch, task, targets)`.
    fn by_head<T: Element, S, const PARTS: usize>(
        &self,
        scratch: impl Fn() -> S + Sync + Send,
        fill: impl Fn(&mut S, usize, [Target<T>; PARTS]) + Sync + Send,
    ) -> Vec<T> {
        let row = PARTS * self.width();
        let len = self.batch * self.tokens * row;
        let mut out = Vec::with_capacity(len);
        let start = Shared::new(out.as_mut_ptr());
        (0..self.batch * self.heads)
            .into_par_iter()
            .for_each_init(scratch, |scratch, task| {
                let (image, head) = (task / self.heads, task % self.heads);
                let first = image * self.tokens * row + head * self.head_dim;
                let targets = std::array::from_fn(|part| Target {
                    start: &start,
                    offset: first + part * self.width(),
                    row_stride: row,
                });
                fill(scratch, task, targets);
            });
        // SAFETY: `fill` has written every element of the matrices that it was given, which together are all of `out`.
        #[allow(unsafe_code)]
        unsafe {
            out.set_len(len);
        }
        out
    }
}

/// A matrix [T, d] inside of the result, not written yet.
struct Target<'a, T> {
    start: &'a Shared<T>,
    offset: usize,
    row_stride: usize,
}

impl<T: Element> Target<'_, T> {
    /// Becomes `lhs rhs`, `size = [T, d, inner]`.
    fn product<L: Element, R: Element>(
        self,
        precision: Precision,
        size: [usize; 3],
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) {
        // SAFETY: a target is made by `by_head` alone, inside its allocation; targets are disjoint and used up here, and a
        // product that does not accumulate writes without reading.
        #[allow(unsafe_code)]
        unsafe {
            precision.product_here_into(size, self.start.at(self.offset), self.row_stride, lhs, rhs);
        }
    }
}

impl Attention {
    /// In f32, with scores scaled by `scale`.
    fn scaled(scale: f64) -> Self {
        Self {
            scale: scale as f32,
            precision: Precision::F32,
        }
    }

    /// With scores scaled by `1 / sqrt(d)`.
    pub(super) fn new(sizes: Sizes, precision: Precision) -> Self {
        Self {
            scale: 1. / (sizes.head_dim as f32).sqrt(),
            precision,
        }
    }

    /// `softmax(scale * q k^T)` into `probabilities` [T, T].
    fn probabilities<T: Element>(
        &self,
        sizes: Sizes,
        query: Matrix<T>,
        key: Matrix<T>,
        probabilities: &mut [f32],
    ) {
        let (t, d) = (sizes.tokens, sizes.head_dim);
        self.precision
            .product_here([t, t, d], probabilities, query, key.transposed());
        wide(
            #[inline(always)]
            || {
                for row in probabilities.chunks_exact_mut(t) {
                    for score in row.iter_mut() {
                        *score *= self.scale;
                    }
                    softmax_row(row);
                }
            },
        );
    }

    pub(super) fn forward<T: Element>(&self, sizes: Sizes, qkv: &[T]) -> Vec<T> {
        let (t, d) = (sizes.tokens, sizes.head_dim);
        sizes.by_head(
            || vec![0.; t * t],
            |scores, task, [out]| {
                let [query, key, value] = sizes.qkv(qkv, task);
                self.probabilities(sizes, query, key, scores);
                out.product(self.precision, [t, d, t], Matrix::<f32>::new(scores, t), value);
            },
        )
    }

    pub(super) fn backward<T: Element>(&self, sizes: Sizes, qkv: &[T], grad: &[T]) -> Vec<T> {
        let (t, d) = (sizes.tokens, sizes.head_dim);
        sizes.by_head(
            || (vec![0.; t * t], vec![0.; t * t]),
            |(p, ds), task, [dq, dk, dv]| {
                let [query, key, value] = sizes.qkv(qkv, task);
                let grad = sizes.head(grad, task);
                self.probabilities(sizes, query, key, p);
                dv.product(
                    self.precision,
                    [t, d, t],
                    Matrix::<f32>::new(p, t).transposed(),
                    grad,
                );
                self.precision
                    .product_here([t, t, d], ds, grad, value.transposed());
                self.score_gradients(p, ds, t);
                let ds = Matrix::<f32>::new(ds, t);
                dq.product(self.precision, [t, d, t], ds, key);
                dk.product(self.precision, [t, d, t], ds.transposed(), query);
            },
        )
    }

    /// The gradient of `q k^T` from that of the softmax `p` [T, T] of its scores, in place.
    fn score_gradients(&self, p: &[f32], ds: &mut [f32], tokens: usize) {
        wide(
            #[inline(always)]
            || {
                for (p, ds) in p.chunks_exact(tokens).zip(ds.chunks_exact_mut(tokens)) {
                    let mean = dot(p, ds);
                    for (ds, p) in ds.iter_mut().zip(p) {
                        *ds = self.scale * p * (*ds - mean);
                    }
                }
            },
        );
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(layout.dims())?;
        let qkv = f32_slice(NAME, storage, layout)?;
        Ok(stored(
            self.forward(sizes, qkv),
            (sizes.batch, sizes.tokens, sizes.width()),
        ))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = Sizes::new(qkv.dims())?;
        let dqkv = with_f32(NAME, [qkv, &grad.contiguous()?], |[qkv, grad]| {
            self.backward(sizes, qkv, grad)
        })?;
        Ok(Some(Tensor::from_vec(dqkv, qkv.shape(), qkv.device())?))
    }
}

impl CustomOp1 for Probabilities {
    fn name(&self) -> &'static str {
        "attention-probabilities"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(layout.dims())?;
        let qkv = f32_slice(self.name(), storage, layout)?;
        let t = sizes.tokens;
        let mut out = vec![0.; sizes.batch * sizes.heads * t * t]; // [B, H, T, T]
        out.par_chunks_mut(t * t).enumerate().for_each(|(task, out)| {
            let [query, key, _] = sizes.qkv(qkv, task);
            self.0.probabilities(sizes, query, key, out);
        });
        Ok(stored(out, (sizes.batch, sizes.heads, t, t)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{assert_close, check, random, values};
    use super::*;

    #[test]
    fn agrees_with_the_composition() {
        for (batch, tokens, heads, head_dim) in [(1, 1, 1, 3), (2, 5, 3, 4), (1, 9, 2, 7), (3, 2, 1, 5)] {
            let qkv = random(1, &[batch, tokens, 3, heads, head_dim]);
            let scale = 1. / (head_dim as f64).sqrt();
            check(&[qkv], &|x| attention(&x[0], scale), &|x| {
                composed::attention(&x[0], scale)
            });
        }
    }

    #[test]
    fn probabilities_are_those_of_the_output() {
        let (batch, tokens, heads, head_dim) = (2, 5, 3, 4);
        let qkv = random(3, &[batch, tokens, 3, heads, head_dim]);
        let probabilities = attention_probabilities(&qkv, 0.5).unwrap();
        assert_eq!(probabilities.dims(), [batch, heads, tokens, tokens]);
        let value = qkv
            .narrow(2, 2, 1)
            .unwrap()
            .squeeze(2)
            .unwrap()
            .transpose(1, 2)
            .unwrap();
        let out = probabilities
            .matmul(&value.contiguous().unwrap())
            .unwrap()
            .transpose(1, 2)
            .unwrap();
        let out = out.reshape((batch, tokens, heads * head_dim)).unwrap();
        assert_close(
            "output",
            &values(&attention(&qkv, 0.5).unwrap()),
            &values(&out),
            1e-6,
        );
        let tracked = candle_core::Var::from_tensor(&qkv).unwrap();
        assert!(
            attention_probabilities(&tracked, 0.5)
                .unwrap()
                .backward()
                .is_err()
        );
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let qkv = (random(2, &[1, 6, 3, 2, 8]) * 100.).unwrap();
        let out = attention(&qkv, 1.)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(
            out.iter().all(|value| value.is_finite() && value.abs() <= 200.),
            "{out:?}"
        );
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for shape in [&[2, 4, 3, 6][..], &[1, 4, 2, 3, 2], &[1, 0, 3, 1, 2]] {
            let error = attention(&random(1, shape), 1.).unwrap_err().to_string();
            assert!(
                error.contains("expected [batch, tokens, 3, heads, head width]"),
                "{error}"
            );
        }
    }
}
