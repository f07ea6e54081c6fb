//! The text of a value, which is what labels and paths are compared by:
//!
//! | stored as | text |
//! |---|---|
//! | text, categories, bytes that are UTF-8 | as it is; none where it is empty |
//! | whole numbers, signed or not | `7`, `-7` |
//! | numbers with a fraction, decimals | the shortest form: `0.5`, and `7` for 7.0 and 7.00; none for NaN |
//! | true and false | `true`, `false` |
//! | dates, times | `2026-01-31`, `08:05:00`, `08:05:00.25` |
//! | dates with times | `2026-01-31T08:05:00`, with `Z` behind where they are in universal time |
//! | nothing | none |

use polars_arrow::array::{
    Array, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, Utf8ViewArray,
};
use polars_arrow::datatypes::{ArrowDataType, TimeUnit};
use polars_arrow::types::NativeType;

const SECONDS_IN_A_DAY: i64 = 86_400;
/// Digits of a fraction of a second in nanoseconds.
const NANO_DIGITS: u32 = 9;

/// Adds the text of every value of `array` to `texts`; the number of the first value that has none, and why.
pub(super) fn append(array: &dyn Array, texts: &mut Vec<Option<String>>) -> Result<(), (usize, String)> {
    use ArrowDataType as Type;
    match array.dtype() {
        Type::Null => texts.extend(std::iter::repeat_n(None, array.len())),
        Type::Utf8View => {
            let values = typed::<Utf8ViewArray>(array)?.iter();
            texts.extend(values.map(|value| value.map(str::to_owned)));
        }
        Type::BinaryView => utf8(typed::<BinaryViewArray>(array)?.iter(), texts)?,
        Type::FixedSizeBinary(_) => utf8(typed::<FixedSizeBinaryArray>(array)?.iter(), texts)?,
        Type::Boolean => {
            let values = typed::<BooleanArray>(array)?.iter();
            texts.extend(values.map(|value| value.map(|value| value.to_string())));
        }
        Type::Int8 => each(array, texts, |value: i8| Some(value.to_string()))?,
        Type::Int16 => each(array, texts, |value: i16| Some(value.to_string()))?,
        Type::Int32 => each(array, texts, |value: i32| Some(value.to_string()))?,
        Type::Int64 => each(array, texts, |value: i64| Some(value.to_string()))?,
        Type::UInt8 => each(array, texts, |value: u8| Some(value.to_string()))?,
        Type::UInt16 => each(array, texts, |value: u16| Some(value.to_string()))?,
        Type::UInt32 => each(array, texts, |value: u32| Some(value.to_string()))?,
        Type::UInt64 => each(array, texts, |value: u64| Some(value.to_string()))?,
        Type::Float32 => each(array, texts, |value: f32| {
            (!value.is_nan()).then(|| number(value.to_string()))
        })?,
        Type::Float64 => each(array, texts, |value: f64| {
            (!value.is_nan()).then(|| number(value.to_string()))
        })?,
        Type::Decimal(_, scale) => {
            let scale = *scale;
            each(array, texts, |value: i128| Some(decimal(value, scale)))?;
        }
        Type::Date32 => each(array, texts, |days: i32| Some(date(days.into())))?,
        Type::Time32(unit) => {
            let unit = *unit;
            each(array, texts, |value: i32| Some(time(value.into(), unit)))?;
        }
        Type::Time64(unit) => {
            let unit = *unit;
            each(array, texts, |value: i64| Some(time(value, unit)))?;
        }
        Type::Timestamp(unit, zone) => {
            let (unit, behind) = (*unit, if zone.is_some() { "Z" } else { "" });
            each(array, texts, |value: i64| {
                Some(date_and_time(value, unit) + behind)
            })?;
        }
        other => {
            return Err((
                texts.len(),
                format!("values of type {other:?}, which have no text"),
            ));
        }
    }
    Ok(())
}

/// The array as what its type says that it is.
fn typed<A: Array>(array: &dyn Array) -> Result<&A, (usize, String)> {
    let found = array.as_any().downcast_ref::<A>();
    found.ok_or_else(|| (0, format!("values that are no {:?}", array.dtype())))
}

