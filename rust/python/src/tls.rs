//! TLS of the agent's stream, without a socket.

use std::sync::{Mutex, MutexGuard, PoisonError};

use meshfast_engine::tls::Client;
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// One TLS 1.3 connection to the control plane; the caller carries the records.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct TlsClient(Mutex<Client>);

#[pymethods]
impl TlsClient {
    /// Trust `roots`, expect the SPIFFE ID `server`, show `chain` with its `key` unless it is empty.
    ///
    /// Raises ValueError when they cannot be used, or no root is valid now.
    #[new]
    fn new(
        roots: Vec<PyBackedBytes>,
        chain: Vec<PyBackedBytes>,
        key: &[u8],
        server: &str,
    ) -> PyResult<Self> {
        let roots: Vec<&[u8]> = roots.iter().map(|one| &**one).collect();
        let chain: Vec<&[u8]> = chain.iter().map(|one| &**one).collect();
        let client = Client::new(&roots, &chain, key, server).map_err(PyValueError::new_err)?;
        Ok(Self(Mutex::new(client)))
    }

    /// Whether the handshake is done and the server is the one that is expected.
    #[getter]
    fn is_open(&self) -> bool {
        self.client().is_open()
    }

    /// Whether the server has said that nothing follows.
    #[getter]
    fn is_ended(&self) -> bool {
        self.client().is_ended()
    }

    /// Take what the socket gave; return the plain bytes in it.
    ///
    /// Raises ConnectionError when TLS ends here; the alert for a server that is refused is among the
    /// next `records`.
    fn receive<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let plain = self.client().receive(data);
        let plain = plain.map_err(PyConnectionError::new_err)?;
        Ok(PyBytes::new(py, &plain))
    }

    /// Seal plain bytes; not before `is_open`.
    fn send(&self, plain: &[u8]) {
        self.client().send(plain);
    }

    /// Take the records that are for the socket.
    fn records<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.client().records())
    }
}

impl TlsClient {
    fn client(&self) -> MutexGuard<'_, Client> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
