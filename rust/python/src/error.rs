//! Errors of the decision crate as Python's exceptions, which Python itself defines
//! (`meshfast.errors`), so that nothing needs the extension to name them.

use meshfast_mesh::Error;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// The exception for a refused document or blob.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let name = match error {
        Error::Blob(_) => "EngineError",
        Error::Document(_) | Error::Json { .. } => "ConfigError",
    };
    let made = py
        .import("meshfast.errors")
        .and_then(|errors| errors.getattr(name)?.call1((error.to_string(),)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(missing) => PyRuntimeError::new_err(format!("{error} ({missing})")),
    }
}