fn each<T: NativeType>(
    array: &dyn Array,
    texts: &mut Vec<Option<String>>,
    text: impl Fn(T) -> Option<String>,
) -> Result<(), (usize, String)> {
    let values = typed::<PrimitiveArray<T>>(array)?.iter();
    texts.extend(values.map(|value| value.and_then(|value| text(*value))));
    Ok(())
}

fn utf8<'a>(
    values: impl Iterator<Item = Option<&'a [u8]>>,
    texts: &mut Vec<Option<String>>,
) -> Result<(), (usize, String)> {
    for value in values {
        let text = value.map(std::str::from_utf8).transpose();
        let text = text.map_err(|_| (texts.len(), "bytes that are not UTF-8".to_owned()))?;
        texts.push(text.map(str::to_owned));
    }
    Ok(())
}

/// A float's own text; there is one zero.
fn number(text: String) -> String {
    match text.as_str() {
        "-0" => "0".to_owned(),
        _ => text,
    }
}

/// `value / 10^scale`, without zeros at the end of its fraction.
fn decimal(value: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    let sign = if value < 0 { "-" } else { "" };
    match fraction.is_empty() {
        true => format!("{sign}{whole}"),
        false => format!("{sign}{whole}.{fraction}"),
    }
}

/// The date `days` after 1 January 1970, in the Gregorian calendar.
fn date(days: i64) -> String {
    // Years that begin in March have their leap day at the end; 400 of them are 146,097 days.
    let from_march = days + 719_468; // since 1 March of year 0
    let (era, day_of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months = (5 * day_of_year + 2) / 153; // since March
    let day = day_of_year - (153 * months + 2) / 5 + 1;
    let month = if months < 10 { months + 3 } else { months - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Units in a second.
fn a_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn time(value: i64, unit: TimeUnit) -> String {
    let per_second = a_second(unit);
    let (seconds, rest) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let text = format!("{hours:02}:{minutes:02}:{seconds:02}");
    match rest {
        0 => text,
        _ => {
            let nanos = rest * (10_i64.pow(NANO_DIGITS) / per_second);
            let digits = format!("{nanos:09}");
            format!("{text}.{}", digits.trim_end_matches('0'))
        }
    }
}

fn date_and_time(value: i64, unit: TimeUnit) -> String {
    let a_day = SECONDS_IN_A_DAY * a_second(unit);
    format!(
        "{}T{}",
        date(value.div_euclid(a_day)),
        time(value.rem_euclid(a_day), unit)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_484, "2026-01-31"),
            (-719_468, "0000-03-01"),
            (-25_509, "1900-02-28"),
            (-25_508, "1900-03-01"),
        ] {
            assert_eq!(date(days), expected);
        }
        assert_eq!(time(29_100_250, TimeUnit::Millisecond), "08:05:00.25");
        assert_eq!(time(1, TimeUnit::Nanosecond), "00:00:00.000000001");
        assert_eq!(
            date_and_time(-1, TimeUnit::Microsecond),
            "1969-12-31T23:59:59.999999"
        );
        assert_eq!(date_and_time(86_400, TimeUnit::Second), "1970-01-02T00:00:00");
    }

    #[test]
    fn numbers_have_one_form() {
        for (value, scale, expected) in [
            (150, 2, "1.5"),
            (100, 2, "1"),
            (-5, 2, "-0.05"),
            (7, 0, "7"),
            (0, 3, "0"),
        ] {
            assert_eq!(decimal(value, scale), expected);
        }
        let floats = PrimitiveArray::<f64>::from_slice([7.0, 0.5, f64::NAN, -0.0, 1e16]);
        let mut texts = Vec::new();
        append(&floats, &mut texts).unwrap();
        let expected = [Some("7"), Some("0.5"), None, Some("0"), Some("10000000000000000")];
        assert_eq!(texts, expected.map(|text| text.map(str::to_owned)));
    }
}
