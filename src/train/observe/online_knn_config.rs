//! Settings of online k-NN.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One image of this many is a query, the others are the bank.
pub(super) const QUERY_SHARE: usize = 6;

/// Settings of online k-NN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineKnnConfig {
    /// Labelled source of images, as [`open`](crate::data::open) reads it.
    pub data: String,
    /// The most images that are used, drawn at random without regard to class; 6,000 by default, at least 12.
    #[serde(default = "default_max_images")]
    pub max_images: usize,
    /// Number of neighbours, 20 by default; the whole bank where that is smaller.
    #[serde(default = "default_k")]
    pub k: usize,
    /// Steps from one evaluation to the next, at least 1.
    pub every: u64,
    /// Temperature of the votes, above 0; 0.07 by default.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
}

fn default_max_images() -> usize {
    6_000
}

fn default_k() -> usize {
    20
}

fn default_temperature() -> f64 {
    0.07
}

impl OnlineKnnConfig {
    /// `data` every `every` steps, the rest by default.
    pub fn new(data: impl Into<String>, every: u64) -> Self {
        Self {
            data: data.into(),
            max_images: default_max_images(),
            k: default_k(),
            every,
            temperature: default_temperature(),
        }
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        let wrong = |name: &str, expected: &str, found: String| {
            let reason = format!("expected {expected}, found {found}");
            Err(Error::input(format!("online_knn.{name}"), reason))
        };
        let min = 2 * QUERY_SHARE;
        if self.max_images < min {
            return wrong(
                "max_images",
                &format!("at least {min}"),
                self.max_images.to_string(),
            );
        }
        if self.k == 0 {
            return wrong("k", "at least 1", self.k.to_string());
        }
        if self.every == 0 {
            return wrong("every", "at least 1", self.every.to_string());
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return wrong("temperature", "a number above 0", self.temperature.to_string());
        }
        Ok(())
    }
}
