//! Tables for whoever reads Arrow: the stream of the C data interface, in a capsule, without a copy.

use std::path::PathBuf;

use macula::tables::read_own;
use polars::prelude::{CompatLevel, DataFrame, IntoColumn, PolarsError, PolarsResult};
use polars_arrow::array::{Array, StructArray};
use polars_arrow::datatypes::{ArrowDataType, Field};
use polars_arrow::ffi::{ArrowArrayStream, export_iterator};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::returned;

/// A table in memory, or the files of one.
#[pyclass(frozen, module = "macula._macula")]
pub struct Table {
    pub frames: Frames,
}

/// Where the rows are.
#[derive(Clone)]
pub enum Frames {
    /// All of them.
    Whole(DataFrame),
    /// Parquet files that macula wrote, read one after the other.
    Files(Vec<PathBuf>),
}

fn failed(error: &PolarsError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// The frame as one array of structs.
fn batch(frame: &DataFrame) -> PolarsResult<StructArray> {
    let mut columns = Vec::with_capacity(frame.width());
    for column in frame.columns() {
        columns.push(column.as_materialized_series().rechunk().into_column());
    }
    // Views of text are new to many a reader: pyarrow neither sorts nor takes rows of such a column.
    let oldest = CompatLevel::oldest();
    let fields: Vec<Field> = columns
        .iter()
        .map(|column| column.field().to_arrow(oldest))
        .collect();
    let arrays: Vec<Box<dyn Array>> = columns
        .iter()
        .map(|column| column.as_materialized_series().to_arrow(0, oldest))
        .collect();
    StructArray::try_new(ArrowDataType::Struct(fields), frame.height(), arrays, None)
}

#[pymethods]
impl Table {
    /// The table as the C stream of Arrow.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // Whoever wants another schema casts.
        drop(requested_schema);
        let stream = py.detach(|| self.stream())?;
        // The stream releases what nobody took when it is dropped.
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }
}

impl Table {
    fn stream(&self) -> PyResult<ArrowArrayStream> {
        let frames = match &self.frames {
            Frames::Whole(frame) => {
                let whole = batch(frame).map_err(|error| failed(&error))?;
                return Ok(stream_of(whole.dtype().clone(), std::iter::once(Ok(whole))));
            }
            Frames::Files(files) => files.clone(),
        };
        let mut files = frames.into_iter();
        let Some(first) = files.next() else {
            return Err(PyRuntimeError::new_err("a table without files"));
        };
        let first = returned(read_own(&first, None))?;
        let first = batch(&first).map_err(|error| failed(&error))?;
        let rest = files.map(|file| {
            let frame =
                read_own(&file, None).map_err(|error| PolarsError::ComputeError(error.to_string().into()))?;
            batch(&frame)
        });
        Ok(stream_of(
            first.dtype().clone(),
            std::iter::once(Ok(first)).chain(rest),
        ))
    }
}

fn stream_of(
    dtype: ArrowDataType,
    batches: impl Iterator<Item = PolarsResult<StructArray>> + 'static,
) -> ArrowArrayStream {
    let batches = batches.map(|batch| batch.map(|batch| Box::new(batch) as Box<dyn Array>));
    export_iterator(Box::new(batches), Field::new("".into(), dtype, false))
}
