//! Windows of 3 x 3 of a map as rows of a matrix: what a convolution with a border of zeros multiplies its kernel with.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{f32_slice, stored, with_f32};
use super::vectors::filled;

const NAME: &str = "windows";
/// Height and width of a window.
const SIDE: usize = 3;

/// The windows of 3 x 3 around every `stride`-th place of `map` [B, H, W, C], the first around (0, 0): [B, ceil(H / stride),
/// ceil(W / stride), 9 C] with the values of a window as [3, 3, C], zeros beyond the border; f32. Differentiable.
///
/// # Errors
/// A stride of 0, a type other than f32, failures of candle.
pub fn windows(map: &Tensor, stride: usize) -> Result<Tensor> {
    map.dims4()?;
    if stride == 0 {
        bail!("{NAME}: expected a stride of at least 1, found 0")
    }
    backend(map.device()).windows(map, stride)
}

/// [`windows`] by the kernels of this file.
pub(super) fn on_cpu(map: &Tensor, stride: usize) -> Result<Tensor> {
    map.contiguous()?.apply_op1(Windows { stride })
}

struct Windows {
    stride: usize,
}

/// Sides of a map, of the places of its windows, and channels.
#[derive(Clone, Copy)]
struct Sides {
    height: usize,
    width: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    stride: usize,
}

impl Sides {
    fn new(shape: &Shape, stride: usize) -> Result<Self> {
        let (_, height, width, channels) = shape.dims4()?;
        Ok(Self {
            height,
            width,
            rows: height.div_ceil(stride),
            columns: width.div_ceil(stride),
            channels,
            stride,
        })
    }

    /// Values of a row of windows.
    fn row(&self) -> usize {
        self.columns * SIDE * SIDE * self.channels
    }

    /// Where the window at place `column` begins in its map, the part of its width that lies in it, and how far that lies from the
    /// window's left end.
    fn inside(&self, column: usize) -> (usize, usize, usize) {
        let first = column * self.stride;
        let left = usize::from(first == 0);
        let start = first + left - 1;
        let end = (first + 2).min(self.width);
        (start, end - start, left)
    }
}

impl CustomOp1 for Windows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sides = Sides::new(layout.shape(), self.stride)?;
        let images = layout.shape().dims4()?.0;
        let map = f32_slice(NAME, storage, layout)?;
        let (channels, strip) = (sides.channels, SIDE * sides.channels);
        let out = filled(
            images * sides.rows * sides.row(),
            sides.row(),
            #[inline(always)]
            |task, out: &mut [f32]| {
                let (image, row) = (task / sides.rows, task % sides.rows);
                for ky in 0..SIDE {
                    let Some(y) = (row * sides.stride + ky)
                        .checked_sub(1)
                        .filter(|y| *y < sides.height)
                    else {
                        continue;
                    };
                    let line =
                        &map[(image * sides.height + y) * sides.width * channels..][..sides.width * channels];
                    for (column, window) in out.chunks_exact_mut(SIDE * strip).enumerate() {
                        let (start, count, left) = sides.inside(column);
                        window[ky * strip + left * channels..][..count * channels]
                            .copy_from_slice(&line[start * channels..][..count * channels]);
                    }
                }
            },
        );
        let shape = (images, sides.rows, sides.columns, SIDE * strip);
        Ok(stored(out, shape))
    }

    fn bwd(&self, map: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sides = Sides::new(map.shape(), self.stride)?;
        let images = map.dim(0)?;
        let (channels, strip) = (sides.channels, SIDE * sides.channels);
        let line = sides.width * channels;
        let gradient = with_f32(NAME, [&grad.contiguous()?], |[grad]| {
            filled(
                images * sides.height * line,
                line,
                #[inline(always)]
                |task, out: &mut [f32]| {
                    let (image, y) = (task / sides.height, task % sides.height);
                    for ky in 0..SIDE {
                        // The row of windows that has this line as its `ky`-th.
                        let Some(above) = (y + 1).checked_sub(ky) else {
                            continue;
                        };
                        let row = above / sides.stride;
                        if above % sides.stride != 0 || row >= sides.rows {
                            continue;
                        }
                        let windows = &grad[(image * sides.rows + row) * sides.row()..][..sides.row()];
                        for (column, window) in windows.chunks_exact(SIDE * strip).enumerate() {
                            let (start, count, left) = sides.inside(column);
                            let from = &window[ky * strip + left * channels..][..count * channels];
                            let to = &mut out[start * channels..][..count * channels];
                            for (to, from) in to.iter_mut().zip(from) {
                                *to += from;
                            }
                        }
                    }
                },
            )
        })?;
        Ok(Some(Tensor::from_vec(gradient, map.shape(), map.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, on_threads, random, values};
    use super::*;
    use candle_core::Var;

    #[test]
    fn agrees_with_the_composition_and_its_gradient() {
        for shape in [
            [1, 1, 1, 1],
            [2, 4, 6, 3],
            [1, 5, 7, 2],
            [3, 2, 1, 5],
            [2, 8, 8, 16],
        ] {
            for stride in [1, 2, 3] {
                check(&[random(1, &shape)], &|x| windows(&x[0], stride), &|x| {
                    composed::windows(&x[0], stride)
                });
            }
        }
    }

    #[test]
    fn a_product_with_windows_is_a_convolution() {
        for (side, stride) in [(6, 1), (6, 2), (7, 2)] {
            let (pixels, kernel) = (random(1, &[2, 3, side, side]), random(2, &[4, 3, 3, 3]));
            let expected = pixels.conv2d(&kernel, 1, stride, 1, 1).unwrap();
            let map = pixels.permute((0, 2, 3, 1)).unwrap();
            let rows = windows(&map, stride).unwrap();
            let weight = kernel.permute((0, 2, 3, 1)).unwrap().flatten_from(1).unwrap();
            let found = rows.broadcast_matmul(&weight.t().unwrap()).unwrap();
            let found = found.permute((0, 3, 1, 2)).unwrap();
            assert_eq!(found.dims(), expected.dims());
            for (found, expected) in values(&found).iter().zip(values(&expected)) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let run = || {
            let x = Var::from_tensor(&random(1, &[3, 9, 8, 5])).unwrap();
            let loss = (windows(&x, 2).unwrap() * random(2, &[3, 5, 4, 45])).unwrap();
            let grads = loss.sum_all().unwrap().backward().unwrap();
            values(grads.get(&x).unwrap())
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }

    #[test]
    fn a_stride_of_0_is_refused() {
        let error = windows(&random(1, &[1, 2, 2, 1]), 0).unwrap_err().to_string();
        assert!(error.contains("at least 1, found 0"), "{error}");
    }
}
