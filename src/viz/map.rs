//! A feature folder on a plane: its two widest principal axes or a t-SNE, a dot a row, coloured by label. Classes differ by shape as well
//! where there are more of them than colours, and their names stand at their middles.

use std::collections::BTreeMap;
use std::path::Path;

use macula_eval::LabelSet;
use macula_eval::linalg::normalise::l2_normalise;
use macula_eval::linalg::pca::Pca;
use macula_eval::linalg::tsne::{TsneConfig, tsne};
use macula_eval::{Matrix, MatrixView};
use rand::seq::SliceRandom as _;

use super::palette::{KINDS, class};
use crate::draw::axis::{Axis, Unit};
use crate::draw::{AXIS, Align, Canvas, Color, GRID, INK, MUTED, Weight, faint};
use crate::extract::FeatureFolder;
use crate::extract::{default_column, read_column};
use crate::{Error, Result, rng};

/// Size of the picture.
const SIZE: (u32, u32) = (1180, 860);
/// The rectangle within the axes: left, right, top, bottom.
const PLOT: (f32, f32, f32, f32) = (76.0, 900.0, 86.0, 796.0);
/// Left edge of the legend, and height of one of its lines.
const LEGEND: f32 = 930.0;
const LEGEND_LINE: f32 = 25.0;
/// Classes with colours of their own; the others are grey.
const MAX_CLASSES: usize = 26;
/// Share of the rows at each end of an axis that may lie on its border.
const OUTSIDE: f64 = 0.002;
const OTHERS: Color = [0xa9, 0xb0, 0xb8, 0xff];

/// How the picture is made.
#[derive(Debug, Clone)]
pub struct MapOptions {
    /// Column of features; `cls`, or else the first, where there is none.
    pub column: Option<String>,
    /// Rows drawn at most, chosen at random. Principal axes are those of all rows, a t-SNE is of the rows drawn.
    pub count: usize,
    /// Where rows lie on the plane.
    pub method: MapMethod,
    /// Whether rows are brought to unit length first, as for cosine similarity.
    pub normalise: bool,
    /// Seed of the choice.
    pub seed: u64,
}

/// How rows come onto a plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MapMethod {
    /// Their two widest principal axes.
    Pca,
    /// t-SNE: neighbours stay neighbours, distances between groups and their sizes mean nothing.
    Tsne {
        /// About how many neighbours a row has, above 0 and at most a third of the other rows.
        perplexity: f64,
        /// Iterations, at least 1.
        iterations: usize,
    },
}

/// A dot: where, and of which class.
struct Dot {
    at: (f64, f64),
    class: Option<usize>,
}

/// Draws feature folder `features` on a plane into `out`. Returns the shares of the variance along the axes; none of a t-SNE.
///
/// # Errors
/// A folder or column that is not there, fewer than two rows or all equal, a count of 0, or settings of t-SNE out of range.
pub fn map(features: &Path, options: &MapOptions, out: &Path) -> Result<Vec<f64>> {
    if options.count == 0 {
        return Err(Error::setting("n", "expected at least 1 row, found 0"));
    }
    let folder = FeatureFolder::open(features)?;
    let column = options.column.clone().unwrap_or_else(|| default_column(&folder));
    let rows = read_column(&folder, &column)?;
    let matrix = if options.normalise {
        l2_normalise(rows.matrix.view())?
    } else {
        rows.matrix
    };
    let classes = LabelSet::from_labels(rows.labels.iter().flatten().map(String::as_str));
    let shown = shown_classes(&rows.labels, &classes);
    let mut order: Vec<usize> = (0..rows.labels.len()).collect();
    let (drawn, _) = order.partial_shuffle(&mut rng::stream(options.seed, "viz map", 0), options.count);
    let (placed, explained) = place(matrix.view(), drawn, options)?;
    let dots: Vec<Dot> = drawn
        .iter()
        .enumerate()
        .map(|(place, &row)| {
            let values = placed.view().row(place);
            let label = rows.labels[row].as_deref();
            Dot {
                // One axis is all there is where the rows lie on a line.
                at: (
                    f64::from(values[0]),
                    values.get(1).copied().map_or(0.0, f64::from),
                ),
                class: label.and_then(|label| shown.iter().position(|(name, _)| name == label)),
            }
        })
        .collect();
    let model = &folder.meta().model;
    let model = model
        .get("file")
        .or(model.get("kind"))
        .and_then(|name| name.as_str())
        .unwrap_or("features");
    let note = format!(
        "{} of {} rows{}; {}",
        dots.len(),
        rows.labels.len(),
        if options.normalise {
            ", each of unit length"
        } else {
            ""
        },
        folder.path().display()
    );
    let picture = Picture {
        title: match options.method {
            MapMethod::Pca => format!("Principal axes · {model}, {column}"),
            MapMethod::Tsne { perplexity, .. } => {
                format!("t-SNE, perplexity {perplexity} · {model}, {column}")
            }
        },
        note,
        explained: explained.clone(),
        dots,
        hidden: classes.len() - shown.len(),
        classes: shown,
    };
    picture.draw().save(out)?;
    Ok(explained)
}

