//! The page: one file with its style, its script and its pictures in it, and a policy that forbids the network. `chart`
//! draws a measure as SVG, `details` says where each number comes from, `confusion` shows what was taken for what, `picture`
//! embeds files. All text that a user or a file brought is escaped.

mod chart;
mod confusion;
mod details;
mod picture;

use super::Report;
use super::baseline::{Test, Verdict};
use super::grid::{DIFFERENCES_NOTE, p_value, signed, value};
use super::table::{Cell, Column, Table};

pub(super) use self::picture::Picture;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Nothing may be fetched: the style, the script and the pictures are in the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let title = escaped(&report.title);
    let mut body = format!(
        "<header><h1>{title}</h1>\n<p class=\"summary\">{}</p></header>\n<main>\n",
        summary(report)
    );
    body += &results(report);
    body += &charts(report);
    if report.baseline.is_some() {
        body += &differences(report);
    }
    body += &picture::section(&report.pictures);
    body += &details::section(&report.table, &report.results);
    body += &format!(
        "</main>\n<footer>macula {} · fractions from 0 to 1 · this page needs no network</footer>\n",
        env!("CARGO_PKG_VERSION")
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// How much there is, and on which images.
fn summary(report: &Report) -> String {
    let table = &report.table;
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let mut images: Vec<&str> = table.columns.iter().map(|column| column.data.as_str()).collect();
    images.sort_unstable();
    images.dedup();
    let mut parts = vec![
        count(table.models.len(), "model"),
        count(table.columns.len(), "measure"),
        format!("images: {}", escaped(&images.join(", "))),
    ];
    if let Some(baseline) = &report.baseline {
        parts.push(format!("baseline: <b>{}</b>", escaped(baseline)));
    }
    parts.join(" · ")
}

fn results(report: &Report) -> String {
    let table = &report.table;
    let mut html = "<section>\n<h2>Results</h2>\n".to_owned();
    html += "<p class=\"note\">Value and 95 % interval; the best of each column is bold and marked ★. Click a title to sort.</p>\n";
    html += "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Results\">\n<table id=\"results\" class=\"sortable\">\n<thead><tr>";
    html += "<th scope=\"col\"><button type=\"button\">model</button></th>";
    for column in &table.columns {
        html += &format!(
            "<th scope=\"col\" class=\"number\"><button type=\"button\">{}<br><b>{}</b>{}</button></th>",
            unbroken(&column.task),
            escaped(&column.metric),
            if column.higher_is_better {
                ""
            } else {
                " (less is better)"
            }
        );
    }
    html += "</tr></thead>\n<tbody>\n";
    for (model, row) in table.models.iter().zip(&table.cells) {
        let base = report.baseline.as_ref() == Some(model);
        html += &format!(
            "<tr{}><th scope=\"row\" data-value=\"{}\">{}{}</th>",
            if base { " class=\"baseline\"" } else { "" },
            escaped(model),
            breakable(model),
            if base {
                " <span class=\"tag\">baseline</span>"
            } else {
                ""
            }
        );
        for cell in row {
            html += &cell
                .as_ref()
                .map_or_else(|| "<td class=\"number none\">–</td>".to_owned(), cell_html);
        }
        html += "</tr>\n";
    }
    html += "</tbody></table>\n</div>\n";
    for note in &report.notes {
        html += &format!("<p class=\"warning\">Note: {}</p>\n", escaped(note));
    }
    html + "</section>\n"
}

fn cell_html(cell: &Cell) -> String {
    let mut html = format!(
        "<td class=\"number{}\" data-value=\"{}\"><span class=\"value\">{}{}</span>",
        if cell.best { " best" } else { "" },
        cell.value,
        if cell.best {
            "<span class=\"star\" title=\"best\">★</span> "
        } else {
            ""
        },
        value(cell.value)
    );
    if let Some((low, high)) = cell.interval {
        html += &format!("<span class=\"interval\">{}–{}</span>", short(low), short(high));
    }
    if let Some(difference) = &cell.difference {
        html += &format!(
            "<span class=\"difference {}\" title=\"{}\">{} {}</span>",
            class(difference.verdict),
            difference.verdict.words(),
            difference.verdict.sign(),
            signed(difference.value)
        );
    }
    html + "</td>"
}

/// The end of an interval, with the digits it is sure of.
fn short(end: f64) -> String {
    if (1e-3..1e3).contains(&end.abs()) || end == 0.0 {
        format!("{end:.3}")
    } else {
        value(end)
    }
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better | Verdict::ApartBetter => "up",
        Verdict::Worse | Verdict::ApartWorse => "down",
        Verdict::NoDifference | Verdict::Overlap | Verdict::Unknown => "level",
    }
}

