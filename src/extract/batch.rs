//! How many images a run of the model takes: a number, or the smallest that is about as fast as any.

use std::str::FromStr;
use std::time::{Duration, Instant};

use super::model::FeatureModel;
use crate::{Error, Result};

/// Sizes that `auto` tries, in this order.
const TRIED: [usize; 6] = [4, 8, 16, 32, 64, 128];
/// No larger size is tried after a run that took this long.
const LONG: Duration = Duration::from_secs(2);
/// A size is about as fast as the fastest from this share of its rate on.
const AS_GOOD: f64 = 0.97;

/// Images per run of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// As many; at least 1.
    Fixed(usize),
    /// Measured before the first image is read.
    Auto,
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(size) if size > 0 => Ok(Self::Fixed(size)),
            _ if text == "auto" => Ok(Self::Auto),
            _ => Err(format!("expected a number above 0 or `auto`, found `{text}`")),
        }
    }
}

impl BatchSize {
    /// The number for commands that do not measure it.
    ///
    /// # Errors
    /// `auto`.
    pub fn fixed(self) -> Result<usize> {
        match self {
            Self::Fixed(size) => Ok(size),
            Self::Auto => Err(Error::setting("batch", "expected a number here, found `auto`")),
        }
    }

    /// The number for `model`, whose images have `image_len` values.
    ///
    /// # Errors
    /// What the model says; a size of 0.
    pub(crate) fn resolve(self, model: &mut dyn FeatureModel, image_len: usize) -> Result<usize> {
        match self {
            Self::Fixed(0) => Err(Error::input("batch", "expected at least 1, found 0")),
            Self::Fixed(size) => Ok(size),
            Self::Auto => measured(model, image_len),
        }
    }
}

/// The time of a run of `model` for `size` black images of `image_len` values. The first run of a model also prepares it.
///
/// # Errors
/// What the model says.
pub(crate) fn time_of_run(model: &mut dyn FeatureModel, image_len: usize, size: usize) -> Result<Duration> {
    let mut outputs = vec![Vec::new(); model.outputs().len()];
    let pixels = vec![0.; size * image_len]; // [size, 3, H, W]
    let start = Instant::now();
    model.run(&pixels, size, &mut outputs)?;
    Ok(start.elapsed())
}

fn measured(model: &mut dyn FeatureModel, image_len: usize) -> Result<usize> {
    time_of_run(model, image_len, 1)?;
    let mut rates = Vec::new();
    for size in TRIED {
        let took = time_of_run(model, image_len, size)?;
        rates.push((size, size as f64 / took.as_secs_f64().max(1e-9)));
        if took > LONG {
            break;
        }
    }
    let size = smallest_good(&rates);
    tracing::info!("batch auto: {size} images");
    Ok(size)
}

/// The smallest size that is about as fast as the fastest of `rates`.
fn smallest_good(rates: &[(usize, f64)]) -> usize {
    let best = rates.iter().map(|(_, rate)| *rate).fold(0., f64::max);
    let good = rates.iter().find(|(_, rate)| *rate >= AS_GOOD * best);
    good.map_or(1, |(size, _)| *size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::OutputSpec;

    #[test]
    fn sizes_are_read_or_quoted() {
        assert_eq!("16".parse(), Ok(BatchSize::Fixed(16)));
        assert_eq!("auto".parse(), Ok(BatchSize::Auto));
        for wrong in ["0", "-1", "Auto", "", "1.5"] {
            let error = wrong.parse::<BatchSize>().unwrap_err();
            assert!(error.ends_with(&format!("found `{wrong}`")), "{error}");
        }
        assert_eq!(BatchSize::Fixed(3).fixed().unwrap(), 3);
        assert!(
            BatchSize::Auto
                .fixed()
                .unwrap_err()
                .to_string()
                .contains("`auto`")
        );
    }

    #[test]
    fn of_sizes_as_fast_the_smallest_is_taken() {
        assert_eq!(smallest_good(&[(4, 50.), (8, 98.), (16, 100.), (32, 90.)]), 8);
        assert_eq!(smallest_good(&[(4, 1.)]), 4);
        assert_eq!(smallest_good(&[]), 1);
    }

    /// Takes `time` for a run of a size.
    struct Slow {
        sizes: Vec<usize>,
        spec: Vec<OutputSpec>,
        time: fn(usize) -> u64,
    }

    impl Slow {
        /// `time` in milliseconds.
        fn new(time: fn(usize) -> u64) -> Self {
            let spec = vec![OutputSpec {
                name: "cls".to_owned(),
                shape: vec![3],
            }];
            Self {
                sizes: Vec::new(),
                spec,
                time,
            }
        }
    }

    impl FeatureModel for Slow {
        fn outputs(&self) -> &[OutputSpec] {
            &self.spec
        }

        fn describe(&self) -> serde_json::Value {
            serde_json::Value::Null
        }

        fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
            assert_eq!((pixels.len(), outputs.len()), (n * 12, 1));
            assert!(outputs[0].is_empty(), "outputs of the run before");
            outputs[0].resize(n * 3, 1.);
            self.sizes.push(n);
            std::thread::sleep(Duration::from_millis((self.time)(n)));
            Ok(())
        }
    }

    #[test]
    fn a_model_with_a_fixed_cost_gets_the_largest() {
        let mut model = Slow::new(|_| 20);
        assert_eq!(BatchSize::Auto.resolve(&mut model, 12).unwrap(), 128);
        assert_eq!(model.sizes, [1, 4, 8, 16, 32, 64, 128]);
        assert_eq!(BatchSize::Fixed(5).resolve(&mut model, 12).unwrap(), 5);
    }

    #[test]
    fn a_model_that_takes_longer_for_more_gets_no_more() {
        // 4, 8 and 16 images in 30 ms, 64 in 200: the rate falls beyond 16.
        let mut model = Slow::new(|size| if size <= 16 { 30 } else { size as u64 * 25 / 8 });
        assert_eq!(BatchSize::Auto.resolve(&mut model, 12).unwrap(), 16);
    }

    #[test]
    fn after_a_long_run_no_larger_one_is_tried() {
        let mut model = Slow::new(|size| if size == 4 { 2_010 } else { 0 });
        assert_eq!(BatchSize::Auto.resolve(&mut model, 12).unwrap(), 4);
        assert_eq!(model.sizes, [1, 4]);
    }
}
