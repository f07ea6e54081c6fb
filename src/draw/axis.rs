//! Ranges, ticks and the words beside them.

/// How the numbers of a picture are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As they are.
    Number,
    /// A share of 1, written in per cent.
    Percent,
}

/// A range of an axis and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What lies at the lower end.
    pub low: f64,
    /// What lies at the upper end; above `low`.
    pub high: f64,
    /// Where ticks stand, ascending, within the range.
    pub ticks: Vec<f64>,
    /// Distance of two ticks.
    step: f64,
}

impl Axis {
    /// An axis from `low` to `high` exactly, with about `count` ticks at round numbers.
    pub fn exact(low: f64, high: f64, count: u32) -> Self {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / f64::from(count.max(1)));
        let first = (low / step - 1e-9).ceil();
        let last = (high / step + 1e-9).floor();
        let ticks = (0..=(last - first).max(0.0) as u32)
            .map(|place| (first + f64::from(place)) * step)
            .collect();
        Self {
            low,
            high,
            ticks,
            step,
        }
    }

    /// An axis around `low` to `high` with a little room at both ends; what is never negative keeps 0 as its end.
    pub fn around(low: f64, high: f64, count: u32) -> Self {
        let (low, high) = widened(low, high);
        let room = 0.06 * (high - low);
        let below = if low >= 0.0 {
            (low - room).max(0.0)
        } else {
            low - room
        };
        Self::exact(below, high + room, count)
    }

    /// Where `value` lies: 0 at the lower end, 1 at the upper.
    pub fn place(&self, value: f64) -> f32 {
        ((value - self.low) / (self.high - self.low)) as f32
    }

    /// The words beside a tick.
    pub fn label(&self, tick: f64, unit: Unit) -> String {
        match unit {
            Unit::Percent => decimals(100.0 * tick, 100.0 * self.step) + " %",
            Unit::Number if tick.abs() < 0.5 * self.step => "0".to_owned(),
            Unit::Number if (1e-2..1e5).contains(&self.greatest()) => decimals(tick, self.step),
            Unit::Number => power_of_ten(tick, places_of(tick, self.step)),
        }
    }

    /// The greatest size of a value on the axis.
    fn greatest(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    /// The words under a tick that counts steps: thousands as `k`, millions as `M`.
    pub fn count_label(&self, tick: f64) -> String {
        let greatest = self.greatest();
        if greatest >= 1e6 {
            decimals(tick / 1e6, self.step / 1e6) + if tick == 0.0 { "" } else { "M" }
        } else if greatest >= 1e4 {
            decimals(tick / 1e3, self.step / 1e3) + if tick == 0.0 { "" } else { "k" }
        } else {
            decimals(tick, self.step)
        }
    }
}

/// A range that is not empty: a single value gets room on both sides.
fn widened(low: f64, high: f64) -> (f64, f64) {
    // Less than f32's digits apart is one value.
    let min = 1e-6 * low.abs().max(high.abs());
    if high - low > min {
        return (low, high);
    }
    let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
    (low - room, high + room)
}

/// 1, 2 or 5 times a power of ten: what is nearest to `raw` as a ratio.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let ratio = |step: &f64| (step / raw).ln().abs();
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .min_by(|a, b| ratio(a).total_cmp(&ratio(b)))
        .unwrap_or(power)
}

