//! The table for programs: Polars frames with every digit.

use macula_eval::Error as EvalError;
use polars::prelude::{Column as Series, CsvWriter, DataFrame, ParquetWriter, SerWriter as _};

use super::baseline::Test;
use super::table::{Cell, Column, Table};
use crate::results::StoredResult;
use crate::{Error, Result};

/// One row a model: for each measure its value, `low` and `high`, and with a baseline `difference` and `p_holm`.
pub(super) fn wide(table: &Table) -> Result<DataFrame> {
    let mut columns = vec![Series::new("model".into(), table.models.clone())];
    for (place, column) in table.columns.iter().enumerate() {
        let title = column.title();
        let mut push = |name: String, value: fn(&Cell) -> Option<f64>| {
            let values: Vec<Option<f64>> = table.column(place).map(|cell| value(cell?)).collect();
            columns.push(Series::new(name.as_str().into(), values));
        };
        push(title.clone(), |cell| Some(cell.value));
        push(format!("{title} low"), |cell| Some(cell.interval?.0));
        push(format!("{title} high"), |cell| Some(cell.interval?.1));
        if has_baseline(table) {
            push(format!("{title} difference"), |cell| {
                Some(cell.difference.as_ref()?.value)
            });
            push(format!("{title} p_holm"), |cell| paired(cell).map(|test| test[3]));
        }
    }
    frame(table.models.len(), columns)
}

/// One row a model and measure: `model`, `task`, `metric`, `data`, `value`, `low`, `high`, `best`, `n_train`, `n_test`,
/// `result`, and with a baseline `difference`, its interval, `p_value`, `p_holm`, `compared_by` and `verdict`.
pub(super) fn long(table: &Table, results: &[StoredResult]) -> Result<DataFrame> {
    let cells: Vec<(&String, &Column, &Cell)> = table
        .models
        .iter()
        .zip(&table.cells)
        .flat_map(|(model, row)| {
            let row = row.iter().zip(&table.columns);
            row.filter_map(move |(cell, column)| Some((model, column, cell.as_ref()?)))
        })
        .collect();
    let text = |name: &str, value: &dyn Fn(&(&String, &Column, &Cell)) -> String| {
        Series::new(name.into(), cells.iter().map(value).collect::<Vec<_>>())
    };
    let number = |name: &str, value: &dyn Fn(&Cell) -> Option<f64>| {
        Series::new(
            name.into(),
            cells.iter().map(|cell| value(cell.2)).collect::<Vec<_>>(),
        )
    };
    let count = |name: &str, value: fn(&StoredResult) -> u64| {
        let counts = cells.iter().map(|cell| value(&results[cell.2.result]));
        Series::new(name.into(), counts.collect::<Vec<_>>())
    };
    let flag = |name: &str, value: &dyn Fn(&(&String, &Column, &Cell)) -> bool| {
        Series::new(name.into(), cells.iter().map(value).collect::<Vec<_>>())
    };
    let mut columns = vec![
        text("model", &|cell| cell.0.clone()),
        text("task", &|cell| cell.1.task.clone()),
        text("metric", &|cell| cell.1.metric.clone()),
        text("data", &|cell| cell.1.data.clone()),
        number("value", &|cell| Some(cell.value)),
        number("low", &|cell| Some(cell.interval?.0)),
        number("high", &|cell| Some(cell.interval?.1)),
        flag("best", &|cell| cell.2.best),
        flag("higher_is_better", &|cell| cell.1.higher_is_better),
        count("n_train", |result| result.n_train),
        count("n_test", |result| result.n_test),
        text("result", &|cell| results[cell.2.result].file()),
    ];
    if has_baseline(table) {
        let difference = |cell: &Cell| cell.difference.clone();
        columns.extend([
            number("difference", &|cell| Some(difference(cell)?.value)),
            number("difference_low", &|cell| Some(paired(cell)?[0])),
            number("difference_high", &|cell| Some(paired(cell)?[1])),
            number("p_value", &|cell| Some(paired(cell)?[2])),
            number("p_holm", &|cell| Some(paired(cell)?[3])),
            text(
                "compared_by",
                &|cell| match difference(cell.2).map(|found| found.test) {
                    None => String::new(),
                    Some(Test::Paired { .. }) => "paired bootstrap, McNemar".to_owned(),
                    Some(Test::IntervalsOnly(why)) => format!("intervals only: {why}"),
                },
            ),
            text("verdict", &|cell| {
                difference(cell.2).map_or(String::new(), |found| found.verdict.words().to_owned())
            }),
        ]);
    }
    frame(cells.len(), columns)
}

/// The frame as CSV.
pub(super) fn to_csv(frame: &mut DataFrame) -> Result<String> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes)
        .finish(frame)
        .map_err(EvalError::from)?;
    String::from_utf8(bytes).map_err(|e| Error::failed("report.csv", e.to_string()))
}

/// The frame as Parquet.
pub(super) fn to_parquet(frame: &mut DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .finish(frame)
        .map_err(EvalError::from)?;
    Ok(bytes)
}

fn frame(height: usize, columns: Vec<Series>) -> Result<DataFrame> {
    Ok(DataFrame::new(height, columns).map_err(EvalError::from)?)
}

/// Lower end, upper end, p-value and corrected p-value of a paired test.
fn paired(cell: &Cell) -> Option<[f64; 4]> {
    match cell.difference.as_ref()?.test {
        Test::Paired {
            interval,
            p_value,
            p_holm,
        } => Some([interval.0, interval.1, p_value, p_holm]),
        Test::IntervalsOnly(_) => None,
    }
}

fn has_baseline(table: &Table) -> bool {
    table
        .cells
        .iter()
        .flatten()
        .flatten()
        .any(|cell| cell.difference.is_some())
}
