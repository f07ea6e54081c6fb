//! A residual branch of a pre-norm block: norm, projection, attention or activation, projection, LayerScale, sum. The
//! kernels; [`super::residual_stack`] is the operation.
//!
//! LayerScale is folded into the second projection, which adds its product straight onto the input.

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::attention::{Attention, Sizes};
use super::cpu::{Matrix, ROWS_PER_TASK, with_f32};
use super::element::Element;
use super::layer_norm::LayerNorm;
use super::precision::Precision;
use super::rotary::Rotary;
use super::vectors::{beside, dot, filled};
use super::{GeluKind, gelu, linear, swiglu};

const NAME: &str = "residual-branch";

/// The parameters of a branch on tokens of width D. The first projection has E outputs, the second I inputs.
#[derive(Debug, Clone)]
pub struct BranchParameters {
    /// Gain of the norm, [D].
    pub norm_weight: Tensor,
    /// Offset of the norm, [D].
    pub norm_bias: Tensor,
    /// First projection, [E, D].
    pub expand_weight: Tensor,
    /// Its bias, [E].
    pub expand_bias: Tensor,
    /// Second projection, [D, I].
    pub contract_weight: Tensor,
    /// Its bias, [D].
    pub contract_bias: Tensor,
    /// LayerScale, [D].
    pub gamma: Tensor,
}

impl BranchParameters {
    /// The shapes of the parameters in the order of the fields, of a branch with D = `width`, E = `expanded` and I = `inner`.
    pub fn shapes(width: usize, expanded: usize, inner: usize) -> [Vec<usize>; 7] {
        [
            vec![width],
            vec![width],
            vec![expanded, width],
            vec![expanded],
            vec![width, inner],
            vec![width],
            vec![width],
        ]
    }

    /// The parameters given in the order of the fields.
    pub fn from_list(list: [Tensor; 7]) -> Self {
        let [
            norm_weight,
            norm_bias,
            expand_weight,
            expand_bias,
            contract_weight,
            contract_bias,
            gamma,
        ] = list;
        Self {
            norm_weight,
            norm_bias,
            expand_weight,
            expand_bias,
            contract_weight,
            contract_bias,
            gamma,
        }
    }

    pub(super) fn list(&self) -> [&Tensor; 7] {
        [
            &self.norm_weight,
            &self.norm_bias,
            &self.expand_weight,
            &self.expand_bias,
            &self.contract_weight,
            &self.contract_bias,
            &self.gamma,
        ]
    }
}

/// What stands between the two projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Middle {
    /// Softmax attention of this many heads, scores scaled by `1 / sqrt(D / heads)`: E = 3 D, I = D.
    Attention {
        /// Number of heads, a divisor of D.
        heads: usize,
    },
    /// GELU of this kind: E = I.
    Gelu(GeluKind),
    /// The gate of SwiGLU: E = 2 I.
    SwiGlu,
}

impl Middle {
    /// GELU in its exact form.
    pub const GELU: Self = Self::Gelu(GeluKind::Gelu);

    /// Width I behind `expanded` values.
    pub(super) fn inner(self, expanded: usize) -> usize {
        match self {
            Self::Attention { .. } => expanded / 3,
            Self::Gelu(_) => expanded,
            Self::SwiGlu => expanded / 2,
        }
    }
}

/// Fails unless the parameters are those of a branch of `width`.
pub(super) fn check(parameters: &BranchParameters, middle: Middle, width: usize) -> Result<()> {
    let (expanded, inner) = match *parameters.expand_weight.dims() {
        [expanded, found] if found == width => (expanded, middle.inner(expanded)),
        ref found => bail!("{NAME}: expected a first projection [E, {width}], found {found:?}"),
    };
    let shapes = BranchParameters::shapes(width, expanded, inner);
    for (parameter, shape) in parameters.list().iter().zip(shapes) {
        if parameter.dims() != shape {
            bail!(
                "{NAME}: expected a parameter of shape {shape:?}, found {:?}",
                parameter.dims()
            )
        }
    }
    match middle {
        Middle::Attention { heads }
            if heads == 0 || expanded != 3 * width || !width.is_multiple_of(heads) =>
        {
            bail!(
                "{NAME}: expected {width} to be a multiple of {heads} heads and a first projection [{}, {width}]",
                3 * width
            )
        }
        _ => Ok(()),
    }
}

/// Fails unless the tables of rotary positions, where there are any, are those of such a branch on images of one or two sizes with
/// `tokens` tokens each.
pub(super) fn check_rotary(rotary: &[Rotary], middle: Middle, tokens: &[usize], width: usize) -> Result<()> {
    if rotary.is_empty() {
        return Ok(());
    }
    let Middle::Attention { heads } = middle else {
        bail!("{NAME}: expected rotary positions with attention alone, found another branch")
    };
    if rotary.len() != tokens.len() {
        bail!(
            "{NAME}: expected angles for images of {} sizes, found those of {}",
            tokens.len(),
            rotary.len()
        )
    }
    let mut each = rotary.iter().zip(tokens);
    each.try_for_each(|(rotary, tokens)| rotary.check(*tokens, width / heads.max(1)))
}

