//! Building and describing snapshots, for the CLI and the agent.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::exception;

/// The immutable view that workers serve from, as a blob.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct Snapshot;

#[pymethods]
impl Snapshot {
    /// Validate and compile a snapshot document (JSON).
    ///
    /// Raises meshfast.errors.ConfigError with the path of what was refused.
    #[staticmethod]
    fn build<'py>(py: Python<'py>, document: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let document = document.to_vec();
        let built = py.detach(|| {
            meshfast_mesh::Snapshot::from_document(&document).map(|snapshot| snapshot.encode())
        });
        match built {
            Ok(blob) => Ok(PyBytes::new(py, &blob)),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// Return the document (JSON) that a blob was built from.
    ///
    /// Raises meshfast.errors.EngineError when it is not a blob of this version.
    #[staticmethod]
    fn describe(py: Python<'_>, blob: &[u8]) -> PyResult<String> {
        match meshfast_mesh::Snapshot::decode(blob) {
            Ok(snapshot) => Ok(String::from_utf8_lossy(&snapshot.to_document()).into_owned()),
            Err(error) => Err(exception(py, &error)),
        }
    }
}
