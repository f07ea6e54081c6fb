//! One panel: title with the latest value, grid, axes, curves and legend.

use super::series::{Series, thinned};
use crate::draw::axis::{Axis, Unit, latest};
use crate::draw::{AXIS, Align, COLORS, Canvas, Color, GRID, INK, MUTED, Weight, faint};

/// Space around the plot for title, ticks and the word under the axis.
const LEFT: f32 = 76.0;
const RIGHT: f32 = 26.0;
const TOP: f32 = 44.0;
const BOTTOM: f32 = 58.0;
/// Sizes of letters.
const TITLE_SIZE: f32 = 16.0;
const LABEL_SIZE: f32 = 13.0;
/// Share of the raw values at each end that may lie outside the panel: a few spikes should not flatten the rest.
const OUTSIDE: f64 = 0.01;

/// One panel with something to show.
pub struct Panel {
    /// What it shows.
    pub title: &'static str,
    /// How its numbers are written.
    pub unit: Unit,
    /// The curves, at least one, each with a point.
    pub series: Vec<Series>,
}

/// A place on the canvas.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Width.
    pub width: f32,
    /// Height.
    pub height: f32,
}

/// The rectangle within the axes, and what its sides mean.
struct Plot {
    left: f32,
    right: f32,
    top: f32,
    bottom: f32,
    x: Axis,
    y: Axis,
}

impl Panel {
    /// Draws the panel into `frame`.
    pub fn draw(&self, canvas: &mut Canvas, frame: Frame) {
        let smoothed: Vec<Vec<(f64, f64)>> = self.series.iter().map(Series::smoothed).collect();
        let plot = self.plot(frame, &smoothed);
        plot.grid(canvas, self.unit);
        for ((series, smoothed), color) in self.series.iter().zip(&smoothed).zip(COLORS.into_iter().cycle()) {
            plot.curve(canvas, series, smoothed, color);
        }
        self.title(canvas, &plot);
        if self.series.len() > 1 {
            self.legend(canvas, &plot, &smoothed);
        }
    }

    fn plot(&self, frame: Frame, smoothed: &[Vec<(f64, f64)>]) -> Plot {
        let steps = self
            .series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| point.0);
        let last = steps.fold(1.0, f64::max);
        let (low, high) = self.range(smoothed);
        Plot {
            left: frame.x + LEFT,
            right: frame.x + frame.width - RIGHT,
            top: frame.y + TOP,
            bottom: frame.y + frame.height - BOTTOM,
            x: Axis::exact(0.0, last, 5),
            y: Axis::around(low, high, 5),
        }
    }

    /// Lowest and highest value to show: all of the smoothed curves and of the bands, and nearly all raw values.
    fn range(&self, smoothed: &[Vec<(f64, f64)>]) -> (f64, f64) {
        let mut low = f64::INFINITY;
        let mut high = f64::NEG_INFINITY;
        let mut include = |value: f64| (low, high) = (low.min(value), high.max(value));
        for (series, smoothed) in self.series.iter().zip(smoothed) {
            smoothed.iter().for_each(|point| include(point.1));
            series.band.iter().for_each(|&(_, from, to)| {
                include(from);
                include(to);
            });
            let mut raw: Vec<f64> = series.points.iter().map(|point| point.1).collect();
            raw.sort_unstable_by(f64::total_cmp);
            let outside = (raw.len() as f64 * OUTSIDE) as usize;
            include(raw[outside]);
            include(raw[raw.len() - 1 - outside]);
        }
        (low, high)
    }

    /// The title, and at the right the latest value; where there are several curves, the first one's.
    fn title(&self, canvas: &mut Canvas, plot: &Plot) {
        let base = plot.top - 15.0;
        canvas.text(
            self.title,
            (plot.left, base),
            TITLE_SIZE,
            INK,
            Weight::Bold,
            Align::Left,
        );
        if let (Some((_, value)), 1) = (self.series[0].last(), self.series.len()) {
            let text = latest(value, self.unit);
            canvas.text(
                &text,
                (plot.right, base),
                TITLE_SIZE,
                COLORS[0],
                Weight::Bold,
                Align::Right,
            );
        }
    }

    /// Names and latest values of the curves, in the corner that the curves leave free.
    fn legend(&self, canvas: &mut Canvas, plot: &Plot, smoothed: &[Vec<(f64, f64)>]) {
        let lines: Vec<String> = self
            .series
            .iter()
            .map(|series| {
                let value = series.last().map(|(_, value)| latest(value, self.unit));
                format!("{}  {}", series.name, value.unwrap_or_default())
            })
            .collect();
        let widths = lines
            .iter()
            .map(|line| canvas.text_width(line, LABEL_SIZE, Weight::Regular));
        let width = widths.fold(0.0, f32::max) + 42.0;
        let height = 19.0 * lines.len() as f32 + 10.0;
        let (x, y) = plot.free_corner(width, height, smoothed);
        let corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)];
        canvas.area(&corners, [0xff, 0xff, 0xff, 0xdc]);
        for ((line, place), color) in lines.iter().zip(0u8..).zip(COLORS.into_iter().cycle()) {
            let base = y + 19.0 + 19.0 * f32::from(place);
            let middle = base - 4.5;
            canvas.line(&[(x + 9.0, middle), (x + 26.0, middle)], 2.6, color);
            canvas.text(
                line,
                (x + 34.0, base),
                LABEL_SIZE,
                INK,
                Weight::Regular,
                Align::Left,
            );
        }
    }
}

