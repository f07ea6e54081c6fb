//! L-BFGS (Nocedal and Wright, Algorithm 7.5) with a preconditioner as its initial matrix, and a line search on the
//! Wolfe conditions in the form of Hager and Zhang (2005, equations 2.2 to 2.4), which survives rounding near the
//! minimum.

use super::objective::Objective;
use super::precondition::{Gram, Preconditioner, can_be_per_class, dot, per_class};
use super::softmax::LossSlope;
use std::collections::VecDeque;

/// Pairs of steps and gradient changes that are kept.
const MEMORY: usize = 10;
/// Sufficient decrease, as a share of the slope at the start.
const DECREASE: f64 = 1e-4;
/// Share of the slope at the start that may be left.
const CURVATURE: f64 = 0.9;
/// Relative rounding error granted to the objective.
const ROUNDING: f64 = 1e-9;
/// Probes of one line search; each is a sweep over the logits alone.
const MAX_PROBES: usize = 40;
/// Steps after which the logits are computed afresh, against the drift of adding to them.
const REFRESH: usize = 30;
/// The preconditioner is factored again when the curvature has changed by this factor.
const REFACTOR: f64 = 1.5;

/// Iterations after which a fit counts as hard and each class gets its own preconditioner, renewed as often.
const PATIENCE: usize = 60;

/// `penalty / 2 |W|^2 + c * loss` and how long to work on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub c: f64,
    pub penalty: f64,
    pub max_iterations: usize,
    /// Stops when the decrease that the next step promises is below this share of the objective.
    pub tolerance: f64,
}

/// Where the minimisation ended.
#[derive(Debug, Clone)]
pub(super) struct Minimum {
    pub parameters: Vec<f64>,
    pub objective: f64,
    pub iterations: usize,
    pub converged: bool,
}

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    inverse_curvature: f64,
}

/// The objective along a direction: `value(t)` and `slope(t)` with the penalty's part, a parabola in t.
struct Line {
    c: f64,
    penalty: f64,
    weight_weight: f64,
    weight_direction: f64,
    direction_direction: f64,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    t: f64,
    value: f64,
    slope: f64,
}

impl Line {
    fn at(&self, t: f64, loss: LossSlope) -> Probe {
        let square = self.weight_weight + t * (2.0 * self.weight_direction + t * self.direction_direction);
        Probe {
            t,
            value: 0.5 * self.penalty * square + self.c * loss.loss,
            slope: self.penalty * (self.weight_direction + t * self.direction_direction)
                + self.c * loss.slope,
        }
    }
}

/// What a line search on a convex function concludes from one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    TooShort,
    TooLong,
}

fn judge(start: Probe, probe: Probe) -> Verdict {
    let enough = probe.value <= start.value + DECREASE * probe.t * start.slope;
    let level = probe.value <= start.value + ROUNDING * start.value.abs();
    let flat = probe.slope <= (2.0 * 0.1 - 1.0) * start.slope;
    if probe.slope.is_finite() && probe.slope < CURVATURE * start.slope {
        Verdict::TooShort
    } else if enough || (level && flat) {
        Verdict::Accept
    } else {
        Verdict::TooLong
    }
}

/// The next step to try between `low` (too short) and `high` (too long): where the line through both slopes is zero.
fn next_step(low: Probe, high: Option<Probe>) -> f64 {
    let Some(high) = high else {
        return if low.t == 0.0 { 1.0 } else { 4.0 * low.t };
    };
    let width = high.t - low.t;
    let secant = low.t + width * low.slope / (low.slope - high.slope);
    if secant.is_finite() {
        secant.clamp(low.t + 0.05 * width, high.t - 0.05 * width)
    } else {
        low.t + 0.1 * width
    }
}