/// `value` with as many decimals as `step` needs.
fn decimals(value: f64, step: f64) -> String {
    let places = (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize;
    // A rounded 0 has no sign.
    let value = if value.abs() < 0.5 * step { 0.0 } else { value };
    minus(format!("{value:.places$}"))
}

/// Digits after the point that `value` needs as a multiple of its own power of ten, so that ticks `step` apart differ.
fn places_of(value: f64, step: f64) -> usize {
    let digits = (value.abs().log10() + 1e-9).floor() - (step.log10() + 1e-9).floor();
    digits.clamp(0.0, 12.0) as usize
}

/// The latest value in a title, with about three digits.
pub fn latest(value: f64, unit: Unit) -> String {
    if unit == Unit::Percent {
        return minus(format!("{:.1} %", 100.0 * value));
    }
    let size = value.abs();
    minus(match size {
        0.0 => "0".to_owned(),
        _ if !(1e-3..1e6).contains(&size) => return power_of_ten(value, 2),
        _ if size >= 1000.0 => grouped(value),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    })
}

/// `1.5×10⁻⁴`, with at most `places` decimals.
fn power_of_ten(value: f64, places: usize) -> String {
    let text = format!("{value:.places$e}");
    let (factor, power) = text.split_once('e').unwrap_or((&text, "0"));
    let factor = match factor.split_once('.') {
        Some(_) => factor.trim_end_matches('0').trim_end_matches('.'),
        None => factor,
    };
    let raised = |c: char| match c {
        '-' => '\u{207b}',
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        '0' => '\u{2070}',
        '4' => '\u{2074}',
        '5' => '\u{2075}',
        '6' => '\u{2076}',
        '7' => '\u{2077}',
        '8' => '\u{2078}',
        '9' => '\u{2079}',
        other => other,
    };
    let power: String = power.chars().map(raised).collect();
    minus(format!("{factor}\u{d7}10{power}"))
}

/// A whole number with commas between thousands.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 {
        format!("\u{2212}{text}")
    } else {
        text
    }
}

/// A hyphen as the sign it means.
fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) => format!("\u{2212}{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks
            .iter()
            .map(|&tick| axis.label(tick, Unit::Number))
            .collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::exact(0.0, 1.0, 5);
        assert_eq!(labels(&axis), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::exact(3.3, 9.1, 5)), ["4", "5", "6", "7", "8", "9"]);
        assert_eq!(labels(&Axis::exact(-0.3, 0.3, 4)), ["\u{2212}0.2", "0", "0.2"]);
        assert_eq!(
            labels(&Axis::exact(0.0, 5e-4, 5))[1..3],
            ["1\u{d7}10\u{207b}\u{2074}", "2\u{d7}10\u{207b}\u{2074}"]
        );
        let narrow = labels(&Axis::exact(0.9991, 0.9994, 3));
        assert_eq!(narrow, ["0.9991", "0.9992", "0.9993", "0.9994"]);
        let small = labels(&Axis::exact(9e-4, 1.15e-3, 5));
        assert_eq!(
            small[1..3],
            ["9.5\u{d7}10\u{207b}\u{2074}", "1\u{d7}10\u{207b}\u{b3}"]
        );
        let percent = Axis::exact(0.5, 0.9, 4);
        assert_eq!(percent.label(0.6, Unit::Percent), "60 %");
    }

    #[test]
    fn ranges_are_never_empty_and_keep_0() {
        let axis = Axis::around(0.0, 2.0, 5);
        assert_eq!(axis.low, 0.0);
        assert!(axis.high > 2.0);
        for value in [0.0, 3.0, -3.0, 1e-8, 1e9] {
            let axis = Axis::around(value, value, 5);
            assert!(axis.low < axis.high && axis.ticks.len() >= 2, "{axis:?}");
            assert!((0.0..=1.0).contains(&axis.place(value)), "{axis:?}");
        }
    }

    #[test]
    fn steps_are_short() {
        let axis = Axis::exact(0.0, 125_000.0, 5);
        let labels: Vec<_> = axis.ticks.iter().map(|&tick| axis.count_label(tick)).collect();
        assert_eq!(labels, ["0", "20k", "40k", "60k", "80k", "100k", "120k"]);
        let axis = Axis::exact(0.0, 2.5e6, 5);
        assert_eq!(axis.count_label(500_000.0), "0.5M");
        assert_eq!(Axis::exact(0.0, 600.0, 5).count_label(200.0), "200");
    }

    #[test]
    fn latest_values_have_about_three_digits() {
        let plain = |value| latest(value, Unit::Number);
        assert_eq!(plain(0.0), "0");
        assert_eq!(plain(7.126), "7.13");
        assert_eq!(plain(-12.34), "\u{2212}12.3");
        assert_eq!(plain(0.0412), "0.0412");
        assert_eq!(plain(12_345.6), "12,346");
        assert_eq!(plain(5e-4), "5\u{d7}10\u{207b}\u{2074}");
        assert_eq!(latest(0.8125, Unit::Percent), "81.2 %");
    }
}
