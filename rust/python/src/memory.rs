//! The shared memory as Python reads it: plain values, summed over workers, no view into the mapping.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use meshfast_engine::shared::{
    self, EndpointTotals, HttpTotals, Kind, SeriesTotals, TcpTotals, WorkerTotals,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// The memory all processes of one sidecar share; readers sum over worker slots.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct SharedMemory(shared::SharedMemory);

#[pymethods]
impl SharedMemory {
    /// Make the memory for 1 to 1,024 worker slots. Raises OSError.
    #[staticmethod]
    fn create(worker_slots: u32) -> PyResult<Self> {
        Ok(Self(shared::SharedMemory::create(worker_slots)?))
    }

    /// Map memory that another process made. Raises OSError when it is not of this layout.
    #[staticmethod]
    fn open(fd: i32) -> PyResult<Self> {
        Ok(Self(shared::SharedMemory::open_number(fd)?))
    }

    /// Return the descriptor, which stays owned by this object.
    fn fileno(&self) -> i32 {
        let descriptor: BorrowedFd<'_> = self.0.descriptor();
        descriptor.as_raw_fd()
    }

    /// Read one line per worker slot that was ever used.
    fn workers(&self) -> Vec<WorkerStats> {
        let used = self
            .0
            .workers()
            .into_iter()
            .filter(|worker| worker.pid != 0);
        used.map(WorkerStats).collect()
    }

    /// Reset the gauges of a worker that is gone and left no successor, if `pid` is the slot's last.
    fn reap(&self, slot: u32, pid: u32) -> bool {
        self.0.reap(slot, pid)
    }

    /// Read every HTTP series, summed over workers.
    fn http_series(&self) -> Vec<HttpSeries> {
        let names = Kind::Http.labels();
        let http = |series| match series {
            SeriesTotals::Http(values, totals) => Some((values, totals)),
            _ => None,
        };
        let found = self.0.series().into_iter().filter_map(http);
        found
            .map(|(values, totals)| HttpSeries {
                labels: named(&names, values),
                totals,
            })
            .collect()
    }

    /// Read every TCP series, summed over workers.
    fn tcp_series(&self) -> Vec<TcpSeries> {
        let names = Kind::Tcp.labels();
        let tcp = |series| match series {
            SeriesTotals::Tcp(values, totals) => Some((values, totals)),
            _ => None,
        };
        let found = self.0.series().into_iter().filter_map(tcp);
        found
            .map(|(values, totals)| TcpSeries {
                labels: named(&names, values),
                totals,
            })
            .collect()
    }

    /// Return (reason, count) of refused inputs, summed over workers.
    fn rejected(&self) -> Vec<(String, u64)> {
        let rejected = |series| match series {
            SeriesTotals::Rejected(reason, count) => Some((reason, count)),
            _ => None,
        };
        self.0.series().into_iter().filter_map(rejected).collect()
    }

    /// Read the lines of endpoint slots that were ever used, summed over workers.
    fn endpoints(&self) -> Vec<EndpointStats> {
        self.0.endpoints().into_iter().map(EndpointStats).collect()
    }

    /// Take whole JSON lines out of all rings, at most `limit` bytes; empty when there are none.
    ///
    /// One process may drain at a time.
    fn drain_access_log<'py>(&self, py: Python<'py>, limit: usize) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.drain_access_log(limit))
    }

    /// Take whole spans (Zipkin v2, JSON, one a line) out of all rings, as `drain_access_log` does.
    fn drain_spans<'py>(&self, py: Python<'py>, limit: usize) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.drain_spans(limit))
    }
}

