//! A picture of a run: its metrics as small panels in one PNG. `series` takes numbers out of the log and smooths them,
//! `panel` draws one panel; which panels there are is decided here. Axes, pixels and text are `crate::draw`'s.

mod panel;
mod series;

use std::path::Path;

use serde_json::{Map, Value};

use self::panel::{Frame, Panel};
use self::series::Series;
use super::keys;
use crate::draw::axis::{Unit, grouped};
use crate::draw::{Align, Canvas, INK, MUTED, Weight};
use crate::{Error, Result};

/// The picture's name in a run folder.
pub const CURVES_FILE: &str = "curves.png";
/// Panels side by side.
const COLUMNS: u32 = 3;
/// Width and height of the place of one panel, in pixels.
const PANEL: (u32, u32) = (560, 340);
/// Height of the line above the panels.
const HEADER: u32 = 64;
/// Space at the left and right edge, and below.
const MARGIN: u32 = 16;

/// A panel as it could be drawn; it is when one of its keys was logged.
struct Plan {
    title: &'static str,
    unit: Unit,
    /// Keys and their names in the legend; a key that ends in `_` stands for all that begin with it.
    keys: &'static [(&'static str, &'static str)],
}

/// All panels, in order.
const PLANS: [Plan; 9] = [
    Plan {
        title: "Loss",
        unit: Unit::Number,
        keys: &[(keys::LOSS, "total"), (keys::LOSS_PART, "")],
    },
    Plan {
        title: "Online k-NN, top-1",
        unit: Unit::Percent,
        keys: &[(keys::KNN_TOP1, "top-1")],
    },
    Plan {
        title: "Teacher targets",
        unit: Unit::Percent,
        keys: &[
            (keys::TEACHER_ENTROPY_SHARE, "entropy / ln K"),
            (keys::PROTOTYPE_USAGE, "prototype usage"),
        ],
    },
    Plan {
        title: "Feature std (1 isotropic, 0 collapsed)",
        unit: Unit::Number,
        keys: &[(keys::FEATURE_STD, "feature std")],
    },
    Plan {
        title: "Effective rank of features",
        unit: Unit::Number,
        keys: &[(keys::EFFECTIVE_RANK, "effective rank")],
    },
    Plan {
        title: "Gradient norm",
        unit: Unit::Number,
        keys: &[(keys::GRAD_NORM, "gradient norm")],
    },
    Plan {
        title: "Learning rate",
        unit: Unit::Number,
        keys: &[(keys::LR, "learning rate")],
    },
    Plan {
        title: "Weight decay",
        unit: Unit::Number,
        keys: &[(keys::WEIGHT_DECAY, "weight decay")],
    },
    Plan {
        title: "Images per second",
        unit: Unit::Number,
        keys: &[(keys::IMAGES_PER_SECOND, "images per second")],
    },
];

/// Draws the curves of `metrics`, the lines of a metrics file, as a PNG at `path`, written beside and renamed. `title` names
/// the run. Panels of what was not logged are left out; logged steps need not be the same for all.
///
/// # Errors
/// Nothing to draw, or the system's word with the path.
pub fn draw(path: &Path, title: &str, metrics: &[Map<String, Value>]) -> Result<()> {
    let panels = panels(metrics);
    if panels.is_empty() {
        return Err(Error::input(
            path.display().to_string(),
            "expected at least one logged step with a number to draw, found none",
        ));
    }
    picture(title, &panels).save(path)
}

/// Width and height of a picture of `n` panels.
fn size(n: usize) -> (u32, u32) {
    let n = u32::try_from(n).unwrap_or(u32::MAX);
    let columns = n.min(COLUMNS);
    let rows = n.div_ceil(COLUMNS);
    (columns * PANEL.0 + 2 * MARGIN, HEADER + rows * PANEL.1 + MARGIN)
}

/// The panels that have something to show.
fn panels(metrics: &[Map<String, Value>]) -> Vec<Panel> {
    let panel = |plan: &Plan| {
        let series = plan.keys.iter().flat_map(|key| matching(metrics, key));
        let series: Vec<Series> = series
            .map(|(key, name)| Series::from_metrics(metrics, &key, name))
            .filter(|series| !series.points.is_empty())
            .collect();
        (!series.is_empty()).then_some(Panel {
            title: plan.title,
            unit: plan.unit,
            series,
        })
    };
    PLANS.iter().filter_map(panel).collect()
}

/// The logged keys that an entry of a plan stands for, with their names.
fn matching(
    metrics: &[Map<String, Value>],
    &(key, name): &(&'static str, &'static str),
) -> Vec<(String, String)> {
    if !key.ends_with('_') {
        return vec![(key.to_owned(), name.to_owned())];
    }
    let logged = metrics.iter().flat_map(Map::keys);
    let parts: std::collections::BTreeSet<&String> =
        logged.filter(|logged| logged.starts_with(key)).collect();
    parts
        .into_iter()
        .map(|part| (part.clone(), part[key.len()..].replace('_', " ")))
        .collect()
}

fn picture(title: &str, panels: &[Panel]) -> Canvas {
    let (width, height) = size(panels.len());
    let mut canvas = Canvas::new(width, height);
    let left = (2 * MARGIN) as f32;
    canvas.text(title, (left, 40.0), 22.0, INK, Weight::Bold, Align::Left);
    let last = panels
        .iter()
        .flat_map(|panel| &panel.series)
        .filter_map(Series::last);
    let step = last.map(|(step, _)| step).fold(0.0, f64::max);
    let step = format!("step {}", grouped(step));
    let right = width as f32 - left;
    canvas.text(&step, (right, 40.0), 17.0, MUTED, Weight::Regular, Align::Right);
    for (panel, place) in panels.iter().zip(0u32..) {
        let x = MARGIN + place % COLUMNS * PANEL.0;
        let y = HEADER + place / COLUMNS * PANEL.1;
        panel.draw(
            &mut canvas,
            Frame {
                x: x as f32,
                y: y as f32,
                width: PANEL.0 as f32,
                height: PANEL.1 as f32,
            },
        );
    }
    canvas
}

#[cfg(test)]
mod tests;