/// Places of the rows `drawn` of `matrix`, `[drawn, 1 or 2]`, and the shares of the variance along the axes.
fn place(matrix: MatrixView<'_>, drawn: &[usize], options: &MapOptions) -> Result<(Matrix, Vec<f64>)> {
    Ok(match options.method {
        MapMethod::Pca => {
            let pca = Pca::fit(matrix, 2)?;
            (
                pca.project(matrix.select(drawn).view())?,
                pca.explained().to_vec(),
            )
        }
        MapMethod::Tsne {
            perplexity,
            iterations,
        } => {
            let config = TsneConfig {
                perplexity,
                iterations,
                seed: options.seed,
                ..TsneConfig::default()
            };
            (tsne(matrix.select(drawn).view(), &config)?, Vec::new())
        }
    })
}

/// Names and counts of the classes with colours of their own: all, or the largest, in the order of their names.
fn shown_classes(labels: &[Option<String>], classes: &LabelSet) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for label in labels.iter().flatten() {
        *counts.entry(label).or_default() += 1;
    }
    let mut named: Vec<(usize, String, usize)> = classes
        .names
        .iter()
        .enumerate()
        .map(|(place, name)| (place, name.clone(), counts[name.as_str()]))
        .collect();
    named.sort_by_key(|(place, _, count)| (std::cmp::Reverse(*count), *place));
    named.truncate(MAX_CLASSES);
    named.sort_by_key(|(place, ..)| *place);
    named.into_iter().map(|(_, name, count)| (name, count)).collect()
}

struct Picture {
    title: String,
    note: String,
    explained: Vec<f64>,
    dots: Vec<Dot>,
    /// Classes with colours, and their rows.
    classes: Vec<(String, usize)>,
    /// Classes without.
    hidden: usize,
}

impl Picture {
    fn draw(&self) -> Canvas {
        let mut canvas = Canvas::new(SIZE.0, SIZE.1);
        let room = SIZE.0 as f32 - 2.0 * 28.0;
        let title = canvas.fitted(&self.title, room, 20.0, Weight::Bold);
        canvas.text(&title, (28.0, 42.0), 20.0, INK, Weight::Bold, Align::Left);
        let note = canvas.fitted(&self.note, room, 13.5, Weight::Regular);
        canvas.text(&note, (28.0, 64.0), 13.5, MUTED, Weight::Regular, Align::Left);
        let axes = axes(&self.dots);
        self.frame(&mut canvas, &axes);
        let at = |dot: (f64, f64)| {
            let x = PLOT.0 + axes[0].place(dot.0).clamp(0.0, 1.0) * (PLOT.1 - PLOT.0);
            let y = PLOT.3 - axes[1].place(dot.1).clamp(0.0, 1.0) * (PLOT.3 - PLOT.2);
            (x, y)
        };
        // Fewer dots may be larger and less transparent.
        let radius = if self.dots.len() > 3000 { 2.4 } else { 3.4 };
        let opacity = if self.dots.len() > 3000 { 0.45 } else { 0.7 };
        for dot in &self.dots {
            shape(&mut canvas, at(dot.at), radius, dot.class, opacity);
        }
        for (place, (name, _)) in self.classes.iter().enumerate() {
            if let Some(middle) = self.middle(place) {
                named(&mut canvas, name, at(middle), class(place));
            }
        }
        self.legend(&mut canvas);
        canvas
    }

