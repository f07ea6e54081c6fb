//! The tokens that enter the first block: patches or the mask token, plus positions, behind the class token and registers.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{added, f32_slice, stored, with_f32};
use super::vectors::{filled, filled_with};

const NAME: &str = "assemble-tokens";

/// The learned tokens that stand in front of patches or in place of them.
#[derive(Debug, Clone, Copy)]
pub struct SpecialTokens<'a> {
    /// The class token, D values.
    pub cls: &'a Tensor,
    /// Registers, R x D values, if there are any.
    pub registers: Option<&'a Tensor>,
    /// The mask token, D values, if the network has one.
    pub mask: Option<&'a Tensor>,
}

impl SpecialTokens<'_> {
    /// All of them as rows of `width`, the mask token last and only where `masked`; and how many stand in front of the patches.
    pub(super) fn stacked(&self, width: usize, masked: bool) -> Result<(Tensor, usize)> {
        let mut rows = vec![self.cls.reshape(((), width))?];
        if let Some(registers) = self.registers {
            rows.push(registers.reshape(((), width))?);
        }
        let in_front = rows.iter().map(|rows| rows.dims()[0]).sum();
        if let (Some(mask), true) = (self.mask, masked) {
            rows.push(mask.reshape((1, width))?);
        }
        Ok((Tensor::cat(&rows, 0)?, in_front))
    }
}

/// Class token with its position, registers, then patches with theirs: [B, 1 + R + N, D]; f32.
///
/// `patches` [B, N, D]; `positions` 1 + N rows of D values, that of the class token first; registers have none. `masks` [B, N]
/// of U8: where not 0, the mask token stands in place of the patch. Differentiable in everything but the masks.
///
/// # Errors
/// Shapes that do not fit, masks without a mask token, a type other than f32, a device without this operation.
pub fn assemble_tokens(
    patches: &Tensor,
    positions: &Tensor,
    special: SpecialTokens,
    masks: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, count, width) = patches.dims3()?;
    if positions.elem_count() != (1 + count) * width {
        bail!(
            "{NAME}: expected positions [1, {}, {width}], found {:?}",
            1 + count,
            positions.dims()
        )
    }
    let masks = match masks {
        None => None,
        Some(masks)
            if special.mask.is_none() || masks.dims() != [batch, count] || masks.dtype() != DType::U8 =>
        {
            bail!(
                "{NAME}: expected masks [{batch}, {count}] of U8 and a mask token, found {:?} of {:?}",
                masks.dims(),
                masks.dtype()
            )
        }
        Some(masks) => Some(masks),
    };
    backend(patches.device()).assemble_tokens(patches, positions, special, masks)
}

/// [`assemble_tokens`] by the kernels of this file.
pub(super) fn on_cpu(
    patches: &Tensor,
    positions: &Tensor,
    special: SpecialTokens,
    masks: Option<&Tensor>,
) -> Result<Tensor> {
    let (_, count, width) = patches.dims3()?;
    let (special, in_front) = special.stacked(width, masks.is_some())?;
    let op = Assemble {
        masks: masks
            .map(|masks| masks.flatten_all()?.to_vec1::<u8>())
            .transpose()?,
        in_front,
        count,
        width,
    };
    patches
        .contiguous()?
        .apply_op3(&positions.contiguous()?, &special, op)
}

struct Assemble {
    masks: Option<Vec<u8>>,
    /// The class token and the registers, the first rows of the special tokens; the mask token follows them.
    in_front: usize,
    /// Patches of an image.
    count: usize,
    width: usize,
}

impl Assemble {
    fn tokens(&self) -> usize {
        self.in_front + self.count
    }

    #[inline(always)]
    fn is_masked(&self, image: usize, patch: usize) -> bool {
        self.masks
            .as_ref()
            .is_some_and(|masks| masks[image * self.count + patch] != 0)
    }

    fn row<'a>(&self, values: &'a [f32], row: usize) -> &'a [f32] {
        &values[row * self.width..(row + 1) * self.width]
    }

    fn forward(&self, patches: &[f32], positions: &[f32], special: &[f32]) -> Vec<f32> {
        let image_len = self.tokens() * self.width;
        let batch = patches.len() / (self.count * self.width).max(1);
        filled(
            batch * image_len,
            image_len,
            #[inline(always)]
            |image, out| {
                for (token, out) in out.chunks_exact_mut(self.width).enumerate() {
                    let (content, position) = match token.checked_sub(self.in_front) {
                        None if token > 0 => {
                            out.copy_from_slice(self.row(special, token));
                            continue;
                        }
                        None => (self.row(special, 0), 0),
                        Some(patch) if self.is_masked(image, patch) => {
                            (self.row(special, self.in_front), 1 + patch)
                        }
                        Some(patch) => (self.row(patches, image * self.count + patch), 1 + patch),
                    };
                    let position = self.row(positions, position);
                    for (out, (content, position)) in out.iter_mut().zip(content.iter().zip(position)) {
                        *out = content + position;
                    }
                }
            },
        )
    }

    /// The gradient of the patches: none where the mask token stood.
    fn patch_gradient(&self, grad: &[f32]) -> Vec<f32> {
        let batch = grad.len() / (self.tokens() * self.width);
        filled(
            batch * self.count * self.width,
            self.count * self.width,
            #[inline(always)]
            |image, out| {
                for (patch, out) in out.chunks_exact_mut(self.width).enumerate() {
                    if !self.is_masked(image, patch) {
                        out.copy_from_slice(self.row(grad, image * self.tokens() + self.in_front + patch));
                    }
                }
            },
        )
    }

    /// The gradients summed over images, [1 + R + N, D], and of those the part that reached the mask token, [D].
    fn sums(&self, grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tokens, width) = (self.tokens(), self.width);
        let batch = grad.len() / (tokens * width);
        let (sums, masked) = filled_with(
            tokens * width,
            width,
            #[inline(always)]
            |token, out| {
                let mut masked = vec![0.; width];
                for image in 0..batch {
                    let grad = self.row(grad, image * tokens + token);
                    add(out, grad);
                    if token >= self.in_front && self.is_masked(image, token - self.in_front) {
                        add(&mut masked, grad);
                    }
                }
                masked
            },
        );
        (sums, added(width, &masked))
    }
}