/// Minimises from `parameters`; `gram` holds the second moments of the objective's features.
pub(super) fn minimise(
    objective: &mut Objective<'_>,
    gram: &Gram,
    goal: Goal,
    parameters: Vec<f64>,
) -> Minimum {
    let mut search = Search::start(objective, gram, goal, parameters);
    let mut converged = false;
    let mut iterations = 0;
    while iterations < goal.max_iterations {
        let slope = search.aim();
        if -0.5 * slope <= goal.tolerance * search.value.abs() {
            converged = true;
            break;
        }
        if !search.step(slope) {
            // Rounding hides any further decrease: try once more along the preconditioned gradient, then stop.
            if search.memory.is_empty() {
                converged = search.is_at_rounding(slope);
                break;
            }
            search.memory.clear();
            search.refresh();
            continue;
        }
        iterations += 1;
        let hard = iterations % PATIENCE == 0;
        if hard || iterations % REFRESH == 0 {
            search.refresh();
        }
        if hard {
            search.precondition_per_class();
        }
    }
    search.refresh();
    Minimum {
        parameters: search.parameters,
        objective: search.value,
        iterations,
        converged,
    }
}

struct Search<'s, 'a> {
    objective: &'s mut Objective<'a>,
    gram: &'s Gram,
    goal: Goal,
    preconditioner: Preconditioner,
    factored_spread: f64,
    memory: VecDeque<Pair>,
    parameters: Vec<f64>,
    gradient: Vec<f64>,
    next_gradient: Vec<f64>,
    direction: Vec<f64>,
    value: f64,
    spread: f64,
    /// Step by which the logits still lag behind the parameters.
    pending: f32,
}

impl<'s, 'a> Search<'s, 'a> {
    fn start(objective: &'s mut Objective<'a>, gram: &'s Gram, goal: Goal, parameters: Vec<f64>) -> Self {
        let n = parameters.len();
        let mut search = Self {
            objective,
            gram,
            goal,
            preconditioner: Preconditioner::Diagonal(Vec::new()),
            factored_spread: 0.0,
            memory: VecDeque::with_capacity(MEMORY),
            parameters,
            gradient: vec![0.0; n],
            next_gradient: vec![0.0; n],
            direction: vec![0.0; n],
            value: 0.0,
            spread: 0.0,
            pending: 0.0,
        };
        search.refresh();
        search
    }

    fn n_weights(&self) -> usize {
        self.objective.classes() * self.objective.features().dim()
    }

    /// Value, gradient and logits afresh at the parameters.
    fn refresh(&mut self) {
        let total = self.objective.restart(&self.parameters, &mut self.gradient);
        let weights = self.n_weights();
        let squares = dot(&self.parameters[..weights], &self.parameters[..weights]);
        self.value = 0.5 * self.goal.penalty * squares + self.goal.c * total.loss;
        self.spread = total.spread;
        self.pending = 0.0;
        finish_gradient(&mut self.gradient, &self.parameters[..weights], self.goal);
    }

    /// Points the direction downhill; the slope along it.
    fn aim(&mut self) -> f64 {
        self.factor_if_stale();
        self.direction.copy_from_slice(&self.gradient);
        two_loops(&mut self.direction, &self.memory, &self.preconditioner);
        let mut slope = dot(&self.direction, &self.gradient);
        if slope.is_nan() || slope >= 0.0 {
            self.memory.clear();
            self.direction.copy_from_slice(&self.gradient);
            two_loops(&mut self.direction, &self.memory, &self.preconditioner);
            slope = dot(&self.direction, &self.gradient);
        }
        slope
    }

    /// Gives each class its own preconditioner at the present logits, which [`Search::refresh`] has just set.
    fn precondition_per_class(&mut self) {
        if can_be_per_class(self.objective.classes(), self.objective.features().dim()) {
            self.preconditioner = per_class(self.objective, self.goal.c, self.goal.penalty);
        }
    }

    fn factor_if_stale(&mut self) {
        if matches!(self.preconditioner, Preconditioner::PerClass { .. }) {
            return;
        }
        // A floor, so that a perfect fit does not leave a singular matrix.
        let spread = self.spread.max(1e-6 * self.objective.features().rows() as f64);
        let ratio = spread / self.factored_spread;
        if (1.0 / REFACTOR..REFACTOR).contains(&ratio) {
            return;
        }
        let curvature = self.goal.c * spread / (self.objective.classes() as f64 - 1.0);
        self.preconditioner = self.gram.factor(curvature, self.goal.penalty);
        self.factored_spread = spread;
    }

