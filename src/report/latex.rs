//! The table for a paper: booktabs, the best in bold, intervals small.

use super::grid::{self, Grid};
use super::table::Table;

/// A `tabular` for the results, and one for the differences where there is a baseline.
pub(super) fn write(table: &Table, baseline: Option<&str>) -> String {
    let mut text = "% needs \\usepackage{booktabs}\n".to_owned();
    text += &tabular(&grid::results(table));
    if let Some(baseline) = baseline {
        text += &format!("\n% difference from {}\n", baseline.replace(['\n', '\r'], " "));
        text += &tabular(&grid::differences(table));
    }
    text
}

fn tabular(grid: &Grid) -> String {
    let columns: String = (0..grid.header.len())
        .map(|column| if grid.left(column) { 'l' } else { 'r' })
        .collect();
    let mut text = format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
    text += &line(grid.header.iter().map(|title| escaped(&title.0)));
    if grid.header.iter().any(|title| !title.1.is_empty()) {
        text += &line(grid.header.iter().map(|title| escaped(&title.1)));
    }
    text += "\\midrule\n";
    for row in &grid.rows {
        text += &line(row.iter().map(|words| {
            let text = escaped(&words.text);
            let text = if words.bold {
                format!("\\textbf{{{text}}}")
            } else {
                text
            };
            match words.below.is_empty() {
                true => text,
                false => format!("{text} {{\\scriptsize [{}]}}", escaped(&words.below)),
            }
        }));
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    format!("{} \\\\\n", cells.join(" & "))
}

/// `text` with what LaTeX reads as commands made plain.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '–' => escaped.push_str("--"),
            '−' => escaped.push_str("$-$"),
            '·' => escaped.push_str("$\\cdot$"),
            '▲' => escaped.push_str("$\\uparrow$"),
            '▼' => escaped.push_str("$\\downarrow$"),
            '≈' => escaped.push_str("$\\approx$"),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
