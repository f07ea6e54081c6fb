//! Results as one table: models down, measures across, the best of each measure marked.

use std::collections::BTreeMap;

use super::names;
use super::tasks::{self, Number};
use crate::results::StoredResult;
use crate::{Error, Result};

/// Models by measures.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Names of the models, in the order in which results named them.
    pub models: Vec<String>,
    /// What is measured.
    pub columns: Vec<Column>,
    /// `[models][columns]`; none where a model was not measured.
    pub cells: Vec<Vec<Option<Cell>>>,
}

/// One measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Protocol and what of it varies, with the images where results speak of several.
    pub task: String,
    /// What is measured.
    pub metric: String,
    /// The images, for people.
    pub data: String,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// One model's number.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The value; fractions from 0 to 1.
    pub value: f64,
    /// Ends of the 95 % interval, where there is one.
    pub interval: Option<(f64, f64)>,
    /// Whether no other model has a better one; false where there is only one model.
    pub best: bool,
    /// Place of the result it comes from.
    pub result: usize,
    /// Which of several classifiers of that result.
    pub k: Option<u64>,
    /// Whether kept predictions can be compared.
    pub accuracy: bool,
    /// How it differs from the baseline's, where one was named and has a number.
    pub difference: Option<super::baseline::Difference>,
}

/// What makes a column: numbers with the same key are compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    order: usize,
    task: String,
    metric: String,
    data: String,
}

impl Column {
    /// Protocol and measure in one line.
    pub fn title(&self) -> String {
        format!("{} {}", self.task, self.metric).trim().to_owned()
    }
}

impl Table {
    /// Puts `results` together. `k` chooses among the rows of k-NN results. Also returns notes on what is not comparable.
    ///
    /// # Errors
    /// A result that has no number to show, and two of one model and measure that say different things (both are named).
    pub fn from_results(results: &[StoredResult], k: Option<u64>) -> Result<(Self, Vec<String>)> {
        let numbers = tasks::numbers(results, k)?;
        let (names, data) = (names::models(results), names::data(results));
        let mut models: Vec<String> = Vec::new();
        let mut columns: BTreeMap<Key, (usize, Column)> = BTreeMap::new();
        let mut found: BTreeMap<(usize, Key), Cell> = BTreeMap::new();
        let several_data = data.iter().any(|other| other.label != data[0].label);
        for (place, result) in results.iter().enumerate() {
            let model = match models.iter().position(|model| *model == names[place]) {
                Some(model) => model,
                None => {
                    models.push(names[place].clone());
                    models.len() - 1
                }
            };
            for number in &numbers[place] {
                let key = Key {
                    order: number.order,
                    task: number.task.clone(),
                    metric: number.metric.clone(),
                    data: data[place].key.clone(),
                };
                let cell = cell(number, place);
                if let Some(earlier) = found.get(&(model, key.clone())) {
                    same(
                        &results[earlier.result],
                        earlier,
                        result,
                        &cell,
                        &names[place],
                        number,
                    )?;
                    continue;
                }
                let column = Column {
                    task: match several_data {
                        true => format!("{} on {}", number.task, data[place].label),
                        false => number.task.clone(),
                    },
                    metric: number.metric.clone(),
                    data: data[place].label.clone(),
                    higher_is_better: number.higher_is_better,
                };
                columns.entry(key.clone()).or_insert((number.place, column));
                found.insert((model, key), cell);
            }
        }
        // By protocol and images, and within them in the protocol's own order.
        let mut columns: Vec<(Key, (usize, Column))> = columns.into_iter().collect();
        columns.sort_by(|(a, (a_place, _)), (b, (b_place, _))| {
            (a.order, &a.task, &a.data, a_place, &a.metric)
                .cmp(&(b.order, &b.task, &b.data, b_place, &b.metric))
        });
        let cells = (0..models.len())
            .map(|model| {
                columns
                    .iter()
                    .map(|(key, _)| found.get(&(model, key.clone())).cloned())
                    .collect()
            })
            .collect();
        let mut table = Self {
            models,
            columns: columns.into_iter().map(|(_, (_, column))| column).collect(),
            cells,
        };
        table.mark_best();
        let mut notes = names::replaced(results, &data);
        notes.extend(table.notes(results));
        Ok((table, notes))
    }

    /// The cells of one column, from the first model to the last.
    pub fn column(&self, column: usize) -> impl Iterator<Item = Option<&Cell>> {
        self.cells.iter().map(move |row| row[column].as_ref())
    }

    fn mark_best(&mut self) {
        for (place, column) in self.columns.iter().enumerate() {
            let sign = if column.higher_is_better { 1.0 } else { -1.0 };
            let values: Vec<f64> = self
                .cells
                .iter()
                .flat_map(|row| &row[place])
                .map(|cell| sign * cell.value)
                .collect();
            let best = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for cell in self.cells.iter_mut().flat_map(|row| &mut row[place]) {
                cell.best = values.len() > 1 && sign * cell.value == best;
            }
        }
    }

    /// What makes the numbers of a column hard to compare: other settings, other numbers of rows.
    fn notes(&self, results: &[StoredResult]) -> Vec<String> {
        let mut notes = Vec::new();
        for (place, column) in self.columns.iter().enumerate() {
            let measured: Vec<(usize, &Cell)> = self
                .column(place)
                .enumerate()
                .filter_map(|(model, cell)| Some((model, cell?)))
                .collect();
            let Some(&(first, cell)) = measured.first() else {
                continue;
            };
            let a = &results[cell.result];
            for &(model, other) in &measured[1..] {
                let b = &results[other.result];
                let (left, right) = (&self.models[first], &self.models[model]);
                let mut note = |what: String| {
                    let note = format!("{}: {left} and {right} {what}", column.task);
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                };
                let settings = tasks::differing_settings(a, b);
                if !settings.is_empty() {
                    note(format!("were evaluated with different {}", settings.join(", ")));
                }
                if let Some(differs) = names::read_differently(a, b) {
                    note(format!("read their images differently ({})", differs.both()));
                }
                if (a.n_train, a.n_test) != (b.n_train, b.n_test) {
                    note(format!(
                        "have different rows: {} and {} train, {} and {} test",
                        a.n_train, b.n_train, a.n_test, b.n_test
                    ));
                }
            }
        }
        notes
    }
}

fn cell(number: &Number, result: usize) -> Cell {
    Cell {
        value: number.value,
        interval: number.interval,
        best: false,
        result,
        k: number.k,
        accuracy: number.accuracy,
        difference: None,
    }
}

/// Accepts a second result that says what the first says.
fn same(
    first: &StoredResult,
    earlier: &Cell,
    second: &StoredResult,
    cell: &Cell,
    model: &str,
    number: &Number,
) -> Result<()> {
    if (earlier.value, earlier.interval) == (cell.value, cell.interval) {
        return Ok(());
    }
    Err(Error::input(
        second.file(),
        format!(
            "model `{model}`, {} {}: expected what {} says, {}, found {}; name one of them: NAME={}",
            number.task,
            number.metric,
            first.file(),
            said(earlier),
            said(cell),
            second.folder().display()
        ),
    ))
}

fn said(cell: &Cell) -> String {
    match cell.interval {
        Some((low, high)) => format!("{} ({low} to {high})", cell.value),
        None => cell.value.to_string(),
    }
}
