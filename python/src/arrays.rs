//! Numbers on their way between Rust and numpy, without numpy at build time. Out: memory of Rust that an array lies over. In: the
//! bytes of an array.

use macula::{Error, Result};
use macula_eval::MatrixView;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyDict;

/// Numbers that Rust computed; `numpy.asarray` lies over them without a copy.
#[pyclass(frozen, module = "macula._macula")]
pub struct Values(Numbers);

enum Numbers {
    F32(Vec<f32>),
    I64(Vec<i64>),
    U64(Vec<u64>),
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self(Numbers::F32(values))
    }
}

impl From<Vec<i64>> for Values {
    fn from(values: Vec<i64>) -> Self {
        Self(Numbers::I64(values))
    }
}

impl From<Vec<u64>> for Values {
    fn from(values: Vec<u64>) -> Self {
        Self(Numbers::U64(values))
    }
}

#[pymethods]
impl Values {
    /// Where the numbers lie, in numpy's words.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, len, address) = match &self.0 {
            Numbers::F32(values) => ("f4", values.len(), values.as_ptr().addr()),
            Numbers::I64(values) => ("i8", values.len(), values.as_ptr().addr()),
            Numbers::U64(values) => ("u8", values.len(), values.as_ptr().addr()),
        };
        let order = if cfg!(target_endian = "big") { '>' } else { '<' };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (len,))?;
        interface.set_item("typestr", format!("{order}{kind}"))?;
        interface.set_item("data", (address, false))?;
        Ok(interface)
    }
}

/// An array of f32 as its bytes and its shape.
pub type Given = (PyBackedBytes, Vec<usize>);

/// The numbers of `bytes`.
pub fn numbers(bytes: &[u8]) -> Result<&[f32]> {
    bytemuck::try_cast_slice(bytes).map_err(|error| Error::failed("array", error.to_string()))
}

/// A matrix `[n, d]`, called `what` in errors.
pub fn matrix<'a>(what: &str, (bytes, shape): &'a Given) -> Result<MatrixView<'a>> {
    match shape[..] {
        [n, d] => Ok(MatrixView::new(numbers(bytes)?, n, d)?),
        _ => Err(Error::setting(what, format!("expected [n, d], found {shape:?}"))),
    }
}