    /// One line search and, where it succeeds, the move to its end.
    fn step(&mut self, slope: f64) -> bool {
        let weights = self.n_weights();
        let (w, d) = (&self.parameters[..weights], &self.direction[..weights]);
        let line = Line {
            c: self.goal.c,
            penalty: self.goal.penalty,
            weight_weight: dot(w, w),
            weight_direction: dot(w, d),
            direction_direction: dot(d, d),
        };
        let start = Probe {
            t: 0.0,
            value: self.value,
            slope,
        };
        let advance = std::mem::replace(&mut self.pending, 0.0);
        let total = self
            .objective
            .follow(advance, &self.direction, 1.0, &mut self.next_gradient);
        let mut loss = total;
        let mut probe = line.at(1.0, total);
        let (mut low, mut high) = (start, None);
        for tried in 0.. {
            match judge(start, probe) {
                Verdict::Accept => break,
                Verdict::TooShort => low = probe,
                Verdict::TooLong => high = Some(probe),
            }
            if tried == MAX_PROBES {
                return false;
            }
            let t = next_step(low, high) as f32;
            loss = self.objective.probe(t);
            probe = line.at(f64::from(t), loss);
        }
        if probe.t != 1.0 {
            loss = self
                .objective
                .gradient_at(probe.t as f32, &mut self.next_gradient);
        }
        self.accept(probe, loss);
        true
    }

    fn accept(&mut self, probe: Probe, loss: LossSlope) {
        let weights = self.n_weights();
        let mut step = self.direction.clone();
        step.iter_mut().for_each(|value| *value *= probe.t);
        self.parameters.iter_mut().zip(&step).for_each(|(w, s)| *w += s);
        finish_gradient(&mut self.next_gradient, &self.parameters[..weights], self.goal);
        let change: Vec<f64> = self
            .next_gradient
            .iter()
            .zip(&self.gradient)
            .map(|(new, old)| new - old)
            .collect();
        std::mem::swap(&mut self.gradient, &mut self.next_gradient);
        self.value = probe.value;
        self.spread = loss.spread;
        self.pending = probe.t as f32;
        let curvature = dot(&step, &change);
        // A pair without positive curvature would make the matrix indefinite; rounding alone can produce one.
        if curvature > f64::EPSILON * dot(&change, &change).sqrt() * dot(&step, &step).sqrt() {
            if self.memory.len() == MEMORY {
                self.memory.pop_front();
            }
            self.memory.push_back(Pair {
                step,
                change,
                inverse_curvature: 1.0 / curvature,
            });
        }
    }

    /// Whether the decrease that the gradient promises is lost in the rounding of the objective.
    fn is_at_rounding(&self, slope: f64) -> bool {
        -0.5 * slope <= 1e-7 * self.value.abs()
    }
}

/// From the sum over the rows to the gradient of the objective.
fn finish_gradient(gradient: &mut [f64], weights: &[f64], goal: Goal) {
    gradient.iter_mut().for_each(|g| *g *= goal.c);
    for (g, w) in gradient.iter_mut().zip(weights) {
        *g += goal.penalty * w;
    }
}

