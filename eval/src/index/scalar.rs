//! How the numbers of stored vectors are kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The type of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// 4 bytes, as features are.
    #[default]
    F32,
    /// 2 bytes: cosines differ by about 1e-4.
    F16,
    /// 1 byte: cosines differ by about 1e-2.
    I8,
}

impl Scalar {
    /// Every type there is.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::I8];

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::I8 => 1,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
        })
    }
}

impl FromStr for Scalar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|scalar| scalar.to_string() == text)
            .ok_or_else(|| format!("expected f32, f16 or i8, found `{text}`"))
    }
}
