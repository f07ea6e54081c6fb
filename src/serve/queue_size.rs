//! How many images may wait for a model: a number, or as many as it answers well before their requests are given up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;

/// The most places of `auto`: more hold memory, and nobody is answered sooner for them.
pub(super) const MOST: usize = 256;
/// The share of a request's time that the images before it may take. The rest is for decoding, and for a machine that has other work.
const SHARE: f64 = 0.5;
/// Runs of a model that are measured. The fastest counts: the first also prepares it, and others may be held up by something else.
const RUNS: usize = 4;

/// Images that wait for a model or are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueSize {
    /// As many; at least 1.
    Fixed(usize),
    /// Measured before the first request, for each model.
    Auto,
}

impl QueueSize {
    /// The most images that it can come to.
    pub(super) fn most(self) -> usize {
        match self {
            Self::Fixed(size) => size,
            Self::Auto => MOST,
        }
    }

    /// The number for a model, where requests are given up after `timeout`; `image` measures the time that one image takes it.
    ///
    /// # Errors
    /// What `image` says.
    pub(super) fn resolve(
        self,
        timeout: Duration,
        mut image: impl FnMut() -> Result<Duration>,
    ) -> Result<usize> {
        match self {
            Self::Fixed(size) => Ok(size),
            Self::Auto => {
                let mut fastest = image()?;
                for _ in 1..RUNS {
                    fastest = fastest.min(image()?);
                }
                let computed = SHARE * timeout.as_secs_f64() / fastest.as_secs_f64().max(1e-9);
                Ok((computed as usize).clamp(1, MOST))
            }
        }
    }
}

impl FromStr for QueueSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(size) => Ok(Self::Fixed(size)),
            Err(_) if text == "auto" => Ok(Self::Auto),
            Err(_) => Err(format!("expected a number or `auto`, found `{text}`")),
        }
    }
}

impl fmt::Display for QueueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for size in [QueueSize::Fixed(0), QueueSize::Fixed(16), QueueSize::Auto] {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for wrong in ["", "-1", "Auto", "1.5"] {
            let error = wrong.parse::<QueueSize>().unwrap_err();
            assert!(error.ends_with(&format!("found `{wrong}`")), "{error}");
        }
    }

    #[test]
    fn what_waits_is_answered_in_half_of_the_time() {
        let minute = Duration::from_secs(60);
        let auto = |image: u64| {
            let measured = QueueSize::Auto.resolve(minute, || Ok(Duration::from_millis(image)));
            measured.unwrap()
        };
        assert_eq!(auto(200), 150);
        assert_eq!(auto(1000), 30);
        // A fast model gets no more than it needs, and one that takes longer than there is still answers one by one.
        assert_eq!((auto(10), auto(0), auto(100_000)), (MOST, MOST, 1));
        // One run that is not held up is enough.
        let mut runs = [9000, 3000, 200, 5000].into_iter().map(Duration::from_millis);
        let held_up = QueueSize::Auto.resolve(minute, || Ok(runs.next().unwrap()));
        assert_eq!(held_up.unwrap(), 150);
        let fixed = QueueSize::Fixed(7).resolve(minute, || unreachable!("nothing is measured"));
        assert_eq!(fixed.unwrap(), 7);
    }
}