/// Replaces the gradient by the direction `-H g`.
fn two_loops(direction: &mut [f64], memory: &VecDeque<Pair>, preconditioner: &Preconditioner) {
    let mut shares = Vec::with_capacity(memory.len());
    for pair in memory.iter().rev() {
        let share = pair.inverse_curvature * dot(&pair.step, direction);
        direction
            .iter_mut()
            .zip(&pair.change)
            .for_each(|(d, y)| *d -= share * y);
        shares.push(share);
    }
    preconditioner.divide(direction);
    if let Some(last) = memory.back() {
        let mut divided = last.change.clone();
        preconditioner.divide(&mut divided);
        let scale = 1.0 / (last.inverse_curvature * dot(&last.change, &divided));
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for (pair, share) in memory.iter().zip(shares.into_iter().rev()) {
        let back = share - pair.inverse_curvature * dot(&pair.change, direction);
        direction
            .iter_mut()
            .zip(&pair.step)
            .for_each(|(d, s)| *d += back * s);
    }
    direction.iter_mut().for_each(|d| *d = -*d);
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::Matrix;

    fn probe(t: f64, value: f64, slope: f64) -> Probe {
        Probe { t, value, slope }
    }

    /// Five hundred rows of three columns and three classes that overlap.
    fn rows() -> (Matrix, Vec<u32>) {
        let labels: Vec<u32> = (0..500u32).map(|row| row * 7 % 3).collect();
        let value = |row: usize, column: usize| {
            let noise = ((row * 3 + column) as f32 * 1.7).sin();
            noise + if labels[row] as usize == column { 0.5 } else { 0.25 }
        };
        let data = (0..1500).map(|place| value(place / 3, place % 3)).collect();
        (Matrix::new(data, 500, 3).unwrap(), labels)
    }

    const GOAL: Goal = Goal {
        c: 0.02,
        penalty: 1.5,
        max_iterations: 100,
        tolerance: 1e-12,
    };

    #[test]
    fn verdicts_on_a_parabola() {
        // (t - 1)^2 from t = 0.
        let at = |t: f64| probe(t, (t - 1.0) * (t - 1.0), 2.0 * (t - 1.0));
        assert_eq!(judge(at(0.0), at(0.05)), Verdict::TooShort);
        assert_eq!(judge(at(0.0), at(1.0)), Verdict::Accept);
        assert_eq!(judge(at(0.0), at(2.5)), Verdict::TooLong);
        assert_eq!(next_step(at(0.0), Some(at(2.5))), 1.0);
        assert_eq!(next_step(at(0.5), None), 2.0);
    }

    #[test]
    fn overflow_is_too_long_and_cut_short() {
        let bad = probe(1e30, f64::INFINITY, f64::NAN);
        assert_eq!(judge(probe(0.0, 1.0, -1.0), bad), Verdict::TooLong);
        assert!((next_step(probe(0.0, 1.0, -1.0), Some(bad)) / 1e29 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_line_has_the_value_and_slope_of_loss_and_penalty() {
        let line = Line {
            c: 10.0,
            penalty: 3.0,
            weight_weight: 5.0,
            weight_direction: -2.0,
            direction_direction: 4.0,
        };
        let loss = LossSlope {
            loss: 0.5,
            slope: -0.25,
            spread: 0.0,
        };
        // |w + d/2|^2 = 5 - 2 + 1
        let found = line.at(0.5, loss);
        assert_eq!((found.t, found.value, found.slope), (0.5, 6.0 + 5.0, -2.5));
    }

    #[test]
    fn a_probe_is_accepted_for_its_decrease_or_where_rounding_hides_it() {
        let start = probe(0.0, 1.0, -1.0);
        // A decrease of 1e-4 of what the slope promises, and a little less.
        assert_eq!(judge(start, probe(0.5, 1.0 - 6e-5, 0.9)), Verdict::Accept);
        assert_eq!(judge(start, probe(0.5, 1.0 - 4e-5, 0.9)), Verdict::TooLong);
        // As high as the start within 1e-9: only where the slope is not too steep.
        assert_eq!(judge(start, probe(0.5, 1.0 + 5e-10, 0.5)), Verdict::Accept);
        assert_eq!(judge(start, probe(0.5, 1.0 + 5e-10, 0.9)), Verdict::TooLong);
        assert_eq!(judge(start, probe(0.5, 1.0 + 2e-9, 0.5)), Verdict::TooLong);
    }

    /// One pair of a step s and a change y, orthogonal to the gradient: `-(s.y / y H y) H g`, by hand.
    #[test]
    fn the_initial_matrix_is_scaled_by_the_last_pair() {
        let pair = Pair {
            step: vec![1.0, 0.0],
            change: vec![4.0, 0.0],
            inverse_curvature: 0.25,
        };
        let mut direction = vec![0.0, 1.0];
        let inverse = Preconditioner::Diagonal(vec![2.0, 4.0]);
        two_loops(&mut direction, &VecDeque::from([pair]), &inverse);
        assert_eq!(direction, [0.0, -0.125]);
    }

    /// At zero weights every row is as undecided as any, so that the preconditioner is the Hessian: the gradient vanishes, in the
    /// first order, along the first direction.
    #[test]
    fn the_first_direction_is_newtons() {
        let (x, labels) = rows();
        let mut objective = Objective::new(x.view(), &labels, 3);
        let gram = Gram::new(x.view());
        let n = objective.n_parameters();
        let mut search = Search::start(&mut objective, &gram, GOAL, vec![0.0; n]);
        search.aim();
        let (direction, start) = (search.direction.clone(), search.gradient.clone());
        let mut gradient_after = |share: f64| {
            search.parameters = direction.iter().map(|value| share * value).collect();
            search.refresh();
            search.gradient.clone()
        };
        let (after, before) = (gradient_after(0.05), gradient_after(-0.05));
        let largest = start.iter().fold(0.0f64, |max, g| max.max(g.abs()));
        assert!(largest > 0.05, "{largest}");
        for ((after, before), start) in after.iter().zip(&before).zip(&start) {
            let slope = (after - before) / 0.1;
            assert!((slope + start).abs() < 1e-2 * largest, "{slope} {start}");
        }
    }

    #[test]
    fn uphill_the_pairs_are_forgotten() {
        let (x, labels) = rows();
        let mut objective = Objective::new(x.view(), &labels, 3);
        let gram = Gram::new(x.view());
        let n = objective.n_parameters();
        let mut search = Search::start(&mut objective, &gram, GOAL, vec![0.0; n]);
        let downhill = search.aim();
        let direction = search.direction.clone();
        assert!(downhill < 0.0);
        // A pair of negative curvature along the gradient turns the direction round.
        let step = search.gradient.clone();
        search.memory.push_back(Pair {
            change: step.iter().map(|value| -value).collect(),
            inverse_curvature: -1.0 / dot(&step, &step),
            step,
        });
        assert_eq!(search.aim(), downhill);
        assert!(search.memory.is_empty());
        assert_eq!(search.direction, direction);
    }

    #[test]
    fn a_promise_below_rounding_is_the_end() {
        let (x, labels) = rows();
        let mut objective = Objective::new(x.view(), &labels, 3);
        let gram = Gram::new(x.view());
        let n = objective.n_parameters();
        let mut search = Search::start(&mut objective, &gram, GOAL, vec![0.0; n]);
        for value in [8.0, -8.0] {
            search.value = value;
            assert!(search.is_at_rounding(-1.5e-6));
            assert!(!search.is_at_rounding(-1.7e-6));
        }
    }

    #[test]
    fn a_preconditioner_of_each_class_stays() {
        let (x, labels) = rows();
        let mut objective = Objective::new(x.view(), &labels, 3);
        let gram = Gram::new(x.view());
        let n = objective.n_parameters();
        let mut search = Search::start(&mut objective, &gram, GOAL, vec![0.0; n]);
        search.factor_if_stale();
        assert!(matches!(search.preconditioner, Preconditioner::Full { .. }));
        search.precondition_per_class();
        search.factored_spread = 0.0; // as stale as can be
        search.factor_if_stale();
        assert!(matches!(search.preconditioner, Preconditioner::PerClass { .. }));
    }

    #[test]
    fn no_more_iterations_are_done_than_are_counted() {
        let (x, labels) = rows();
        let gram = Gram::new(x.view());
        for max_iterations in [1, 2] {
            let mut objective = Objective::new(x.view(), &labels, 3);
            let n = objective.n_parameters();
            let goal = Goal {
                max_iterations,
                tolerance: 0.0,
                ..GOAL
            };
            let found = minimise(&mut objective, &gram, goal, vec![0.0; n]);
            assert_eq!((found.iterations, found.converged), (max_iterations, false));
        }
    }
}
