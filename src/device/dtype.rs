//! Types of numbers by their names: what products are computed in, features stored in, a file's matrices kept in. Each use
//! has its own list of those that it takes.

use std::fmt;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// Brain floats: 8 bits of precision, the range of f32; faster on processors with AVX512-BF16 or AMX, and on GPUs.
    Bf16,
    /// Half precision: 11 bits of precision, up to 65,504.
    F16,
    /// 8-bit integers with a scale.
    Int8,
}

impl Dtype {
    /// Its name: `f32`, `bf16`, `f16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// candle's name of what it computes in: f32 for `int8`, of which it has no products.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Int8 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// The one of `allowed` that `text` names.
    ///
    /// # Errors
    /// What was expected and found, where it names none of them.
    pub fn parse(text: &str, allowed: &[Self]) -> std::result::Result<Self, String> {
        let found = allowed.iter().copied().find(|dtype| dtype.name() == text);
        found.ok_or_else(|| format!("expected {}, found `{text}`", listed(allowed)))
    }

    /// Fails unless it is one of `allowed`.
    ///
    /// # Errors
    /// Names `field` and what was expected.
    pub fn check(self, field: &str, allowed: &[Self]) -> Result<()> {
        if allowed.contains(&self) {
            return Ok(());
        }
        let reason = format!("expected {}, found {self}", listed(allowed));
        Err(Error::input(field, reason))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `f32, bf16 or f16`.
fn listed(dtypes: &[Dtype]) -> String {
    let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Int8];

    #[test]
    fn each_is_read_as_it_is_written() {
        for dtype in ALL {
            assert_eq!(Dtype::parse(dtype.name(), &ALL), Ok(dtype));
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
            assert_eq!(
                serde_json::from_value::<Dtype>(dtype.name().into()).unwrap(),
                dtype
            );
        }
    }

    #[test]
    fn a_use_names_those_that_it_takes() {
        let computed = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        assert_eq!(
            Dtype::parse("int8", &computed).unwrap_err(),
            "expected f32, bf16 or f16, found `int8`"
        );
        let error = Dtype::Int8.check("compute", &computed[..2]).unwrap_err();
        assert_eq!(error.to_string(), "compute: expected f32 or bf16, found int8");
        assert!(Dtype::Bf16.check("compute", &computed).is_ok());
    }
}
