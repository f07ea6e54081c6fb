//! Images of any number of bands: microscopy of one 16-bit channel, satellites of thirteen, floats. Values are f32 from 0 to 1, scaled
//! by a stated range and never rounded to levels. The image is in [`image`], how files become one in `data/decode/bands`, its
//! resize in [`resize`], the mean and deviation of a source in [`statistics`]. Nothing here knows colours.

mod image;
mod resize;
mod statistics;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use image::BandImage;
pub use resize::resize_window;
pub use statistics::{BandStatistics, measure};

/// The most bands of an image.
const MAX_BANDS: usize = 1024;

/// Which bands the images of a source have. Written as `5`, or as `5,first` where arrays of three axes have their bands in the first:
/// `[band, row, column]` in place of `[row, column, band]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    count: usize,
    first: bool,
}

impl Bands {
    /// How many.
    pub fn count(self) -> usize {
        self.count
    }

    /// Whether arrays have them in their first axis.
    pub fn is_first(self) -> bool {
        self.first
    }

    /// `count` bands, in the last axis of arrays.
    ///
    /// # Errors
    /// In words, when there are none or more than 1024.
    pub fn new(count: usize) -> Result<Self, String> {
        match count {
            1..=MAX_BANDS => Ok(Self { count, first: false }),
            _ => Err(format!("expected 1 to {MAX_BANDS} bands, found {count}")),
        }
    }
}

impl fmt::Display for Bands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = if self.first { ",first" } else { "" };
        write!(f, "{}{first}", self.count)
    }
}

impl FromStr for Bands {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, first) = match text.split_once(',') {
            Some((count, "first")) => (count, true),
            Some(_) => ("", false),
            None => (text, false),
        };
        let count = count
            .trim()
            .parse()
            .map_err(|_| format!("expected a number of bands, or N,first, found `{text}`"))?;
        Ok(Self {
            first,
            ..Self::new(count)?
        })
    }
}

impl Serialize for Bands {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.first {
            true => serializer.serialize_str(&self.to_string()),
            false => self.count.serialize(serializer),
        }
    }
}

/// Reads a number or the text of the flag.
impl<'de> Deserialize<'de> for Bands {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of bands, or \"N,first\"")]
        enum Written {
            Count(usize),
            Text(String),
        }
        let read = match Written::deserialize(deserializer)? {
            Written::Count(count) => Self::new(count),
            Written::Text(text) => text.parse(),
        };
        read.map_err(serde::de::Error::custom)
    }
}

/// Channels of images of `bands`: 3 where they are pictures.
pub fn channels(bands: Option<Bands>) -> usize {
    bands.map_or(3, Bands::count)
}

/// Adds `weight` times `values` to `sums`.
pub(super) fn add_weighted(sums: &mut [f32], values: &[f32], weight: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += weight * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_read_from_text_json_and_numbers() {
        for (text, count, first, json) in [("5", 5, false, "5"), ("13,first", 13, true, "\"13,first\"")] {
            let bands: Bands = text.parse().unwrap();
            assert_eq!((bands.count(), bands.is_first()), (count, first));
            assert_eq!(serde_json::to_string(&bands).unwrap(), json);
            assert_eq!(serde_json::from_str::<Bands>(json).unwrap(), bands);
        }
        for wrong in ["0", "1025", "", "5,last", "5,", "-1", "1.5", "rgb"] {
            assert!(
                wrong.parse::<Bands>().unwrap_err().starts_with("expected "),
                "{wrong}"
            );
        }
        assert!(serde_json::from_str::<Bands>("0").is_err());
    }
}
