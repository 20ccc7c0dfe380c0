"""The extension: what it takes, what it gives and what it raises. Built from `rust/python`.

Two halves that do not meet in one process: the offline half compiles snapshots and reads shared
memory; `run_worker` is a worker's whole life. Nothing here calls back into Python.

Tests: `mypy.stubtest` against the built module, in every run of `make test`.
"""

from collections.abc import Sequence
from typing import Final, final

__all__ = [
    "BUCKETS_MS",
    "HEADERS_NOT_EDITED",
    "HEADERS_NOT_EDITED_PREFIX",
    "EndpointStats",
    "Histogram",
    "HttpSeries",
    "SharedMemory",
    "Snapshot",
    "TcpSeries",
    "TlsClient",
    "WorkerStats",
    "certificate_request",
    "generate_key",
    "run_worker",
]

BUCKETS_MS: Final[tuple[float, ...]]
"""Upper bounds of the 20 buckets of every histogram, without the last one, +Inf."""

HEADERS_NOT_EDITED: Final[tuple[str, ...]]
"""Names of headers, in lower case, of which `Snapshot.build` refuses edits."""

HEADERS_NOT_EDITED_PREFIX: Final[str]
"""Of names that begin so it refuses them too."""

def run_worker(settings: bytes) -> int:
    """Be a worker until it has drained; return the exit code (0 drained, 78 boot failure)."""

def generate_key() -> bytes:
    """Make a P-256 key; PKCS #8, DER. OSError when the system has no randomness."""

def certificate_request(key: bytes, identity: str) -> bytes:
    """Ask for a certificate with one name, the SPIFFE URI; PKCS #10, DER.

    `key` is PKCS #8, DER; the subject is empty (X.509-SVID 2). ValueError for a key that is none
    or an identity that is not ASCII.
    """

@final
class TlsClient:
    """One TLS 1.3 connection to the control plane, without a socket: the caller carries records."""

    def __new__(
        cls, roots: Sequence[bytes], chain: Sequence[bytes], key: bytes, server: str
    ) -> TlsClient:
        """Trust `roots`, expect the SPIFFE ID `server`, show `chain` with `key` unless it is empty.

        DER; the key is PKCS #8. ValueError when they cannot be used or do not belong together, or
        when no root is valid now.
        """

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and the server is the one that is expected."""

    @property
    def is_ended(self) -> bool:
        """Whether the server has said that nothing follows."""

    def receive(self, data: bytes) -> bytes:
        """Take what the socket gave; return the plain bytes in it.

        ConnectionError when TLS ends here. A server that is refused, for another name too, finds an
        alert among the next `records` and no end of the handshake.
        """

    def send(self, plain: bytes) -> None:
        """Seal plain bytes; not before `is_open`."""

    def records(self) -> bytes:
        """Take the records that are for the socket."""

@final
class Snapshot:
    """The immutable view that workers serve from, as a blob."""

    @staticmethod
    def build(document: bytes) -> bytes:
        """Validate and compile a snapshot document (JSON).

        Raises meshfast.errors.ConfigError with the path of what was refused.
        """

    @staticmethod
    def describe(blob: bytes) -> str:
        """Return the document (JSON) that a blob was built from.

        Raises meshfast.errors.EngineError when it is not a blob of this version.
        """

@final
class SharedMemory:
    """The memory all processes of one sidecar share; readers sum over worker slots."""

    @staticmethod
    def create(worker_slots: int) -> SharedMemory:
        """Make the memory for 1 to 1,024 worker slots. Raises OSError."""

    @staticmethod
    def open(fd: int) -> SharedMemory:
        """Map memory that another process made. Raises OSError when it is not of this layout."""

    def fileno(self) -> int:
        """Return the descriptor, which stays owned by this object."""

    def workers(self) -> list[WorkerStats]:
        """Read one line per worker slot that was ever used."""

    def reap(self, slot: int, pid: int) -> bool:
        """Reset the gauges of a worker that is gone and left no successor.

        True when `pid` was the slot's last worker and its line was not reset before.
        """

    def http_series(self) -> list[HttpSeries]:
        """Read every HTTP series, summed over workers."""

    def tcp_series(self) -> list[TcpSeries]:
        """Read every TCP series, summed over workers."""

    def rejected(self) -> list[tuple[str, int]]:
        """Return (reason, count) of refused inputs, summed over workers."""

    def endpoints(self) -> list[EndpointStats]:
        """Read the lines of endpoint slots that were ever used, summed over workers."""

    def drain_access_log(self, limit: int) -> bytes:
        """Take whole JSON lines out of all rings, at most `limit` bytes; empty when there are none.

        One process may drain at a time.
        """

    def drain_spans(self, limit: int) -> bytes:
        """Take whole spans (Zipkin v2, JSON, one a line) out of all rings; empty without any.

        At most `limit` bytes of each ring. One process may drain at a time.
        """

@final
class WorkerStats:
    """What one worker slot says. Counters survive the worker's death, gauges do not."""

    @property
    def slot(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def state(self) -> str:
        """One of `booting`, `serving`, `draining`, `gone`."""

    @property
    def generation(self) -> int:
        """The newest generation this worker serves from."""

    @property
    def oldest_generation(self) -> int:
        """The oldest generation that something in this worker still holds."""

    @property
    def connections(self) -> int: ...
    @property
    def exchanges(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def handed_over(self) -> int: ...
    @property
    def loop_turns(self) -> int: ...
    @property
    def loop_turn_max_us(self) -> int: ...
    @property
    def access_log_dropped(self) -> int: ...
    @property
    def series_overflow(self) -> int: ...
    @property
    def spans_dropped(self) -> int: ...

@final
class Histogram:
    """Samples per bucket, not cumulative, +Inf last (20), and the sum of all samples."""

    @property
    def buckets(self) -> list[int]: ...
    @property
    def sum(self) -> float: ...

@final
class HttpSeries:
    """One HTTP series: Istio's labels and the values behind its four metrics."""

    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def requests(self) -> int: ...
    @property
    def duration_ms(self) -> Histogram: ...
    @property
    def request_bytes(self) -> Histogram: ...
    @property
    def response_bytes(self) -> Histogram: ...

@final
class TcpSeries:
    """One TCP series: Istio's labels and its four counters."""

    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def opened(self) -> int: ...
    @property
    def closed(self) -> int: ...

@final
class EndpointStats:
    """One endpoint slot, summed over workers."""

    @property
    def slot(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def connect_failures(self) -> int: ...
