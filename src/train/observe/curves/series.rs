//! The numbers of one curve: taken out of the log, smoothed, and thinned to what a panel can show.

use serde_json::{Map, Value};

use crate::train::observe::keys;

/// What follows a schedule.
const SCHEDULES: [&str; 2] = [keys::LR, keys::WEIGHT_DECAY];
/// Fewer points than this are drawn one by one.
const FEW: usize = 30;
/// The moving average reaches this share of the points to either side.
const REACH: f64 = 0.01;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Step and value, by step; finite.
    pub points: Vec<(f64, f64)>,
    /// Step, lower and upper end of the interval, where there is one.
    pub band: Vec<(f64, f64, f64)>,
    /// Whether it was measured, and so has noise to smooth; a schedule has none.
    pub noisy: bool,
}

impl Series {
    /// The values of `key`. Lines without it, and values that are no finite number, are passed over.
    pub fn from_metrics(metrics: &[Map<String, Value>], key: &str, name: String) -> Self {
        let number = |line: &Map<String, Value>, key: &str| {
            let value = line.get(key).and_then(Value::as_f64);
            value.filter(|value| value.is_finite())
        };
        let points = metrics
            .iter()
            .filter_map(|line| Some((number(line, keys::STEP)?, number(line, key)?)))
            .collect();
        let mut band = Vec::new();
        if key == keys::KNN_TOP1 {
            band.extend(metrics.iter().filter_map(|line| {
                let (low, high) = (number(line, keys::KNN_LOW)?, number(line, keys::KNN_HIGH)?);
                Some((number(line, keys::STEP)?, low, high))
            }));
        }
        Self {
            name,
            points,
            band,
            noisy: !SCHEDULES.contains(&key),
        }
    }

    /// The last step with a value, and the value.
    pub fn last(&self) -> Option<(f64, f64)> {
        self.points.last().copied()
    }

    /// Whether there are so few points that each should be seen.
    pub fn is_sparse(&self) -> bool {
        self.points.len() < FEW
    }

    /// Whether [`Series::smoothed`] differs from the points.
    pub fn is_smoothed(&self) -> bool {
        self.noisy && !self.is_sparse()
    }

    /// The mean over points before and after, twice, so that near ones weigh more and the curve does not lag; the points
    /// themselves where there is nothing to smooth.
    pub fn smoothed(&self) -> Vec<(f64, f64)> {
        if !self.is_smoothed() {
            return self.points.clone();
        }
        let reach = (self.points.len() as f64 * REACH).ceil() as usize;
        let values: Vec<f64> = self.points.iter().map(|point| point.1).collect();
        let means = moving_mean(&moving_mean(&values, reach), reach);
        let steps = self.points.iter().map(|point| point.0);
        steps.zip(means).collect()
    }
}

/// Means over each value and up to `reach` values on either side, fewer at the ends.
fn moving_mean(values: &[f64], reach: usize) -> Vec<f64> {
    let mut sums = Vec::with_capacity(values.len() + 1);
    let mut sum = 0.0;
    sums.push(sum);
    for value in values {
        sum += value;
        sums.push(sum);
    }
    (0..values.len())
        .map(|place| {
            let first = place.saturating_sub(reach);
            let end = (place + reach + 1).min(values.len());
            (sums[end] - sums[first]) / (end - first) as f64
        })
        .collect()
}

/// At most about `2 * buckets` of the points: the lowest and the highest of each of `buckets` runs of points, in order, so
/// that peaks stay.
pub fn thinned(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let mut thinned = Vec::with_capacity(2 * buckets + 1);
    for run in points.chunks(points.len().div_ceil(buckets)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = run.iter().min_by(by_value).zip(run.iter().max_by(by_value));
        let Some((low, high)) = ends else { continue };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        thinned.push(*first);
        if second != first {
            thinned.push(*second);
        }
    }
    // The curve ends where the run stands.
    thinned.extend(points.last().filter(|last| thinned.last() != Some(*last)));
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of_values(values: impl Iterator<Item = f64>) -> Series {
        Series {
            name: String::new(),
            points: (1..).map(f64::from).zip(values).collect(),
            band: Vec::new(),
            noisy: true,
        }
    }

    #[test]
    fn what_is_no_number_is_passed_over() {
        let lines = [
            json!({"step": 1, "loss": 2.0}),
            json!({"step": 2, "loss": null}),
            json!({"step": 3, "lr": 1.0}),
            json!({"loss": 3.0}),
            json!({"step": 5, "loss": 4}),
        ];
        let lines: Vec<_> = lines
            .iter()
            .map(|line| line.as_object().expect("an object").clone())
            .collect();
        let series = Series::from_metrics(&lines, "loss", "total".to_owned());
        assert_eq!(series.points, [(1.0, 2.0), (5.0, 4.0)]);
        assert_eq!(series.last(), Some((5.0, 4.0)));
    }

    #[test]
    fn smoothing_keeps_a_constant_and_calms_noise() {
        let constant = of_values(std::iter::repeat_n(3.0, 100));
        assert!(
            constant
                .smoothed()
                .iter()
                .all(|point| (point.1 - 3.0).abs() < 1e-12)
        );
        let noisy = of_values((0..1000).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }));
        let smoothed = noisy.smoothed();
        assert!(smoothed[50..950].iter().all(|point| point.1.abs() < 0.1));
        // A straight line stays where it is, but for the ends.
        let line = of_values((0..200).map(f64::from));
        let (smoothed, points) = (line.smoothed(), &line.points);
        assert!((10..190).all(|i| (smoothed[i].1 - points[i].1).abs() < 1e-9));
        assert!(smoothed[199].1 > 196.0);
        let schedule = Series {
            noisy: false,
            ..noisy.clone()
        };
        assert_eq!(schedule.smoothed(), noisy.points);
        let few = of_values((0..5).map(f64::from));
        assert_eq!(few.smoothed(), few.points);
    }

    #[test]
    fn thinning_keeps_peaks_and_the_last_point() {
        let mut values = vec![0.0; 10_000];
        values[1234] = 9.0;
        values[8765] = -9.0;
        let series = of_values(values.into_iter());
        let thin = thinned(&series.points, 100);
        assert!(thin.len() <= 201, "{}", thin.len());
        assert!(thin.contains(&(1235.0, 9.0)) && thin.contains(&(8766.0, -9.0)));
        assert_eq!(thin.last(), series.points.last());
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
