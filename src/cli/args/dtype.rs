//! Types of numbers as values of flags: each flag takes some of them.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::device::Dtype;

/// Reads one of `allowed`, which the help of the flag describes.
pub fn dtype<const N: usize>(
    allowed: &'static [Dtype; N],
) -> impl Fn(&str) -> Result<Dtype, String> + Clone + Send + Sync {
    |text| Dtype::parse(text, allowed)
}

/// Reads one of `allowed`, which clap lists in the help of the flag.
pub fn one_of<const N: usize>(allowed: &'static [Dtype; N]) -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(allowed.map(Dtype::name)).try_map(|text| Dtype::parse(&text, allowed))
}
