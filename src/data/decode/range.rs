//! Samples wider than 8 bits: how they become 8 bits, and how many of an image are lost on the way.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the samples of an image that has more than 8 bits each become. Images of 8 bits are left as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum SampleRange {
    /// What Pillow's `convert("RGB")` makes of them: grey of 16 bits, integers of 32 bits and floats are cut off below 0 and
    /// above 255; colour of 16 bits keeps its high byte. The default.
    #[default]
    Clip,
    /// The range of the samples' type becomes 0 to 255: 0 to the largest value of an integer type, signed or not, and 0 to 1
    /// of floats. It does not depend on what an image shows, so that images stay comparable.
    Auto,
    /// `low` to `high` become 0 to 255, whatever the type. Made by [`SampleRange::linear`].
    Linear {
        /// The value that becomes 0, as do those below.
        low: f64,
        /// The value that becomes 255, as do those above.
        high: f64,
    },
}

// Neither end of a range is NaN: `linear` refuses it.
impl Eq for SampleRange {}

impl SampleRange {
    /// The range from `low` to `high`.
    ///
    /// # Errors
    /// In words, when one is not finite or they are not in order.
    pub fn linear(low: f64, high: f64) -> Result<Self, String> {
        match (high - low).is_finite() && low < high {
            true => Ok(Self::Linear { low, high }),
            false => Err(format!(
                "expected auto, clip or two numbers LOW,HIGH with LOW below HIGH, found `{low},{high}`"
            )),
        }
    }

    /// Whether this is what Pillow does.
    pub fn is_clip(&self) -> bool {
        *self == Self::Clip
    }

    /// What becomes 0 and what 255 of a type whose samples go up to `max`.
    pub(super) fn ends(self, max: f64) -> Option<(f64, f64)> {
        match self {
            Self::Clip => None,
            Self::Auto => Some((0.0, max)),
            Self::Linear { low, high } => Some((low, high)),
        }
    }
}

impl fmt::Display for SampleRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clip => f.write_str("clip"),
            Self::Auto => f.write_str("auto"),
            Self::Linear { low, high } => write!(f, "{low},{high}"),
        }
    }
}

impl FromStr for SampleRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "clip" => return Ok(Self::Clip),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        let ends: Vec<Option<f64>> = text.split(',').map(|end| end.trim().parse().ok()).collect();
        match ends[..] {
            [Some(low), Some(high)] => Self::linear(low, high),
            _ => Err(format!(
                "expected auto, clip or two numbers LOW,HIGH, found `{text}`"
            )),
        }
    }
}

impl Serialize for SampleRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Linear { low, high } => (low, high).serialize(serializer),
            word => serializer.serialize_str(&word.to_string()),
        }
    }
}

/// Reads `"clip"`, `"auto"`, `[low, high]` or the text of a flag.
impl<'de> Deserialize<'de> for SampleRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"auto\", \"clip\" or [LOW, HIGH]")]
        enum Written {
            Ends(f64, f64),
            Text(String),
        }
        let read = match Written::deserialize(deserializer)? {
            Written::Ends(low, high) => Self::linear(low, high),
            Written::Text(text) => text.parse(),
        };
        read.map_err(serde::de::Error::custom)
    }
}

/// Turns the samples of one image into 8 bits and counts those that a cut-off loses.
pub(super) struct Narrow {
    ends: Option<(f64, f64)>,
    lost: u64,
    seen: u64,
}

impl Narrow {
    /// For samples of a type that goes up to `max`: 65,535 for 16 bits without a sign, 1 for floats.
    pub(super) fn new(range: SampleRange, max: f64) -> Self {
        Self {
            ends: range.ends(max),
            lost: 0,
            seen: 0,
        }
    }

    /// Whether samples are mapped, not treated as Pillow does.
    pub(super) fn maps(&self) -> bool {
        self.ends.is_some()
    }

    /// One sample: `(value - low) / (high - low) * 255`, to the nearest with halves up; without a range the whole part of the
    /// value. Both are cut off below 0 and above 255, and NaN becomes 0.
    pub(super) fn narrow(&mut self, value: f64) -> u8 {
        // NaN lies in no range.
        let (scaled, lost) = match self.ends {
            // A fraction between 0 and 1 becomes 0: floats from 0 to 1 would be a black image.
            None => (
                value,
                !(0.0..=255.0).contains(&value) || value > 0.0 && value < 1.0,
            ),
            Some((low, high)) => (
                ((value - low) / (high - low) * 255.0 + 0.5).floor(),
                !(low..=high).contains(&value),
            ),
        };
        self.seen += 1;
        self.lost += u64::from(lost);
        // `as` cuts off, and NaN becomes 0, as in Pillow's cast between its checks.
        scaled as u8
    }

