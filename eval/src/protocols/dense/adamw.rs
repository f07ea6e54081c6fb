//! AdamW (Loshchilov and Hutter 2019) in torch's form.

/// The second momentum; the first is an argument of the step.
const SECOND: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The running means of one group of values.
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// What a step is taken with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub rate: f64,
    pub momentum: f64,
    pub decay: f64,
    /// Whether groups after the first decay as it does.
    pub decays_all: bool,
}

/// The state of one optimizer over groups of values; the first group decays, the others where that is asked for.
pub(crate) struct AdamW {
    groups: Vec<Moments>,
    steps: i32,
}

impl AdamW {
    pub(crate) fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let moments = |n: usize| Moments {
            first: vec![0.0; n],
            second: vec![0.0; n],
        };
        Self {
            groups: lengths.into_iter().map(moments).collect(),
            steps: 0,
        }
    }

    /// Moves the groups against their gradients.
    pub(crate) fn step(&mut self, groups: Vec<&mut Vec<f32>>, gradients: &[Vec<f32>], step: Step) {
        self.steps = self.steps.saturating_add(1);
        let all = groups.into_iter().zip(gradients).zip(&mut self.groups);
        for (place, ((values, gradient), moments)) in all.enumerate() {
            if place == 0 || step.decays_all {
                let shrink = (1.0 - step.rate * step.decay) as f32;
                values.iter_mut().for_each(|value| *value *= shrink);
            }
            moments.descend(values, gradient, step, self.steps);
        }
    }
}

impl Moments {
    fn descend(&mut self, values: &mut [f32], gradient: &[f32], step: Step, steps: i32) {
        let rate = (step.rate / (1.0 - step.momentum.powi(steps))) as f32;
        let correction = (1.0 / (1.0 - SECOND.powi(steps))) as f32;
        let (keep, keep_square) = (step.momentum as f32, SECOND as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = keep * *first + (1.0 - keep) * gradient;
            *second = keep_square * *second + (1.0 - keep_square) * gradient * gradient;
            *value -= rate * *first / ((*second * correction).sqrt() + EPSILON as f32);
        }
    }
}

/// Scales gradients whose norm, all of them together, is above `max` down to it (torch's `clip_grad_norm_`).
pub(crate) fn clip(gradients: &mut [Vec<f32>], max: f64) {
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let norm = gradients.iter().flatten().map(square).sum::<f64>().sqrt();
    let scale = (max / (norm + 1e-6)) as f32;
    if scale < 1.0 {
        gradients.iter_mut().flatten().for_each(|value| *value *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut weights, mut biases) = (vec![2.0], vec![1.0]);
        let mut optimizer = AdamW::new([1, 1]);
        let step = Step {
            rate: 0.1,
            momentum: 0.9,
            decay: 0.2,
            decays_all: false,
        };
        optimizer.step(vec![&mut weights, &mut biases], &[vec![0.5], vec![-0.1]], step);
        // 2 * (1 - 0.02), then one whole step down; the bias does not decay and goes up.
        assert!((weights[0] - 1.86).abs() < 1e-6 && (biases[0] - 1.1).abs() < 1e-6);
        optimizer.step(vec![&mut weights, &mut biases], &[vec![1.0], vec![-0.1]], step);
        // m = 0.045 + 0.1 over 1 - 0.81, v = 0.00024975 + 0.001 over 1 - 0.998001
        let (m, v): (f64, f64) = (0.145 / 0.19, (0.999 * 0.00025 + 0.001) / (1.0 - 0.998_001));
        let expected = 1.86 * 0.98 - 0.1 * m / v.sqrt();
        assert!(
            (f64::from(weights[0]) - expected).abs() < 1e-5,
            "{} {expected}",
            weights[0]
        );
    }

    #[test]
    fn the_clip_is_of_all_groups_together() {
        let mut gradients = vec![vec![3.0], vec![0.0, -4.0]];
        clip(&mut gradients, 6.0);
        assert_eq!(gradients, [vec![3.0], vec![0.0, -4.0]]);
        clip(&mut gradients, 1.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][1] + 0.8).abs() < 1e-6);
    }
}