/// One branch with its parameters at hand, for tokens of one shape. Both have been checked.
pub(super) struct Branch {
    parameters: Vec<Tensor>,
    middle: Middle,
    /// For attention.
    sizes: Option<Sizes>,
    rotary: Option<Rotary>,
    norm: LayerNorm,
    add_input: bool,
    precision: Precision,
}

/// Values of the forward pass that the backward pass needs again, in bf16 where products are computed in it.
pub(super) enum Kept {
    F32(Values<f32>),
    Bf16(Values<bf16>),
}

/// What stands between the products of a branch.
pub(super) struct Values<T> {
    normed: Vec<T>, // [rows, D]
    /// Queries and keys turned, where there are rotary positions.
    expanded: Vec<T>, // [rows, E]
    inner: Vec<T>,  // [rows, I]
}

impl Branch {
    /// `gamma * (contract(middle(expand(norm(x)))))`, plus `x` where `add_input` is set, for `x` of `[batch, tokens, width]`.
    /// `eps` is the norm's.
    pub(super) fn new(
        parameters: &BranchParameters,
        (middle, rotary): (Middle, Option<&Rotary>),
        [batch, tokens, width]: [usize; 3],
        eps: f64,
        add_input: bool,
        precision: Precision,
    ) -> Result<Self> {
        let sizes = match middle {
            Middle::Attention { heads } => Some(Sizes::new(&[batch, tokens, 3, heads, width / heads])?),
            _ => None,
        };
        let parameters = parameters.list().map(Tensor::contiguous);
        Ok(Self {
            parameters: parameters.into_iter().collect::<Result<_>>()?,
            middle,
            sizes,
            rotary: rotary.cloned(),
            norm: LayerNorm { eps: eps as f32 },
            add_input,
            precision,
        })
    }

    /// The branch on `x` [rows, D], and what its gradient needs.
    pub(super) fn forward(&self, x: &[f32]) -> Result<(Vec<f32>, Kept)> {
        self.with_parameters(|parameters| match self.between_with(x, parameters) {
            Kept::F32(values) => (self.contract(x, &values.inner, parameters), Kept::F32(values)),
            Kept::Bf16(values) => (self.contract(x, &values.inner, parameters), Kept::Bf16(values)),
        })
    }

    /// What the gradient needs of the branch on `x` [rows, D], to the bit what [`Self::forward`] gives.
    pub(super) fn between(&self, x: &[f32]) -> Result<Kept> {
        self.with_parameters(|parameters| self.between_with(x, parameters))
    }

    /// The gradient of `x` [rows, D] and those of the parameters in their order.
    pub(super) fn backward(&self, x: &[f32], kept: &Kept, grad: &[f32]) -> Result<(Vec<f32>, [Vec<f32>; 7])> {
        self.with_parameters(|parameters| match kept {
            Kept::F32(kept) => self.backward_with(x, kept, grad, parameters),
            Kept::Bf16(kept) => self.backward_with(x, kept, grad, parameters),
        })
    }

    /// Runs `kernel` on the values of all parameters.
    fn with_parameters<R>(&self, kernel: impl FnOnce([&[f32]; 7]) -> R) -> Result<R> {
        let list: [&Tensor; 7] = std::array::from_fn(|i| &self.parameters[i]);
        with_f32(NAME, list, kernel)
    }

    fn between_with(&self, x: &[f32], parameters: [&[f32]; 7]) -> Kept {
        match self.precision {
            Precision::F32 => Kept::F32(self.values(x, parameters)),
            Precision::Bf16 => Kept::Bf16(self.values(x, parameters)),
        }
    }

    fn values<T: Element>(&self, x: &[f32], parameters: [&[f32]; 7]) -> Values<T> {
        let [norm_weight, norm_bias, expand_weight, expand_bias, ..] = parameters;
        let normed: Vec<T> = self.norm.forward(x, norm_weight, norm_bias);
        let mut expanded = linear::forward(self.precision, &normed, expand_weight, expand_bias);
        if let (Some(rotary), Some(sizes)) = (&self.rotary, self.sizes) {
            rotary.turn(&mut expanded, sizes.heads, false);
        }
        let inner = self.middle_forward(&expanded);
        Values {
            normed,
            expanded,
            inner,
        }
    }

