//! Vectors: a list of numbers a row, all of one length.

use polars_arrow::array::{Array, ListArray, PrimitiveArray};

/// The vectors of a column, row after row.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    /// All values.
    pub values: Vec<f32>,
    /// Values of a row; 0 where there is no row.
    pub width: usize,
    /// Rows.
    pub rows: usize,
}

/// Adds the vector of every row of `array`; the number of the first row that has none, what was expected, and what it has instead.
pub(super) fn append(array: &dyn Array, to: &mut Vectors) -> Result<(), (usize, String)> {
    let expected = |found: String| format!("expected a list of numbers, found {found}");
    let lists = array.as_any().downcast_ref::<ListArray<i64>>();
    let lists = lists.ok_or_else(|| (to.rows, expected(format!("values of type {:?}", array.dtype()))))?;
    for list in lists {
        let wrong = |found: &str| (to.rows, expected(found.to_owned()));
        let list = list.ok_or_else(|| wrong("nothing"))?;
        if list.null_count() > 0 {
            return Err(wrong("one with gaps"));
        }
        if list.is_empty() {
            return Err(wrong("an empty one"));
        }
        if to.rows == 0 {
            to.width = list.len();
        }
        if list.len() != to.width {
            let reason = format!(
                "expected the {} values of the first row, found {}",
                to.width,
                list.len()
            );
            return Err((to.rows, reason));
        }
        if let Some(values) = list.as_any().downcast_ref::<PrimitiveArray<f32>>() {
            to.values.extend(values.values_iter());
        } else if let Some(values) = list.as_any().downcast_ref::<PrimitiveArray<f64>>() {
            to.values.extend(values.values_iter().map(|&value| value as f32));
        } else {
            return Err(wrong(&format!(
                "values of type {:?}; f32 and f64 are read",
                list.dtype()
            )));
        }
        to.rows += 1;
    }
    Ok(())
}
