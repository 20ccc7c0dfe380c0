//! The binding: `meshfast._core`.
//!
//! Two halves that never meet in one process. The offline half ([`snapshot`], [`memory`], [`tls`] and
//! the two functions of keys) builds snapshots, reads the shared memory, makes a workload's key and
//! speaks TLS to the control plane, for the CLI and the agent. The other half is one function,
//! [`run_worker`], which is a worker's whole life and does not come back to Python before its end.
//! What it refuses: calling Python from the data plane, holding the GIL while the engine runs.
//!
//! Tests: `mypy.stubtest` holds `_core.pyi` against this module; `tests/agent/test_core.py`.
#![deny(unsafe_code)]

mod error;
mod memory;
mod snapshot;
mod tls;

use meshfast_engine::shared::BUCKETS_MS;
use meshfast_mesh::{NOT_EDITED, NOT_EDITED_PREFIX};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// `EX_CONFIG` (sysexits(3)): the worker could not start and must not be started again as it is.
const BOOT_FAILURE: i32 = 78;

/// Be a worker until it has drained; return the exit code (0 drained, 78 boot failure).
#[pyfunction]
fn run_worker(py: Python<'_>, settings: &[u8]) -> i32 {
    let settings = settings.to_vec();
    py.detach(|| match meshfast_engine::run(&settings) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("meshfast: {text}");
            BOOT_FAILURE
        }
    })
}

/// A new P-256 key, PKCS #8 DER.
#[pyfunction]
fn generate_key<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
    let key = meshfast_engine::tls::generate_key().map_err(PyOSError::new_err)?;
    Ok(PyBytes::new(py, &key))
}

/// A PKCS #10 request, DER, for a certificate whose one name is the URI `identity`.
#[pyfunction]
fn certificate_request<'py>(
    py: Python<'py>,
    key: &[u8],
    identity: &str,
) -> PyResult<Bound<'py, PyBytes>> {
    let request =
        meshfast_engine::tls::certificate_request(key, identity).map_err(PyValueError::new_err)?;
    Ok(PyBytes::new(py, &request))
}

/// The compiled half of meshfast.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("BUCKETS_MS", PyTuple::new(module.py(), BUCKETS_MS)?)?;
    module.add("HEADERS_NOT_EDITED", PyTuple::new(module.py(), NOT_EDITED)?)?;
    module.add("HEADERS_NOT_EDITED_PREFIX", NOT_EDITED_PREFIX)?;
    module.add_function(wrap_pyfunction!(run_worker, module)?)?;
    module.add_function(wrap_pyfunction!(generate_key, module)?)?;
    module.add_function(wrap_pyfunction!(certificate_request, module)?)?;
    module.add_class::<snapshot::Snapshot>()?;
    module.add_class::<memory::SharedMemory>()?;
    module.add_class::<memory::WorkerStats>()?;
    module.add_class::<memory::EndpointStats>()?;
    module.add_class::<memory::Histogram>()?;
    module.add_class::<memory::HttpSeries>()?;
    module.add_class::<memory::TcpSeries>()?;
    module.add_class::<tls::TlsClient>()?;
    Ok(())
}