fn charts(report: &Report) -> String {
    let table = &report.table;
    let base = report
        .baseline
        .as_ref()
        .and_then(|name| table.models.iter().position(|model| model == name));
    let mut html = "<section>\n<h2>Values and intervals</h2>\n".to_owned();
    html += "<p class=\"note\">Dots are values, lines 95 % intervals; a filled dot is the best";
    html += if base.is_some() {
        "; the band is the baseline's interval."
    } else {
        "."
    };
    html += " Axes do not begin at 0.</p>\n<div class=\"charts\">\n";
    for (place, column) in table.columns.iter().enumerate() {
        html += &figure(table, place, column, base);
    }
    html + "</div>\n</section>\n"
}

fn figure(table: &Table, place: usize, column: &Column, base: Option<usize>) -> String {
    let arrow = if column.higher_is_better {
        "more is better →"
    } else {
        "← less is better"
    };
    format!(
        "<figure>\n<figcaption><b>{}</b> {} <span class=\"hint\">{arrow}</span></figcaption>\n{}</figure>\n",
        escaped(&column.task),
        escaped(&column.metric),
        chart::svg(table, place, base)
    )
}

fn differences(report: &Report) -> String {
    let baseline = escaped(report.baseline.as_deref().unwrap_or_default());
    let mut html = format!(
        "<section>\n<h2>Difference from {baseline}</h2>\n<p class=\"note\">{}</p>\n",
        escaped(DIFFERENCES_NOTE)
    );
    html += "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Differences\">\n<table id=\"differences\" class=\"sortable\">\n<thead><tr>";
    for (title, number) in [
        ("model", false),
        ("measure", false),
        ("difference", true),
        ("95 % interval", true),
        ("p (Holm)", true),
        ("reading", false),
    ] {
        let class = if number { " class=\"number\"" } else { "" };
        html += &format!("<th scope=\"col\"{class}><button type=\"button\">{title}</button></th>");
    }
    html += "</tr></thead>\n<tbody>\n";
    for (model, row) in report.table.models.iter().zip(&report.table.cells) {
        for (cell, column) in row.iter().zip(&report.table.columns) {
            if let Some(cell) = cell {
                html += &difference_row(model, column, cell);
            }
        }
    }
    html + "</tbody></table>\n</div>\n</section>\n"
}

fn difference_row(model: &str, column: &Column, cell: &Cell) -> String {
    let Some(difference) = &cell.difference else {
        return String::new();
    };
    let (interval, p) = match &difference.test {
        Test::Paired { interval, p_holm, .. } => (
            format!(
                "<td class=\"number\" data-value=\"{}\">{} to {}</td>",
                interval.0,
                signed(interval.0),
                signed(interval.1)
            ),
            format!(
                "<td class=\"number\" data-value=\"{p_holm}\">{}</td>",
                escaped(&p_value(*p_holm))
            ),
        ),
        Test::IntervalsOnly(why) => (
            format!(
                "<td class=\"number none\" title=\"{}\">intervals only</td>",
                escaped(why)
            ),
            "<td class=\"number none\">–</td>".to_owned(),
        ),
    };
    format!(
        "<tr><th scope=\"row\" data-value=\"{name}\">{}</th><td data-value=\"{title}\">{title}</td>\
         <td class=\"number\" data-value=\"{}\">{}</td>{interval}{p}\
         <td data-value=\"{}\"><span class=\"difference {}\">{} {}</span></td></tr>\n",
        breakable(model),
        difference.value,
        signed(difference.value),
        difference.verdict.words(),
        class(difference.verdict),
        difference.verdict.sign(),
        difference.verdict.words(),
        name = escaped(model),
        title = escaped(&column.title()),
    )
}

/// A name that may be broken after the signs that join its parts.
fn breakable(name: &str) -> String {
    let mut html = String::new();
    for part in name.split_inclusive(['-', '_', '.', '/']) {
        html += &escaped(part);
        html += if part.ends_with(['-', '_', '.', '/']) {
            "<wbr>"
        } else {
            ""
        };
    }
    html
}

/// A title in which `k = 20` stays on one line.
fn unbroken(title: &str) -> String {
    escaped(title).replace(" = ", "\u{a0}=\u{a0}")
}

/// `text` as it stands in the page, between tags or within quotes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