    fn frame(&self, canvas: &mut Canvas, axes: &[Axis; 2]) {
        let (left, right, top, bottom) = PLOT;
        for &tick in &axes[0].ticks {
            let x = left + axes[0].place(tick) * (right - left);
            canvas.rule((x, top), (x, bottom), GRID);
            let label = axes[0].label(tick, Unit::Number);
            canvas.text(
                &label,
                (x, bottom + 19.0),
                13.0,
                MUTED,
                Weight::Regular,
                Align::Centre,
            );
        }
        for &tick in &axes[1].ticks {
            let y = bottom - axes[1].place(tick) * (bottom - top);
            canvas.rule((left, y), (right, y), GRID);
            let label = axes[1].label(tick, Unit::Number);
            canvas.text(
                &label,
                (left - 9.0, y + 4.8),
                13.0,
                MUTED,
                Weight::Regular,
                Align::Right,
            );
        }
        canvas.rule((left, bottom), (right, bottom), AXIS);
        canvas.rule((left, top), (left, bottom), AXIS);
        let share = |axis: usize| match self.explained.get(axis) {
            Some(share) => format!("component {}, {:.1} % of the variance", axis + 1, 100.0 * share),
            None if self.explained.is_empty() => format!("t-SNE {}", axis + 1),
            None => format!("component {}, 0.0 % of the variance", axis + 1),
        };
        canvas.text(
            &share(0),
            ((left + right) / 2.0, bottom + 42.0),
            13.0,
            MUTED,
            Weight::Regular,
            Align::Centre,
        );
        canvas.text(
            &format!("up: {}", share(1)),
            (left + 8.0, top + 17.0),
            13.0,
            MUTED,
            Weight::Regular,
            Align::Left,
        );
    }

