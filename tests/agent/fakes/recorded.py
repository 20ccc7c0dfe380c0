"""A recorded source: what telemetry reads, from a JSON file and a pipe instead of shared memory.

The pipe is the access-log ring: bounded, whole lines in, whole lines out.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BUCKET_COUNT = 20

HTTP_LABELS = {
    "reporter": "source",
    "source_workload": "edge",
    "source_workload_namespace": "default",
    "source_principal": "unknown",
    "source_app": "edge",
    "source_version": "unknown",
    "source_canonical_service": "edge",
    "source_canonical_revision": "unknown",
    "destination_workload": "payment-v1",
    "destination_workload_namespace": "default",
    "destination_principal": "unknown",
    "destination_app": "payment",
    "destination_version": "v1",
    "destination_service": "payment.default",
    "destination_service_name": "payment",
    "destination_service_namespace": "default",
    "destination_canonical_service": "payment",
    "destination_canonical_revision": "v1",
    "request_protocol": "http",
    "response_code": "200",
    "response_flags": "-",
    "grpc_response_status": "",
    "connection_security_policy": "none",
}

TCP_LABELS = {
    name: value
    for name, value in HTTP_LABELS.items()
    if name not in ("response_code", "grpc_response_status")
}


def worker(**changes: Any) -> dict[str, Any]:
    """One worker's line that serves generation 1."""
    return {
        "slot": 0,
        "pid": os.getpid(),
        "state": "serving",
        "generation": 1,
        "oldest_generation": 1,
        "connections": 3,
        "exchanges": 2,
        "accepted": 40,
        "handed_over": 5,
        "loop_turns": 1000,
        "loop_turn_max_us": 2500,
        "access_log_dropped": 0,
        "series_overflow": 0,
        "spans_dropped": 0,
    } | changes


def histogram(*, sum: float = 0.0, **buckets: int) -> dict[str, Any]:
    """A histogram with `b<index>=count`."""
    counts = [buckets.get(f"b{index}", 0) for index in range(BUCKET_COUNT)]
    return {"buckets": counts, "sum": sum}


def http_series(requests: int = 7, **labels: str) -> dict[str, Any]:
    """An HTTP series whose three histograms differ."""
    return {
        "labels": HTTP_LABELS | labels,
        "requests": requests,
        "duration_ms": histogram(b0=1, b4=requests - 2, b19=1, sum=4_000_123.5),
        "request_bytes": histogram(b7=requests, sum=900.0),
        "response_bytes": histogram(b9=requests, sum=4200.0),
    }


def state(**changes: Any) -> dict[str, Any]:
    """A whole recording: two workers, one HTTP series, one TCP series."""
    return {
        "workers": [worker(), worker(slot=1, state="gone", pid=0, accepted=11)],
        "http": [http_series()],
        "tcp": [
            {
                "labels": TCP_LABELS | {"request_protocol": "tcp"},
                "sent_bytes": 1000,
                "received_bytes": 2000,
                "opened": 4,
                "closed": 3,
            }
        ],
        "rejected": [["http1.content_length_duplicate", 2]],
        "endpoints": [{"slot": 0, "active": 6}],
    } | changes


class RecordedSource:
    """Reads the recording again for every scrape; drains the pipe."""

    def __init__(self, path: Path, ring_fd: int = -1) -> None:
        self._path = path
        self._ring_fd = ring_fd
        self._partial = b""
        self._spans_taken = 0

    def reap(self, slot: int, pid: int) -> bool:
        return False

    def workers(self) -> list[Any]:
        return [SimpleNamespace(**line) for line in self._read("workers")]

    def http_series(self) -> list[Any]:
        return [
            SimpleNamespace(
                **{
                    key: SimpleNamespace(**value) if key not in ("labels", "requests") else value
                    for key, value in series.items()
                }
            )
            for series in self._read("http")
        ]

    def tcp_series(self) -> list[Any]:
        return [SimpleNamespace(**series) for series in self._read("tcp")]

    def rejected(self) -> list[tuple[str, int]]:
        return [(reason, count) for reason, count in self._read("rejected")]

    def endpoints(self) -> list[Any]:
        return [SimpleNamespace(**line) for line in self._read("endpoints")]

    def drain_access_log(self, limit: int) -> bytes:
        try:
            data = self._partial + os.read(self._ring_fd, limit - len(self._partial))
        except BlockingIOError:
            return b""
        end = data.rfind(b"\n") + 1
        self._partial = data[end:]
        return data[:end]

    def drain_spans(self, limit: int) -> bytes:
        """Take what is new in the file `spans`: a ring that is never full."""
        path = self._path.with_name("spans")
        if not path.exists():
            return b""
        data = path.read_bytes()[self._spans_taken :][:limit]
        data = data[: data.rfind(b"\n") + 1]
        self._spans_taken += len(data)
        return data

    def _read(self, key: str) -> Any:
        return json.loads(self._path.read_text())[key]
