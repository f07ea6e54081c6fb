//! The one place that knows how a result looks: JSON, Parquet, CSV, Markdown and the table in a terminal. Every protocol
//! ends in an [`EvalResult`]; fractions stay between 0 and 1 everywhere.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use polars::prelude::{AnyValue, CsvWriter, DataFrame, ParquetWriter, SerWriter};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Version of `result.json`; raised when a field changes its meaning.
pub const RESULT_VERSION: u64 = 1;

/// Decimals of a fraction in printed tables. Files keep all digits.
const DECIMALS: usize = 4;

/// What one evaluation found: a table and what it was made from.
#[derive(Debug, Clone)]
pub struct EvalResult {
    /// Name of the protocol, as in `macula eval NAME`.
    pub task: String,
    /// The settings it ran with.
    pub settings: Value,
    /// Training rows.
    pub n_train: usize,
    /// Test rows.
    pub n_test: usize,
    /// The numbers. Columns are booleans, whole numbers, f32, f64 or strings.
    pub table: DataFrame,
}

/// One cell, apart from Polars.
enum Cell<'a> {
    Missing,
    Bool(bool),
    Whole(i128),
    Number(f64),
    Text(Cow<'a, str>),
}

impl EvalResult {
    /// A result of protocol `task`; `settings` is any serialisable configuration.
    ///
    /// # Errors
    /// Settings that JSON cannot hold, or a column of another type than those a result may have.
    pub fn new(
        task: impl Into<String>,
        settings: impl Serialize,
        n_train: usize,
        n_test: usize,
        table: DataFrame,
    ) -> Result<Self> {
        let settings = serde_json::to_value(settings)
            .map_err(|e| Error::config("settings", format!("cannot be written as JSON: {e}")))?;
        let result = Self {
            task: task.into(),
            settings,
            n_train,
            n_test,
            table,
        };
        result.cells()?; // every cell is one that can be shown
        Ok(result)
    }

    /// `{"task", "settings", "n_train", "n_test", "rows": [{..}]}`, the keys of a row being the columns of the table. A
    /// missing value, NaN or infinity is null.
    ///
    /// # Errors
    /// A column put into the table later that a result may not have.
    pub fn to_json(&self) -> Result<Value> {
        let names = self.names();
        let rows: Vec<Value> = self
            .cells()?
            .iter()
            .map(|row| {
                let fields: Map<String, Value> = names
                    .iter()
                    .zip(row)
                    .map(|(name, cell)| (name.clone(), cell.to_json()))
                    .collect();
                Value::Object(fields)
            })
            .collect();
        Ok(json!({
            "task": self.task,
            "settings": self.settings,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "rows": rows,
        }))
    }

