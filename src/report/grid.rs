//! A table of words: what terminals, Markdown and LaTeX share.

use super::baseline::Test;
use super::table::{Cell, Table};

/// What stands under the differences.
pub(super) const DIFFERENCES_NOTE: &str = "Paired rows: 95 % paired bootstrap interval, McNemar's exact test, p-values after \
    Holm's correction for all tests here; better or worse means p < 0.05. Without predictions of the same test rows only the \
    two intervals are held against each other.";

/// One cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Words {
    /// The words.
    pub text: String,
    /// A second line in a terminal, brackets elsewhere; may be empty.
    pub below: String,
    /// Whether it is the best of its column.
    pub bold: bool,
}

/// Header and rows; the first column is aligned to the left, the others to the right.
pub(super) struct Grid {
    /// Upper and lower line of each title.
    pub header: Vec<(String, String)>,
    /// The rows.
    pub rows: Vec<Vec<Words>>,
}

/// Models by measures.
pub(super) fn results(table: &Table) -> Grid {
    let titles = table
        .columns
        .iter()
        .map(|column| (column.task.clone(), column.metric.clone()));
    let rows = table.models.iter().zip(&table.cells).map(|(model, row)| {
        let cells = row.iter().map(|cell| cell.as_ref().map_or_else(missing, words));
        std::iter::once(plain(model)).chain(cells).collect()
    });
    Grid {
        header: std::iter::once(("model".to_owned(), String::new()))
            .chain(titles)
            .collect(),
        rows: rows.collect(),
    }
}

/// One row a model and measure that differ from the baseline's.
pub(super) fn differences(table: &Table) -> Grid {
    let header = [
        "model",
        "measure",
        "difference",
        "95 % interval",
        "p (Holm)",
        "reading",
    ];
    let mut rows = Vec::new();
    for (model, row) in table.models.iter().zip(&table.cells) {
        for (cell, column) in row.iter().zip(&table.columns) {
            let Some(difference) = cell.as_ref().and_then(|cell| cell.difference.as_ref()) else {
                continue;
            };
            let (interval, p) = match &difference.test {
                Test::Paired { interval, p_holm, .. } => (
                    format!("{} to {}", signed(interval.0), signed(interval.1)),
                    p_value(*p_holm),
                ),
                Test::IntervalsOnly(_) => ("intervals only".to_owned(), String::new()),
            };
            let reading = format!("{} {}", difference.verdict.sign(), difference.verdict.words());
            rows.push(
                [
                    model.clone(),
                    column.title(),
                    signed(difference.value),
                    interval,
                    p,
                    reading,
                ]
                .map(|text| plain(&text))
                .to_vec(),
            );
        }
    }
    Grid {
        header: header.map(|title| (title.to_owned(), String::new())).to_vec(),
        rows,
    }
}

fn plain(text: &str) -> Words {
    Words {
        text: text.to_owned(),
        ..Words::default()
    }
}

fn missing() -> Words {
    plain("–")
}

fn words(cell: &Cell) -> Words {
    Words {
        text: value(cell.value),
        below: cell.interval.map_or(String::new(), |(low, high)| {
            format!("{}–{}", value(low), value(high))
        }),
        bold: cell.best,
    }
}

/// A number with four decimals, or three digits where those would say nothing.
pub(super) fn value(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-4..1e5).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A difference with its sign.
pub(super) fn signed(difference: f64) -> String {
    let text = format!("{difference:+.4}");
    if text.trim_start_matches(['+', '-']) == "0.0000" {
        "0.0000".to_owned()
    } else {
        text.replace('-', "−")
    }
}

/// A p-value as papers write it.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".to_owned()
    } else {
        format!("{p:.3}")
    }
}

impl Grid {
    /// For a terminal: two lines a row, a star at the best.
    pub fn to_text(&self) -> String {
        let starred = |words: &Words| format!("{}{}", words.text, if words.bold { "*" } else { "" });
        let width = |column: usize| {
            let header = &self.header[column];
            let cells = self
                .rows
                .iter()
                .flat_map(|row| [starred(&row[column]), row[column].below.clone()]);
            cells
                .chain([header.0.clone(), header.1.clone()])
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |cells: Vec<String>| {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (text, &width))| pad(text, width, self.left(column)))
                .collect();
            padded.join("  ").trim_end().to_owned() + "\n"
        };
        let mut text = line(self.header.iter().map(|title| title.0.clone()).collect());
        if self.header.iter().any(|title| !title.1.is_empty()) {
            text += &line(self.header.iter().map(|title| title.1.clone()).collect());
        }
        let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        text += &(rules.join("  ") + "\n");
        for row in &self.rows {
            text += &line(row.iter().map(starred).collect());
            if row.iter().any(|words| !words.below.is_empty()) {
                text += &line(row.iter().map(|words| words.below.clone()).collect());
            }
        }
        text
    }

    /// GitHub-flavoured Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let titles = self
            .header
            .iter()
            .map(|title| escaped(format!("{} {}", title.0, title.1).trim()));
        let mut text = line(titles.collect());
        let rules =
            (0..self.header.len()).map(|column| if self.left(column) { "---" } else { "--:" }.to_owned());
        text += &line(rules.collect());
        for row in &self.rows {
            let cells = row.iter().map(|words| {
                let text = escaped(&words.text);
                let text = if words.bold { format!("**{text}**") } else { text };
                match words.below.is_empty() {
                    true => text,
                    false => format!("{text} [{}]", words.below),
                }
            });
            text += &line(cells.collect());
        }
        text
    }

    /// Whether a column is words rather than numbers.
    pub fn left(&self, column: usize) -> bool {
        let title = self.header[column].0.as_str();
        ["model", "measure", "reading"].contains(&title)
    }
}

fn pad(text: &str, width: usize, left: bool) -> String {
    let fill = " ".repeat(width.saturating_sub(text.chars().count()));
    if left {
        text.to_owned() + &fill
    } else {
        fill + text
    }
}

/// `text` as it stands in a cell of a Markdown table.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '<' => escaped.push_str("&lt;"),
            c => escaped.push(c),
        }
    }
    escaped
}
