//! One measure as SVG: a line a model with its name, its value, its interval and a dot.

use std::fmt::Write as _;

use super::escaped;
use crate::draw::axis::{Axis, Unit};
use crate::report::grid::value;
use crate::report::table::{Cell, Table};

/// Width of a chart in its own units; on a telephone and in a column of a desktop about one pixel each.
const WIDTH: f32 = 360.0;
/// Space left and right of the axis.
const SIDE: f32 = 14.0;
/// Height of one model.
const ROW: f32 = 42.0;
/// Space under the last model, for the axis.
const BOTTOM: f32 = 26.0;
/// Letters of a name that fit beside the value.
const NAME_CHARS: usize = 34;

/// The chart of one column; `base` is the model whose interval is drawn through.
pub(super) fn svg(table: &Table, place: usize, base: Option<usize>) -> String {
    let cells: Vec<(usize, &Cell)> = table
        .column(place)
        .enumerate()
        .filter_map(|(model, cell)| Some((model, cell?)))
        .collect();
    let ends = cells
        .iter()
        .map(|(_, cell)| cell.interval.unwrap_or((cell.value, cell.value)));
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (from, to)| {
        (low.min(from), high.max(to))
    });
    let axis = Axis::around(low, high, 4);
    let x = |value: f64| SIDE + axis.place(value) * (WIDTH - 2.0 * SIDE);
    let bottom = ROW * cells.len() as f32 + 4.0;
    let height = bottom + BOTTOM;
    let column = &table.columns[place];
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(&format!("{} by model", column.title()))
    );
    for &tick in &axis.ticks {
        let at = x(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 17.0,
            axis.label(tick, Unit::Number)
        );
    }
    let baseline = base.and_then(|base| cells.iter().find(|(model, _)| *model == base));
    if let Some((_, cell)) = baseline {
        svg += &band(cell, &x, bottom);
    }
    for (row, (model, cell)) in cells.iter().enumerate() {
        svg += &line(&table.models[*model], cell, &x, row);
    }
    svg + "</svg>\n"
}

/// The baseline's interval over the whole height.
fn band(cell: &Cell, x: &impl Fn(f64) -> f32, bottom: f32) -> String {
    let mut svg = String::new();
    if let Some((low, high)) = cell.interval {
        let _ = writeln!(
            svg,
            "<rect class=\"band\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{bottom:.1}\"/>",
            x(low),
            (x(high) - x(low)).max(1.0)
        );
    }
    let at = x(cell.value);
    let _ = writeln!(
        svg,
        "<line class=\"base\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>"
    );
    svg
}

fn line(model: &str, cell: &Cell, x: &impl Fn(f64) -> f32, row: usize) -> String {
    let top = ROW * row as f32;
    let y = top + 30.0;
    let said = match cell.interval {
        Some((low, high)) => format!(
            "{model}: {} ({} to {})",
            value(cell.value),
            value(low),
            value(high)
        ),
        None => format!("{model}: {}", value(cell.value)),
    };
    let best = if cell.best { " best" } else { "" };
    let mut svg = format!("<g class=\"row{best}\"><title>{}</title>\n", escaped(&said));
    let _ = writeln!(
        svg,
        "<text class=\"name\" x=\"{SIDE}\" y=\"{:.1}\">{}</text><text class=\"said\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        top + 17.0,
        escaped(&shortened(model)),
        WIDTH - SIDE,
        top + 17.0,
        value(cell.value)
    );
    if let Some((low, high)) = cell.interval {
        let (from, to) = (x(low), x(high));
        let _ = writeln!(
            svg,
            "<path class=\"range\" d=\"M{from:.1} {y:.1}H{to:.1}M{from:.1} {:.1}V{:.1}M{to:.1} {:.1}V{:.1}\"/>",
            y - 4.0,
            y + 4.0,
            y - 4.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>\n</g>",
        x(cell.value)
    );
    svg
}

/// A name that fits, with an ellipsis in its middle: what tells names apart is at their ends.
fn shortened(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= NAME_CHARS {
        return name.to_owned();
    }
    let half = NAME_CHARS / 2;
    let (head, tail) = (&chars[..half], &chars[chars.len() - half + 1..]);
    format!(
        "{}…{}",
        head.iter().collect::<String>(),
        tail.iter().collect::<String>()
    )
}