    /// The table for a terminal: every row and column, fractions with 4 decimals.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn to_text(&self) -> Result<String> {
        let (header, rows) = self.formatted()?;
        let widths = widths(&header, &rows);
        let line = |cells: &[Formatted]| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, &w)| c.padded(w)).collect();
            padded.join("  ").trim_end().to_owned() + "\n"
        };
        let rule: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        let mut text = line(&header) + &rule.join("  ") + "\n";
        rows.iter().for_each(|row| text += &line(row));
        Ok(text)
    }

    /// The table as GitHub-flavoured Markdown, numbers aligned to the right.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn to_markdown(&self) -> Result<String> {
        let (mut header, mut rows) = self.formatted()?;
        let escape = |cell: &mut Formatted| cell.text = cell.text.replace('|', "\\|").replace('\n', " ");
        header
            .iter_mut()
            .chain(rows.iter_mut().flatten())
            .for_each(escape);
        let widths: Vec<usize> = widths(&header, &rows).into_iter().map(|w| w.max(3)).collect();
        let line = |cells: &[Formatted]| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, &w)| c.padded(w)).collect();
            format!("| {} |\n", padded.join(" | "))
        };
        let rule: Vec<String> = header
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| {
                if cell.right {
                    "-".repeat(width - 1) + ":"
                } else {
                    "-".repeat(width)
                }
            })
            .collect();
        let mut text = line(&header) + &format!("| {} |\n", rule.join(" | "));
        rows.iter().for_each(|row| text += &line(row));
        Ok(text)
    }

    /// Keeps the result in folder `dir` (made if need be) as `result.json` (the object of [`Self::to_json`] and its
    /// `version`), `table.parquet`, `table.csv` and `table.md`. Each is written beside its name and renamed;
    /// `result.json` comes last, so that where it stands the rest is whole.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that could not be written; what Polars cannot write.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let mut result = self.to_json()?;
        result["version"] = json!(RESULT_VERSION);
        let json = serde_json::to_string_pretty(&result)
            .map_err(|e| Error::data("result", format!("cannot be written as JSON: {e}")))?;
        let mut table = self.table.clone();
        let (mut parquet, mut csv) = (Vec::new(), Vec::new());
        ParquetWriter::new(&mut parquet).finish(&mut table)?;
        CsvWriter::new(&mut csv).finish(&mut table)?;
        write_whole(dir, "table.parquet", &parquet)?;
        write_whole(dir, "table.csv", &csv)?;
        write_whole(dir, "table.md", self.to_markdown()?.as_bytes())?;
        write_whole(dir, "result.json", (json + "\n").as_bytes())
    }

    fn names(&self) -> Vec<String> {
        let columns = self.table.columns().iter();
        columns.map(|column| column.name().to_string()).collect()
    }

    /// The table row by row.
    fn cells(&self) -> Result<Vec<Vec<Cell<'_>>>> {
        (0..self.table.height())
            .map(|row| {
                let columns = self.table.columns().iter();
                columns
                    .map(|column| Cell::new(column.name().as_str(), column.get(row)?))
                    .collect()
            })
            .collect()
    }

    /// Header and rows as text.
    fn formatted(&self) -> Result<(Vec<Formatted>, Vec<Vec<Formatted>>)> {
        let cells = self.cells()?;
        let names = self.names();
        let columns = 0..names.len();
        let right: Vec<bool> = self
            .table
            .columns()
            .iter()
            .map(|column| column.dtype().is_primitive_numeric())
            .collect();
        let fixed: Vec<bool> = columns
            .map(|column| cells.iter().all(|row| row[column].fits_fixed_decimals()))
            .collect();
        let header = names
            .into_iter()
            .zip(&right)
            .map(|(text, &right)| Formatted { text, right })
            .collect();
        let rows = cells
            .iter()
            .map(|row| {
                let places = right.iter().zip(&fixed);
                row.iter()
                    .zip(places)
                    .map(|(cell, (&right, &fixed))| Formatted {
                        text: cell.to_text(fixed),
                        right,
                    })
                    .collect()
            })
            .collect();
        Ok((header, rows))
    }
}

impl fmt::Display for EvalResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text().map_err(|_| fmt::Error)?)
    }
}

impl<'a> Cell<'a> {
    fn new(column: &str, value: AnyValue<'a>) -> Result<Self> {
        Ok(match value {
            AnyValue::Null => Self::Missing,
            AnyValue::Boolean(value) => Self::Bool(value),
            AnyValue::String(value) => Self::Text(Cow::Borrowed(value)),
            // What a column of one row gives.
            AnyValue::StringOwned(value) => Self::Text(Cow::Owned(value.to_string())),
            AnyValue::Float32(value) => Self::Number(f64::from(value)),
            AnyValue::Float64(value) => Self::Number(value),
            AnyValue::UInt32(value) => Self::Whole(i128::from(value)),
            AnyValue::UInt64(value) => Self::Whole(i128::from(value)),
            AnyValue::Int32(value) => Self::Whole(i128::from(value)),
            AnyValue::Int64(value) => Self::Whole(i128::from(value)),
            other => {
                let found = other.dtype();
                return Err(Error::data(
                    format!("column `{column}` of the result"),
                    format!("expected booleans, 32- or 64-bit numbers or strings, found {found}"),
                ));
            }
        })
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Missing => Value::Null,
            Self::Bool(value) => json!(value),
            Self::Whole(value) => match u64::try_from(*value) {
                Ok(value) => json!(value),
                Err(_) => json!(*value as i64),
            },
            // serde_json writes NaN and infinity as null
            Self::Number(value) => json!(value),
            Self::Text(value) => json!(value),
        }
    }

    fn to_text(&self, fixed_decimals: bool) -> String {
        match self {
            Self::Missing => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Whole(value) => value.to_string(),
            Self::Number(value) if value.is_nan() => String::new(),
            Self::Number(value) if fixed_decimals => format!("{value:.DECIMALS$}"),
            Self::Number(value) => format!("{value:.3e}"),
            Self::Text(value) => value.to_string(),
        }
    }

    /// Whether 4 decimals say something of the value: a regularisation of 1e-6 would look like 0.
    fn fits_fixed_decimals(&self) -> bool {
        match *self {
            Self::Number(value) => value == 0.0 || !value.is_finite() || (1e-4..1e5).contains(&value.abs()),
            _ => true,
        }
    }
}

