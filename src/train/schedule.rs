//! Values that follow the iteration: learning rate, weight decay, teacher momentum, teacher temperature
//! (facebookresearch/dinov2 `utils/utils.py` `CosineScheduler`, and how `train/train.py` uses it).

use std::f64::consts::PI;

/// Zeros, a linear warm-up, half a cosine wave from `base` to `last`, then `last` for ever.
///
/// The warm-up includes both its ends, so `base` is taken twice: by the last warm-up iteration and by the first of the
/// cosine. Iteration 0 of a warm-up from 0 has value 0. The cosine itself never reaches `last`; iteration `total` does.
#[derive(Debug, Clone, PartialEq)]
pub struct CosineSchedule {
    /// Value at the end of the warm-up and the start of the cosine.
    pub base: f64,
    /// Value from iteration `total` on.
    pub last: f64,
    /// Iterations before `last`: frozen, warm-up and cosine together.
    pub total: usize,
    /// Iterations of the warm-up.
    pub warmup: usize,
    /// Value of the first warm-up iteration.
    pub warmup_start: f64,
    /// Iterations of value 0 before the warm-up, which they push back (`freeze_iters` of the reference class).
    pub frozen: usize,
    /// Iterations whose value is replaced by 0, the rest staying where it is: how `train.py` holds the last layer of a
    /// head still (`freeze_last_layer_epochs`).
    pub zeroed: usize,
}

impl CosineSchedule {
    /// A cosine from `base` to `last` over `total` iterations, without warm-up.
    pub fn new(base: f64, last: f64, total: usize) -> Self {
        Self {
            base,
            last,
            total,
            warmup: 0,
            warmup_start: 0.,
            frozen: 0,
            zeroed: 0,
        }
    }

    /// The same with a warm-up from `start` over the first `iterations` of `total`.
    pub fn with_warmup(self, start: f64, iterations: usize) -> Self {
        Self {
            warmup: iterations,
            warmup_start: start,
            ..self
        }
    }

    /// The teacher's temperature: linear from `start` to `end` over `warmup` iterations, then constant.
    pub fn teacher_temperature(start: f64, end: f64, warmup: usize) -> Self {
        Self::new(end, end, warmup).with_warmup(start, warmup)
    }

    /// The value at `iteration`, counted from 0.
    pub fn value(&self, iteration: usize) -> f64 {
        if iteration < self.zeroed {
            return 0.;
        }
        if iteration >= self.total {
            return self.last;
        }
        let Some(since_frozen) = iteration.checked_sub(self.frozen) else {
            return 0.;
        };
        match since_frozen.checked_sub(self.warmup) {
            None => self.warmup_value(since_frozen),
            Some(i) => self.cosine_value(i),
        }
    }

    /// `numpy.linspace(warmup_start, base, warmup)[i]`.
    fn warmup_value(&self, i: usize) -> f64 {
        if self.warmup == 1 {
            return self.warmup_start;
        }
        if i + 1 == self.warmup {
            return self.base;
        }
        let step = (self.base - self.warmup_start) / (self.warmup - 1) as f64;
        i as f64 * step + self.warmup_start
    }

    fn cosine_value(&self, i: usize) -> f64 {
        let length = self.total.saturating_sub(self.frozen + self.warmup);
        let wave = 1. + (PI * i as f64 / length as f64).cos();
        self.last + 0.5 * (self.base - self.last) * wave
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::fixture_path;

    fn golden() -> serde_json::Value {
        let text = std::fs::read_to_string(fixture_path("schedules.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn count(args: &serde_json::Value, name: &str) -> usize {
        args[name].as_u64().unwrap_or(0) as usize
    }

    fn from_arguments(args: &serde_json::Value) -> CosineSchedule {
        CosineSchedule {
            base: args["base_value"].as_f64().unwrap(),
            last: args["final_value"].as_f64().unwrap(),
            total: count(args, "total_iters"),
            warmup: count(args, "warmup_iters"),
            warmup_start: args["start_warmup_value"].as_f64().unwrap_or(0.),
            frozen: count(args, "freeze_iters"),
            zeroed: 0,
        }
    }

    fn assert_relative(what: &str, found: f64, expected: f64, tolerance: f64) {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * expected.abs(),
            "{what}: found {found}, expected {expected}"
        );
    }

    #[test]
    fn golden_values() {
        let golden = golden();
        let schedules = golden.as_object().unwrap();
        assert_eq!(schedules.len(), 5);
        for (name, entry) in schedules {
            let schedule = from_arguments(&entry["args"]);
            let values = entry["values"].as_array().unwrap();
            assert_eq!(values.len(), 110, "{name}");
            for (i, value) in values.iter().enumerate() {
                assert_relative(
                    &format!("{name}[{i}]"),
                    schedule.value(i),
                    value.as_f64().unwrap(),
                    1e-12,
                );
            }
        }
    }

    #[test]
    fn teacher_temperature_is_the_reference_use_of_the_class() {
        let golden = golden();
        let schedule = CosineSchedule::teacher_temperature(0.04, 0.07, 30);
        assert_eq!(schedule, from_arguments(&golden["teacher_temp"]["args"]));
        assert_eq!(schedule.value(29), 0.07);
        assert_eq!(schedule.value(1_000_000), 0.07);
    }

    #[test]
    fn spot_values() {
        let lr = CosineSchedule::new(1., 1e-6, 20).with_warmup(0., 5);
        let expected = [
            (1, 0.25),
            (2, 0.5),
            (3, 0.75),
            (4, 1.),
            (5, 1.),
            (12, 0.552265),
            (19, 0.010927),
        ];
        for (i, value) in expected {
            assert_relative(&format!("lr[{i}]"), lr.value(i), value, 5e-5);
        }
        assert_eq!(lr.value(0), 0.);
        assert_eq!(lr.value(20), 1e-6);
        let decay = CosineSchedule::new(0.04, 0.4, 10);
        for (i, value) in [(0, 0.04), (1, 0.04881), (5, 0.22), (9, 0.39119)] {
            assert_relative(&format!("wd[{i}]"), decay.value(i), value, 1e-5);
        }
        let momentum = CosineSchedule::new(0.992, 1., 10);
        for (i, value) in [(0, 0.992), (5, 0.996), (9, 0.999804), (10, 1.)] {
            assert_relative(&format!("momentum[{i}]"), momentum.value(i), value, 1e-6);
        }
    }

    #[test]
    fn zeroed_iterations_leave_the_rest_in_place() {
        let plain = CosineSchedule::new(1., 0.1, 20).with_warmup(0., 5);
        let zeroed = CosineSchedule {
            zeroed: 3,
            ..plain.clone()
        };
        for i in 0..25 {
            let expected = if i < 3 { 0. } else { plain.value(i) };
            assert_eq!(zeroed.value(i), expected, "{i}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(CosineSchedule::new(1., 0.5, 0).value(0), 0.5);
        let one = CosineSchedule::new(1., 0.5, 4).with_warmup(0.2, 1);
        assert_eq!((one.value(0), one.value(1)), (0.2, 1.));
    }
}