#[inline(always)]
fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

impl CustomOp3 for Assemble {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, ..) = l1.shape().dims3()?;
        let (patches, positions, special) = (
            f32_slice(NAME, s1, l1)?,
            f32_slice(NAME, s2, l2)?,
            f32_slice(NAME, s3, l3)?,
        );
        let out = self.forward(patches, positions, special);
        Ok(stored(out, (batch, self.tokens(), self.width)))
    }

    fn bwd(
        &self,
        patches: &Tensor,
        positions: &Tensor,
        special: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dpatches, (mut sums, masked)) = with_f32(NAME, [&grad.contiguous()?], |[grad]| {
            let dpatches = patches.track_op().then(|| self.patch_gradient(grad));
            (dpatches, self.sums(grad))
        })?;
        let of_patches = sums.split_off(self.in_front * self.width);
        let dpositions = [&sums[..self.width], &of_patches].concat();
        let mut dspecial = sums;
        if self.masks.is_some() {
            dspecial.extend(masked);
        }
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            dpatches.map(|values| tensor(values, patches)).transpose()?,
            Some(tensor(dpositions, positions)?),
            Some(tensor(dspecial, special)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, on_threads, random, values};
    use super::*;
    use candle_core::{Device, Var};

    fn masks(batch: usize, count: usize) -> Tensor {
        let bits: Vec<u8> = (0..batch * count).map(|i| u8::from(i % 3 == 1)).collect();
        Tensor::from_vec(bits, (batch, count), &Device::Cpu).unwrap()
    }

    fn special<'a>(x: &'a [Tensor], registers: bool) -> SpecialTokens<'a> {
        SpecialTokens {
            cls: &x[2],
            mask: Some(&x[3]),
            registers: registers.then(|| &x[4]),
        }
    }

    #[test]
    fn agrees_with_the_composition() {
        for (batch, count, width, registers) in [(1, 1, 1, 0), (2, 4, 3, 0), (3, 5, 7, 2), (1, 9, 4, 1)] {
            let mut inputs = vec![
                random(1, &[batch, count, width]),
                random(2, &[1, 1 + count, width]),
                random(3, &[1, 1, width]),
                random(4, &[1, width]),
            ];
            if registers > 0 {
                inputs.push(random(5, &[1, registers, width]));
            }
            let masks = masks(batch, count);
            check(
                &inputs,
                &|x| assemble_tokens(&x[0], &x[1], special(x, registers > 0), Some(&masks)),
                &|x| composed::assemble_tokens(&x[0], &x[1], special(x, registers > 0), Some(&masks)),
            );
            // Without masks the mask token plays no part.
            inputs.remove(3);
            let with_mask = |x: &[Tensor]| {
                let mut all = x.to_vec();
                all.insert(3, random(4, &[1, width]).to_dtype(x[0].dtype()).unwrap());
                all
            };
            check(
                &inputs,
                &|x| {
                    let x = with_mask(x);
                    assemble_tokens(&x[0], &x[1], special(&x, registers > 0), None)
                },
                &|x| {
                    let x = with_mask(x);
                    composed::assemble_tokens(&x[0], &x[1], special(&x, registers > 0), None)
                },
            );
        }
    }

    #[test]
    fn threads_change_nothing() {
        let run = || {
            let shapes = [&[7, 6, 5][..], &[1, 7, 5], &[1, 1, 5], &[1, 5], &[1, 3, 5]];
            let vars = shapes.map(|shape| Var::from_tensor(&random(shape.len() as u64, shape)).unwrap());
            let x = vars.each_ref().map(|var| var.as_tensor().clone());
            let out = assemble_tokens(&x[0], &x[1], special(&x, true), Some(&masks(7, 6))).unwrap();
            let loss = (&out * random(9, &[7, 10, 5])).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let grads = vars.map(|var| values(grads.get(&var).unwrap()));
            (values(&out), grads)
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (patches, positions) = (random(1, &[2, 4, 3]), random(2, &[1, 5, 3]));
        let cls = random(3, &[1, 1, 3]);
        let special = SpecialTokens {
            cls: &cls,
            registers: None,
            mask: None,
        };
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let found = message(assemble_tokens(&patches, &random(2, &[1, 4, 3]), special, None));
        assert!(
            found.contains("expected positions [1, 5, 3], found [1, 4, 3]"),
            "{found}"
        );
        let found = message(assemble_tokens(&patches, &positions, special, Some(&masks(2, 4))));
        assert!(found.contains("and a mask token"), "{found}");
    }
}
