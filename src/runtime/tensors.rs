//! What a model takes and gives: descriptions of its tensors, and the values of its outputs.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};
use ort::value::{DynValue, Outlet, TensorElementType, ValueType};
use serde::Serialize;

/// One dimension of a tensor, as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Known only when the model runs; the name may be empty.
    Dynamic(String),
}

impl Dim {
    /// The size, where it is always the same.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) => Some(*size),
            Self::Dynamic(_) => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Dynamic(name) if name.is_empty() => f.write_str("?"),
            Self::Dynamic(name) => f.write_str(name),
        }
    }
}

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type (`f32`, `f16`, `i64`, ..), or what it is when it is no tensor.
    pub element: String,
    /// Its dimensions; none also when the model does not say how many there are.
    pub dims: Vec<Dim>,
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        write!(f, "{} {} [{}]", self.name, self.element, dims.join(", "))
    }
}

impl TensorInfo {
    pub(super) fn new(outlet: &Outlet) -> Self {
        let name = outlet.name().to_owned();
        match outlet.dtype() {
            ValueType::Tensor {
                ty,
                shape,
                dimension_symbols,
            } => {
                let symbol = |axis: usize| dimension_symbols.get(axis).cloned().unwrap_or_default();
                let dim = |(axis, &size): (usize, &i64)| {
                    usize::try_from(size).map_or_else(|_| Dim::Dynamic(symbol(axis)), Dim::Fixed)
                };
                Self {
                    name,
                    element: ty.to_string(),
                    dims: shape.iter().enumerate().map(dim).collect(),
                }
            }
            other => Self {
                name,
                element: other.to_string(),
                dims: Vec::new(),
            },
        }
    }

    /// Whether the elements are floating-point numbers that macula reads.
    pub fn is_float(&self) -> bool {
        ["f32", "f16", "bf16", "f64"].contains(&self.element.as_str())
    }
}

/// One output of one run, borrowed where the runtime holds it as f32.
#[derive(Debug)]
pub struct OutputView<'a> {
    /// The output's name.
    pub name: &'a str,
    /// Its shape, for instance `[B, D]`.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Cow<'a, [f32]>,
}

/// One output of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputTensor {
    /// The output's name.
    pub name: String,
    /// Its shape, for instance `[B, D]`.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Vec<f32>,
}

impl From<OutputView<'_>> for OutputTensor {
    fn from(view: OutputView<'_>) -> Self {
        Self {
            name: view.name.to_owned(),
            shape: view.shape,
            data: view.data.into_owned(),
        }
    }
}

/// The cosine between two vectors of values, for instance one image's in an output by two ways of computing it; 0 where one is
/// all zeros, NaN where a value is.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()).max(f64::MIN_POSITIVE)
}

/// The values of `value` as f32: f16, bf16 and f64 are converted, the last with rounding. The error says what it is.
pub(super) fn as_f32<'a>(name: &'a str, value: &'a DynValue) -> Result<OutputView<'a>, String> {
    let refused = |found: String| {
        Err(format!(
            "output `{name}`: expected floating-point numbers, found {found}"
        ))
    };
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return refused(value.dtype().to_string());
    };
    let failed = |e: ort::Error| format!("output `{name}`: {}", super::messages::one_line(e.message()));
    let (shape, data) = match ty {
        TensorElementType::Float32 => {
            let (shape, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
            (shape, Cow::Borrowed(data))
        }
        TensorElementType::Float16 => {
            let (shape, data) = value.try_extract_tensor::<f16>().map_err(failed)?;
            (shape, data.iter().map(|x| x.to_f32()).collect())
        }
        TensorElementType::Bfloat16 => {
            let (shape, data) = value.try_extract_tensor::<bf16>().map_err(failed)?;
            (shape, data.iter().map(|x| x.to_f32()).collect())
        }
        TensorElementType::Float64 => {
            let (shape, data) = value.try_extract_tensor::<f64>().map_err(failed)?;
            (shape, data.iter().map(|&x| x as f32).collect())
        }
        other => return refused(other.to_string()),
    };
    let size =
        |&n: &i64| usize::try_from(n).map_err(|_| format!("output `{name}`: a negative size in its shape"));
    Ok(OutputView {
        name,
        shape: shape.iter().map(size).collect::<Result<_, _>>()?,
        data,
    })
}
