//! The linear layer: a product of cuBLAS and a launch for the bias.

use candle_core::{D, DType, Result, Tensor, bail};

use super::columns::{add_bias, column_sums};
use crate::ops::cpu::rows_and_width;
use crate::ops::node::{node2, node3};

const NAME: &str = "linear";

/// [`crate::ops::linear`], in the type of `x`.
pub(in crate::ops) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, inputs) = rows_and_width(NAME, x.shape())?;
    let outputs = weight.dim(0)?;
    let bias_fits = bias.is_none_or(|bias| bias.dims() == [outputs]);
    if weight.dims() != [outputs, inputs] || !bias_fits {
        bail!(
            "{NAME}: expected weight [{outputs}, {inputs}] and bias [{outputs}], found {:?} and {:?}",
            weight.dims(),
            bias.map(Tensor::dims)
        )
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let values = x.detach().contiguous()?.reshape(((), inputs))?;
    let matrix = weight.detach().contiguous()?.to_dtype(x.dtype())?; // [O, I]
    let out = values.matmul(&matrix.t()?)?;
    if let Some(bias) = bias {
        add_bias(&out, &bias.detach().contiguous()?.to_dtype(DType::F32)?)?;
    }
    let out = out.reshape(shape)?;
    let products = Products { values, matrix };
    match bias {
        Some(bias) => node3(NAME, [x, weight, bias], out, move |[x, weight, bias], _, grad| {
            let grad = grad.reshape(((), grad.dim(D::Minus1)?))?;
            let [dx, dweight] = products.gradients(x, weight, &grad)?;
            let dbias = bias
                .track_op()
                .then(|| column_sums(&grad)?.to_dtype(bias.dtype()));
            Ok([dx, dweight, dbias.transpose()?])
        }),
        None => node2(NAME, [x, weight], out, move |[x, weight], _, grad| {
            products.gradients(x, weight, &grad.reshape(((), grad.dim(D::Minus1)?))?)
        }),
    }
}

/// What the product was of, in its type.
struct Products {
    values: Tensor, // [rows, I]
    matrix: Tensor, // [O, I]
}

impl Products {
    /// Gradients that nothing asked for (of pixels, of a frozen weight) are not computed.
    fn gradients(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let dx = x
            .track_op()
            .then(|| grad.matmul(&self.matrix)?.reshape(x.shape()));
        let dweight = weight
            .track_op()
            .then(|| grad.t()?.matmul(&self.values)?.to_dtype(weight.dtype()));
        Ok([dx.transpose()?, dweight.transpose()?])
    }
}