fn named(names: &[&'static str], values: Vec<String>) -> BTreeMap<&'static str, String> {
    names.iter().copied().zip(values).collect()
}

/// What one worker slot says. Counters survive the worker's death, gauges do not.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct WorkerStats(WorkerTotals);

#[pymethods]
impl WorkerStats {
    #[getter]
    fn slot(&self) -> u32 {
        self.0.slot
    }

    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid
    }

    /// One of `booting`, `serving`, `draining`, `gone`.
    #[getter]
    fn state(&self) -> &'static str {
        self.0.state.name()
    }

    /// The newest generation this worker serves from.
    #[getter]
    fn generation(&self) -> u64 {
        self.0.generation
    }

    /// The oldest generation that something in this worker still holds.
    #[getter]
    fn oldest_generation(&self) -> u64 {
        self.0.oldest_generation
    }

    #[getter]
    fn connections(&self) -> u64 {
        self.0.connections
    }

    #[getter]
    fn exchanges(&self) -> u64 {
        self.0.exchanges
    }

    #[getter]
    fn accepted(&self) -> u64 {
        self.0.accepted
    }

    #[getter]
    fn handed_over(&self) -> u64 {
        self.0.handed_over
    }

    #[getter]
    fn loop_turns(&self) -> u64 {
        self.0.loop_turns
    }

    #[getter]
    fn loop_turn_max_us(&self) -> u64 {
        self.0.loop_turn_max_us
    }

    #[getter]
    fn access_log_dropped(&self) -> u64 {
        self.0.access_log_dropped
    }

    #[getter]
    fn series_overflow(&self) -> u64 {
        self.0.series_overflow
    }

    #[getter]
    fn spans_dropped(&self) -> u64 {
        self.0.spans_dropped
    }
}

/// Samples per bucket, not cumulative, +Inf last (20), and the sum of all samples.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct Histogram(shared::Histogram);

#[pymethods]
impl Histogram {
    #[getter]
    fn buckets(&self) -> Vec<u64> {
        self.0.buckets.to_vec()
    }

    #[getter]
    fn sum(&self) -> f64 {
        self.0.sum
    }
}

/// One HTTP series: Istio's labels and the values behind its four metrics.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct HttpSeries {
    labels: BTreeMap<&'static str, String>,
    totals: Box<HttpTotals>,
}

#[pymethods]
impl HttpSeries {
    #[getter]
    fn labels(&self) -> BTreeMap<&'static str, String> {
        self.labels.clone()
    }

    #[getter]
    fn requests(&self) -> u64 {
        self.totals.requests
    }

    #[getter]
    fn duration_ms(&self) -> Histogram {
        Histogram(self.totals.duration_ms.clone())
    }

    #[getter]
    fn request_bytes(&self) -> Histogram {
        Histogram(self.totals.request_bytes.clone())
    }

    #[getter]
    fn response_bytes(&self) -> Histogram {
        Histogram(self.totals.response_bytes.clone())
    }
}

/// One TCP series: Istio's labels and its four counters.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct TcpSeries {
    labels: BTreeMap<&'static str, String>,
    totals: TcpTotals,
}

#[pymethods]
impl TcpSeries {
    #[getter]
    fn labels(&self) -> BTreeMap<&'static str, String> {
        self.labels.clone()
    }

    #[getter]
    fn sent_bytes(&self) -> u64 {
        self.totals.sent_bytes
    }

    #[getter]
    fn received_bytes(&self) -> u64 {
        self.totals.received_bytes
    }

    #[getter]
    fn opened(&self) -> u64 {
        self.totals.opened
    }

    #[getter]
    fn closed(&self) -> u64 {
        self.totals.closed
    }
}

/// One endpoint slot, summed over workers.
#[pyclass(frozen, module = "meshfast._core")]
pub(crate) struct EndpointStats(EndpointTotals);

#[pymethods]
impl EndpointStats {
    #[getter]
    fn slot(&self) -> u32 {
        self.0.slot
    }

    #[getter]
    fn active(&self) -> u64 {
        self.0.active
    }

    #[getter]
    fn requests(&self) -> u64 {
        self.0.requests
    }

    #[getter]
    fn connect_failures(&self) -> u64 {
        self.0.connect_failures
    }
}