struct Formatted {
    text: String,
    right: bool,
}

impl Formatted {
    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn padded(&self, width: usize) -> String {
        let fill = " ".repeat(width.saturating_sub(self.width()));
        if self.right {
            fill + &self.text
        } else {
            self.text.clone() + &fill
        }
    }
}

fn widths(header: &[Formatted], rows: &[Vec<Formatted>]) -> Vec<usize> {
    (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].width());
            cells.max().unwrap_or(0).max(header[column].width())
        })
        .collect()
}

fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let path = dir.join(name);
    let failed = |source| io(&path, source);
    macula_files::write_whole(&path, failed, |file| file.write_all(bytes).map_err(failed))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::{NamedFrom, ParquetReader, SerReader, Series, df};

    fn sample() -> EvalResult {
        let table = df!(
            "head" => ["a|b", "linear"],
            "k" => [1u64, 200],
            "c" => [1e-6, 1e5],
            "top1" => [0.123456f64, 1.0],
            "top1_low" => [f64::NAN, 0.5],
            "top1_std" => [None, Some(0.25f64)],
        )
        .unwrap();
        EvalResult::new("demo", json!({"x": 1}), 3, 2, table).unwrap()
    }

    #[test]
    fn tables_for_people() {
        insta::assert_snapshot!(sample().to_text().unwrap(), @r"
        head      k         c    top1  top1_low  top1_std
        ──────  ───  ────────  ──────  ────────  ────────
        a|b       1  1.000e-6  0.1235
        linear  200   1.000e5  1.0000    0.5000    0.2500
        ");
        insta::assert_snapshot!(sample().to_markdown().unwrap(), @r"
        | head   |   k |        c |   top1 | top1_low | top1_std |
        | ------ | --: | -------: | -----: | -------: | -------: |
        | a\|b   |   1 | 1.000e-6 | 0.1235 |          |          |
        | linear | 200 |  1.000e5 | 1.0000 |   0.5000 |   0.2500 |
        ");
    }

    #[test]
    fn json_keeps_all_digits_and_knows_nothing_of_nan() {
        let expected = json!({
            "task": "demo", "settings": {"x": 1}, "n_train": 3, "n_test": 2,
            "rows": [
                {"head": "a|b", "k": 1, "c": 1e-6, "top1": 0.123456, "top1_low": null, "top1_std": null},
                {"head": "linear", "k": 200, "c": 1e5, "top1": 1.0, "top1_low": 0.5, "top1_std": 0.25},
            ],
        });
        assert_eq!(sample().to_json().unwrap(), expected);
    }

    #[test]
    fn saved_files_hold_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/folder");
        let result = sample();
        result.save(&out).unwrap();
        result.save(&out).unwrap(); // again, over what stands there
        let mut names: Vec<String> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["result.json", "table.csv", "table.md", "table.parquet"]);

        let file = std::fs::File::open(out.join("table.parquet")).unwrap();
        let table = ParquetReader::new(file).finish().unwrap();
        assert!(table.equals_missing(&result.table));
        let csv = std::fs::read_to_string(out.join("table.csv")).unwrap();
        assert!(
            csv.starts_with("head,k,c,top1,top1_low,top1_std\na|b,1,"),
            "{csv}"
        );
        let json: Value = serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["rows"], result.to_json().unwrap()["rows"]);
    }

    #[test]
    fn one_row_of_text_is_text() {
        let table = df!("kind" => ["exact"], "n" => [1u64]).unwrap();
        let result = EvalResult::new("demo", (), 0, 0, table).unwrap();
        assert_eq!(
            result.to_json().unwrap()["rows"],
            json!([{"kind": "exact", "n": 1}])
        );
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let nested = df!("x" => [Series::new("y".into(), [1i64])]).unwrap();
        let error = EvalResult::new("demo", (), 1, 1, nested).unwrap_err().to_string();
        assert!(error.starts_with("column `x` of the result: expected"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = sample().save(&file).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
    }
}
