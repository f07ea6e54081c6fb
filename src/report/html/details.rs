//! Where each number comes from: every result with its whole table, its settings, and what was taken for what.

use serde_json::{Map, Value};

use super::{confusion, escaped};
use crate::report::grid::value;
use crate::report::table::Table;
use crate::results::StoredResult;

/// Rows of a result's own table that are shown.
const MAX_ROWS: usize = 200;
/// Letters of one setting that are shown.
const MAX_LETTERS: usize = 400;

/// All results, one that opens by a click each.
pub(super) fn section(table: &Table, results: &[StoredResult]) -> String {
    let mut html = "<section>\n<h2>Where the numbers come from</h2>\n".to_owned();
    for (model, row) in table.models.iter().zip(&table.cells) {
        let mut shown: Vec<(usize, Option<u64>)> = Vec::new();
        for cell in row.iter().flatten() {
            if !shown.iter().any(|(result, _)| *result == cell.result) {
                shown.push((cell.result, cell.k));
            }
        }
        for (place, k) in shown {
            html += &result(model, &results[place], k);
        }
    }
    html + "</section>\n"
}

fn result(model: &str, result: &StoredResult, k: Option<u64>) -> String {
    let mut html = format!(
        "<details>\n<summary><b>{}</b> · {} <span class=\"path\">{}</span></summary>\n",
        escaped(model),
        escaped(&result.task),
        escaped(&result.file())
    );
    html += &rows(&result.rows);
    html += &confusion::figure(result, k);
    html += "<dl>";
    let counts = [("n_train", result.n_train), ("n_test", result.n_test)];
    for (name, count) in counts {
        html += &format!("<div><dt>{name}</dt><dd>{count}</dd></div>");
    }
    for (name, setting) in &result.settings {
        html += &format!(
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escaped(name),
            escaped(&plain(setting))
        );
    }
    html + "</dl>\n</details>\n"
}

fn rows(rows: &[Map<String, Value>]) -> String {
    let mut names: Vec<&String> = Vec::new();
    for row in rows {
        names.extend(
            row.keys()
                .filter(|name| !names.contains(name))
                .collect::<Vec<_>>(),
        );
    }
    let mut html = "<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>".to_owned();
    for name in &names {
        let class = if rows
            .iter()
            .any(|row| row.get(*name).is_some_and(Value::is_number))
        {
            " class=\"number\""
        } else {
            ""
        };
        html += &format!("<th scope=\"col\"{class}>{}</th>", escaped(name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in rows.iter().take(MAX_ROWS) {
        html += "<tr>";
        for name in &names {
            let cell = row.get(*name).unwrap_or(&Value::Null);
            let class = if cell.is_number() { " class=\"number\"" } else { "" };
            html += &format!("<td{class}>{}</td>", escaped(&shown(cell)));
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    if rows.len() > MAX_ROWS {
        html += &format!(
            "<p class=\"note\">{} more rows are in the file.</p>\n",
            rows.len() - MAX_ROWS
        );
    }
    html
}

fn shown(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => value(number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

/// A setting without JSON's signs, and not endless.
fn plain(setting: &Value) -> String {
    let text = match setting {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            let fields = map
                .iter()
                .map(|(name, value)| format!("{name}: {}", plain(value)));
            fields.collect::<Vec<_>>().join("; ")
        }
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_LETTERS {
        return text;
    }
    text.chars().take(MAX_LETTERS).collect::<String>() + "…"
}