    /// The median of a class's dots, per axis; none without a dot.
    fn middle(&self, class: usize) -> Option<(f64, f64)> {
        let median = |value: fn(&Dot) -> f64| {
            let mut values: Vec<f64> = self
                .dots
                .iter()
                .filter(|dot| dot.class == Some(class))
                .map(value)
                .collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some((median(|dot| dot.at.0)?, median(|dot| dot.at.1)?))
    }

    fn legend(&self, canvas: &mut Canvas) {
        let mut y = PLOT.2 + 14.0;
        let right = SIZE.0 as f32 - 28.0;
        if !self.classes.is_empty() {
            canvas.text("label", (LEGEND, y), 13.0, MUTED, Weight::Bold, Align::Left);
            canvas.text("rows", (right, y), 13.0, MUTED, Weight::Bold, Align::Right);
            y += LEGEND_LINE;
        }
        for (place, (name, count)) in self.classes.iter().enumerate() {
            shape(canvas, (LEGEND + 7.0, y - 4.5), 5.5, Some(place), 1.0);
            let name = canvas.fitted(name, right - LEGEND - 80.0, 13.5, Weight::Regular);
            canvas.text(&name, (LEGEND + 22.0, y), 13.5, INK, Weight::Regular, Align::Left);
            canvas.text(
                &count.to_string(),
                (right, y),
                13.5,
                MUTED,
                Weight::Regular,
                Align::Right,
            );
            y += LEGEND_LINE;
        }
        let rest = match (self.hidden, self.dots.iter().any(|dot| dot.class.is_none())) {
            (0, false) => return,
            (0, true) => "without label".to_owned(),
            (hidden, _) => format!("{hidden} more labels"),
        };
        shape(canvas, (LEGEND + 7.0, y - 4.5), 5.5, None, 1.0);
        canvas.text(&rest, (LEGEND + 22.0, y), 13.5, INK, Weight::Regular, Align::Left);
    }
}

/// Both axes, a unit as long on one as on the other, since distances are what is looked at.
fn axes(dots: &[Dot]) -> [Axis; 2] {
    let ranges = [range(dots, |dot| dot.at.0), range(dots, |dot| dot.at.1)];
    let lengths = [PLOT.1 - PLOT.0, PLOT.3 - PLOT.2].map(f64::from);
    let units = [0, 1].map(|axis| (ranges[axis].1 - ranges[axis].0) / lengths[axis]);
    let unit = units[0].max(units[1]);
    [0, 1].map(|axis| {
        let (low, high) = ranges[axis];
        let (middle, half) = ((low + high) / 2.0, unit * lengths[axis] / 2.0);
        Axis::exact(middle - half, middle + half, 6)
    })
}

/// The ends of nearly all dots, with a little room: a few far ones should not press the others together.
fn range(dots: &[Dot], value: fn(&Dot) -> f64) -> (f64, f64) {
    let mut values: Vec<f64> = dots.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    let outside = (OUTSIDE * values.len() as f64) as usize;
    let (low, high) = (values[outside], values[values.len() - 1 - outside]);
    let room = 0.04 * (high - low);
    (low - room, high + room)
}

/// A dot of a class: colours first, then shapes.
fn shape(canvas: &mut Canvas, (x, y): (f32, f32), radius: f32, place: Option<usize>, opacity: f32) {
    let color = faint(place.map_or(OTHERS, class), opacity);
    match place.map_or(0, |place| place / KINDS) {
        0 => canvas.dot((x, y), radius, color),
        1 => {
            let r = radius * 0.9;
            canvas.area(
                &[(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
                color,
            );
        }
        _ => {
            let r = radius * 1.25;
            canvas.area(&[(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], color);
        }
    }
}

/// The name of a class in a box of its colour, so that it can be read over dots.
fn named(canvas: &mut Canvas, name: &str, (x, y): (f32, f32), color: Color) {
    let name = canvas.fitted(name, 150.0, 14.0, Weight::Bold);
    let width = canvas.text_width(&name, 14.0, Weight::Bold);
    let x = x.clamp(PLOT.0 + width / 2.0 + 8.0, PLOT.1 - width / 2.0 - 8.0);
    let half = width / 2.0 + 6.0;
    for (grown, color) in [(2.0, color), (0.0, [0xff, 0xff, 0xff, 0xff])] {
        canvas.rect(
            (x - half - grown, y - 11.0 - grown),
            (2.0 * (half + grown), 22.0 + 2.0 * grown),
            color,
        );
    }
    canvas.text(&name, (x, y + 5.0), 14.0, INK, Weight::Bold, Align::Centre);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_classes_have_colours() {
        let labels: Vec<Option<String>> = (0..40u32)
            .flat_map(|class| vec![Some(class.to_string()); if class < 20 { 1 } else { 3 }])
            .chain([None])
            .collect();
        let classes = LabelSet::from_labels(labels.iter().flatten().map(String::as_str));
        let shown = shown_classes(&labels, &classes);
        assert_eq!(shown.len(), MAX_CLASSES);
        // All of the larger ones, and the first of the smaller, in numeric order.
        let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..8], ["0", "1", "2", "3", "4", "5", "20", "21"]);
        assert_eq!((shown[0].1, shown[6].1), (1, 3));
    }

    #[test]
    fn far_dots_do_not_press_the_others_together() {
        let dots: Vec<Dot> = (0..2000)
            .map(|i| Dot {
                at: (if i == 0 { 1e6 } else { f64::from(i) / 2000.0 }, 0.0),
                class: None,
            })
            .collect();
        let [across, up] = axes(&dots);
        assert!(across.high < 2.0 && across.low < 0.01, "{across:?}");
        // A unit is as long up as across.
        let per_pixel = |axis: &Axis, pixels: f32| (axis.high - axis.low) / f64::from(pixels);
        let (x, y) = (
            per_pixel(&across, PLOT.1 - PLOT.0),
            per_pixel(&up, PLOT.3 - PLOT.2),
        );
        assert!((x / y - 1.0).abs() < 1e-9, "{x} {y}");
    }
}