    /// The second projection of `inner` [rows, I], scaled, onto `x` where the branch adds its input.
    fn contract<T: Element>(&self, x: &[f32], inner: &[T], parameters: [&[f32]; 7]) -> Vec<f32> {
        let [.., contract_weight, contract_bias, gamma] = parameters;
        let width = gamma.len();
        let chunk = width * ROWS_PER_TASK;
        let mut out = filled(
            x.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let x = beside(x, task, chunk, out.len());
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for ((out, x), (bias, gamma)) in
                        out.iter_mut().zip(x).zip(contract_bias.iter().zip(gamma))
                    {
                        *out = if self.add_input {
                            x + bias * gamma
                        } else {
                            bias * gamma
                        };
                    }
                }
            },
        );
        let inputs = contract_weight.len() / width;
        self.precision.add_product(
            [x.len() / width, width, inputs],
            &mut out,
            Matrix::new(inner, inputs),
            Matrix::new(&scaled_rows(contract_weight, gamma), inputs).transposed(),
        );
        out
    }

    fn middle_forward<T: Element>(&self, expanded: &[T]) -> Vec<T> {
        match (self.middle, self.sizes) {
            (Middle::Gelu(kind), _) => gelu::forward(expanded, kind),
            (_, Some(sizes)) => Attention::new(sizes, self.precision).forward(sizes, expanded),
            _ => swiglu::forward(expanded, self.expanded_width()),
        }
    }

    fn middle_backward<T: Element>(&self, expanded: &[T], grad: &[T]) -> Vec<T> {
        match (self.middle, self.sizes) {
            (Middle::Gelu(kind), _) => gelu::backward(expanded, grad, kind),
            (_, Some(sizes)) => {
                let mut dqkv = Attention::new(sizes, self.precision).backward(sizes, expanded, grad);
                if let Some(rotary) = &self.rotary {
                    rotary.turn(&mut dqkv, sizes.heads, true);
                }
                dqkv
            }
            _ => swiglu::backward(expanded, self.expanded_width(), grad),
        }
    }

    fn expanded_width(&self) -> usize {
        self.parameters[3].elem_count()
    }

    fn backward_with<T: Element>(
        &self,
        x: &[f32],
        kept: &Values<T>,
        grad: &[f32],
        parameters: [&[f32]; 7],
    ) -> (Vec<f32>, [Vec<f32>; 7]) {
        let [
            norm_weight,
            _,
            expand_weight,
            expand_bias,
            contract_weight,
            contract_bias,
            gamma,
        ] = parameters;
        let (width, expanded) = (gamma.len(), expand_bias.len());
        let (rows, inner) = (x.len() / width, contract_weight.len() / width);
        let dy = Matrix::new(grad, width);
        // Everything about the second projection but its scale: d out = grad, d (gamma y) = gamma grad.
        let unscaled: Vec<f32> = self.precision.product(
            [width, inner, rows],
            dy.transposed(),
            Matrix::new(&kept.inner, inner),
        );
        let sums = linear::column_sums(grad, rows, width);
        let contract = scaled_rows(contract_weight, gamma);
        let dinner: Vec<T> = self
            .precision
            .product([rows, inner, width], dy, Matrix::new(&contract, inner));
        let dexpanded = self.middle_backward(&kept.expanded, &dinner);
        drop(dinner);
        let de = Matrix::new(&dexpanded, expanded);
        let dexpand_weight = self.precision.product(
            [expanded, width, rows],
            de.transposed(),
            Matrix::new(&kept.normed, width),
        );
        let dexpand_bias = linear::column_sums(&dexpanded, rows, expanded);
        let dnormed: Vec<T> =
            self.precision
                .product([rows, width, expanded], de, Matrix::new(expand_weight, width));
        let bypass = self.add_input.then_some(grad);
        let (dx, mut dnorm) = self.norm.gradients(x, norm_weight, &dnormed, bypass);
        let dnorm_bias = dnorm.split_off(width);
        let of_row = |row: usize| row * inner..(row + 1) * inner;
        let dgamma = (0..width).map(|row| {
            dot(&contract_weight[of_row(row)], &unscaled[of_row(row)]) + contract_bias[row] * sums[row]
        });
        let dgamma = dgamma.collect();
        let dbias = sums.iter().zip(gamma).map(|(sum, gamma)| sum * gamma).collect();
        let dcontract = scaled_rows(&unscaled, gamma);
        let gradients = [
            dnorm,
            dnorm_bias,
            dexpand_weight,
            dexpand_bias,
            dcontract,
            dbias,
            dgamma,
        ];
        (dx, gradients)
    }
}

/// `diag(scale) matrix`, with as many rows as there are scales.
fn scaled_rows(matrix: &[f32], scale: &[f32]) -> Vec<f32> {
    let width = matrix.len() / scale.len();
    filled(
        matrix.len(),
        width,
        #[inline(always)]
        |row, out| {
            for (out, value) in out.iter_mut().zip(beside(matrix, row, width, width)) {
                *out = value * scale[row];
            }
        },
    )
}
