//! What was taken for what: the confusion matrix beside a result, as SVG. Darker is a greater share of the row's class.

use std::fmt::Write as _;
use std::fs;

use polars::prelude::{CsvReadOptions, DataFrame, SerReader as _};

use super::escaped;
use crate::results::StoredResult;

/// A matrix of more classes cannot be read on a page.
const MAX_CLASSES: usize = 40;
/// Cells that have room for their numbers.
const NUMBERED: usize = 15;
/// Width of a letter of a name, about.
const LETTER: f32 = 7.0;
/// Letters of a name that fit there.
const NAME_CHARS: usize = 14;
/// Width of the picture.
const WIDTH: f32 = 520.0;

/// The matrix of classifier `k`, if the result kept one that can be read; nothing otherwise.
pub(super) fn figure(result: &StoredResult, k: Option<u64>) -> String {
    let name = match k {
        Some(k) => format!("confusion-k{k}.csv"),
        None => "confusion.csv".to_owned(),
    };
    let Some((names, counts)) = read(&result.folder().join(name)) else {
        return String::new();
    };
    format!(
        "<figure class=\"confusion\">\n<figcaption>What each class (rows) was taken for (columns), in per cent of the row</figcaption>\n{}</figure>\n",
        svg(&names, &counts)
    )
}

/// Names of the classes and counts `[classes, classes]`.
fn read(path: &std::path::Path) -> Option<(Vec<String>, Vec<Vec<f64>>)> {
    let bytes = fs::read(path).ok()?;
    let reader = CsvReadOptions::default().with_infer_schema_length(None);
    let table: DataFrame = reader
        .into_reader_with_file_handle(std::io::Cursor::new(bytes))
        .finish()
        .ok()?;
    let columns = table.columns();
    let names: Vec<String> = columns
        .iter()
        .skip(1)
        .map(|column| column.name().to_string())
        .collect();
    if names.is_empty() || names.len() > MAX_CLASSES || table.height() != names.len() {
        return None;
    }
    let cell = |column: usize, row: usize| columns[column].get(row).ok()?.extract::<f64>();
    let counts = (0..names.len())
        .map(|row| (1..=names.len()).map(|column| cell(column, row)).collect())
        .collect::<Option<Vec<Vec<f64>>>>()?;
    Some((names, counts))
}

fn svg(names: &[String], counts: &[Vec<f64>]) -> String {
    let longest = names
        .iter()
        .map(|name| name.chars().count().min(NAME_CHARS))
        .max();
    // At the left names lie, above they lean.
    let left = 18.0 + LETTER * longest.unwrap_or(0) as f32;
    let side = (WIDTH - left) / names.len() as f32;
    let height = left + side * names.len() as f32;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height:.1}\" role=\"img\" aria-label=\"confusion matrix\">\n");
    for (place, name) in names.iter().enumerate() {
        let name: String = name.chars().take(NAME_CHARS).collect();
        let middle = left + side * (place as f32 + 0.5);
        let _ = writeln!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>\
             <text class=\"label\" transform=\"translate({middle:.1} {:.1}) rotate(-50)\">{name}</text>",
            left - 8.0,
            middle + 4.0,
            left - 8.0,
            name = escaped(&name)
        );
    }
    for (row, line) in counts.iter().enumerate() {
        let total: f64 = line.iter().sum();
        for (column, count) in line.iter().enumerate() {
            let share = if total > 0.0 { count / total } else { 0.0 };
            svg += &cell(names, (row, column), (share, *count), (left, side));
        }
    }
    svg + "</svg>\n"
}

fn cell(
    names: &[String],
    (row, column): (usize, usize),
    (share, count): (f64, f64),
    (left, side): (f32, f32),
) -> String {
    let (x, y) = (left + side * column as f32, left + side * row as f32);
    let kind = if row == column { "right" } else { "wrong" };
    // Small shares are what one looks for, and would be white.
    let opacity = share.sqrt();
    let mut svg = format!(
        "<g><title>{} taken for {}: {count}</title><rect class=\"{kind}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{opacity:.3}\"/>",
        escaped(&names[row]),
        escaped(&names[column]),
        side - 1.0,
        side - 1.0
    );
    if names.len() <= NUMBERED && share >= 0.005 {
        let dark = if share > 0.4 { " on" } else { "" };
        let _ = write!(
            svg,
            "<text class=\"share{dark}\" x=\"{:.1}\" y=\"{:.1}\">{:.0}</text>",
            x + side / 2.0,
            y + side / 2.0 + 4.0,
            100.0 * share
        );
    }
    svg + "</g>\n"
}