impl Plot {
    fn at(&self, (step, value): (f64, f64)) -> (f32, f32) {
        let x = self.left + self.x.place(step) * (self.right - self.left);
        let y = self.bottom - self.y.place(value) * (self.bottom - self.top);
        // What lies outside is cut at the frame.
        (x.clamp(self.left, self.right), y.clamp(self.top, self.bottom))
    }

    fn grid(&self, canvas: &mut Canvas, unit: Unit) {
        for &tick in &self.y.ticks {
            let (_, y) = self.at((self.x.low, tick));
            canvas.rule((self.left, y), (self.right, y), GRID);
            let label = self.y.label(tick, unit);
            canvas.text(
                &label,
                (self.left - 9.0, y + 4.8),
                LABEL_SIZE,
                MUTED,
                Weight::Regular,
                Align::Right,
            );
        }
        for &tick in &self.x.ticks {
            let (x, _) = self.at((tick, self.y.low));
            canvas.rule((x, self.top), (x, self.bottom), GRID);
            let label = self.x.count_label(tick);
            canvas.text(
                &label,
                (x, self.bottom + 19.0),
                LABEL_SIZE,
                MUTED,
                Weight::Regular,
                Align::Centre,
            );
        }
        canvas.rule((self.left, self.bottom), (self.right, self.bottom), AXIS);
        canvas.rule((self.left, self.top), (self.left, self.bottom), AXIS);
        let middle = (self.left + self.right) / 2.0;
        canvas.text(
            "step",
            (middle, self.bottom + 39.0),
            LABEL_SIZE,
            MUTED,
            Weight::Regular,
            Align::Centre,
        );
    }

    fn curve(&self, canvas: &mut Canvas, series: &Series, smoothed: &[(f64, f64)], color: Color) {
        let buckets = (self.right - self.left) as usize;
        let line = |points: &[(f64, f64)]| -> Vec<(f32, f32)> {
            thinned(points, buckets)
                .into_iter()
                .map(|point| self.at(point))
                .collect()
        };
        if !series.band.is_empty() {
            let upper = series.band.iter().map(|&(step, _, high)| self.at((step, high)));
            let lower = series
                .band
                .iter()
                .rev()
                .map(|&(step, low, _)| self.at((step, low)));
            let band: Vec<(f32, f32)> = upper.chain(lower).collect();
            canvas.area(&band, faint(color, 0.14));
        }
        if series.is_smoothed() {
            canvas.line(&line(&series.points), 1.0, faint(color, 0.28));
        }
        let drawn = line(smoothed);
        canvas.line(&drawn, 2.2, color);
        if series.is_sparse() {
            for &point in &drawn {
                canvas.dot(point, 3.2, color);
            }
        }
    }

    /// The upper left corner of a legend of `width` x `height`: the corner of the plot that covers the fewest points.
    fn free_corner(&self, width: f32, height: f32, curves: &[Vec<(f64, f64)>]) -> (f32, f32) {
        let (right, bottom) = (self.right - width - 4.0, self.bottom - height - 5.0);
        let (left, top) = (self.left + 6.0, self.top + 4.0);
        let corners = [(right, top), (right, bottom), (left, top), (left, bottom)];
        let covered = |&(x, y): &(f32, f32)| {
            let points = curves.iter().flatten().map(|&point| self.at(point));
            points
                .filter(|&(px, py)| (x..x + width).contains(&px) && (y..y + height).contains(&py))
                .count()
        };
        corners.into_iter().min_by_key(covered).unwrap_or(corners[0])
    }
}