    /// Whether more than half of the samples were lost.
    pub(super) fn lost_most(&self) -> bool {
        self.lost * 2 > self.seen
    }
}

/// Images of this process that lost most of their samples.
static LOST: Mutex<Lost> = Mutex::new(Lost {
    images: 0,
    first: None,
});

struct Lost {
    images: u64,
    /// The first by name, so that threads do not change it.
    first: Option<String>,
}

/// Notes that the image called `name` lost most of its samples.
pub(super) fn note(name: String) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.images += 1;
    if lost.first.as_ref().is_none_or(|first| name < *first) {
        lost.first = Some(name);
    }
}

/// What the user should know of the images read since the last call: how many lost more than half of their samples to a
/// cut-off, and which was the first. `None` where there were none.
pub fn take_notice() -> Option<String> {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    let first = lost.first.take()?;
    let images = std::mem::take(&mut lost.images);
    let times = match images {
        1 => "1 image".to_owned(),
        n => format!("{n} images"),
    };
    Some(format!(
        "more than half of the samples saturate in {times} of more than 8 bits a sample, the first {first}: \
         --sample-range auto or LOW,HIGH says what becomes black and what white"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_text_json_and_toml() {
        for (text, range) in [
            ("clip", SampleRange::Clip),
            ("auto", SampleRange::Auto),
            ("-1000, 400", SampleRange::linear(-1000.0, 400.0).unwrap()),
        ] {
            assert_eq!(text.parse(), Ok(range));
            let json = serde_json::to_string(&range).unwrap();
            assert_eq!(
                serde_json::from_str::<SampleRange>(&json).unwrap(),
                range,
                "{json}"
            );
        }
        assert_eq!(serde_json::to_string(&SampleRange::Auto).unwrap(), r#""auto""#);
        let whole: SampleRange = serde_json::from_str("[0, 4095]").unwrap();
        assert_eq!(whole, SampleRange::linear(0.0, 4095.0).unwrap());
        for wrong in ["", "1", "5,5", "9,1", "0,inf", "nan,1", "0,1,2", "full"] {
            let error = wrong.parse::<SampleRange>().unwrap_err();
            assert!(
                error.starts_with("expected auto, clip or two numbers LOW,HIGH"),
                "{error}"
            );
        }
        for wrong in ["[1, 0]", "\"full\"", "[1]", "7"] {
            assert!(serde_json::from_str::<SampleRange>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn halves_are_rounded_up_and_the_ends_are_kept() {
        let mut narrow = Narrow::new(SampleRange::linear(0.0, 510.0).unwrap(), 65535.0);
        let bytes = [0.0, 1.0, 2.0, 3.0, 509.0, 510.0, 511.0, -1.0, f64::NAN].map(|v| narrow.narrow(v));
        assert_eq!(bytes, [0, 1, 1, 2, 255, 255, 255, 0, 0]);
        assert_eq!((narrow.lost, narrow.seen), (3, 9));
        let mut auto = Narrow::new(SampleRange::Auto, 65535.0);
        for value in 0..=u16::MAX {
            let nearest = (f64::from(value) / 257.0).round() as u8;
            assert_eq!(auto.narrow(f64::from(value)), nearest);
        }
        assert!(!auto.lost_most());
    }

    #[test]
    fn what_pillow_loses_is_counted() {
        let of = |values: &[f64]| {
            let mut narrow = Narrow::new(SampleRange::Clip, 1.0);
            let bytes: Vec<u8> = values.iter().map(|&value| narrow.narrow(value)).collect();
            (bytes, narrow.lost_most())
        };
        assert_eq!(of(&[0.0, 1.0, 254.9, 255.0]), (vec![0, 1, 254, 255], false));
        assert_eq!(of(&[-1.0, 256.0, 5.0, 6.0]), (vec![0, 255, 5, 6], false)); // a half is not more than half
        assert_eq!(of(&[-1.0, 256.0, 5.0]), (vec![0, 255, 5], true));
        assert_eq!(of(&[0.25, 0.5, 1.0]), (vec![0, 0, 1], true));
        assert_eq!(of(&[f64::NAN, f64::INFINITY, 3.0]), (vec![0, 255, 3], true));
    }
}
