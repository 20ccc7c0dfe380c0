"""A process that compiles the configuration once and ends: `python -I -m meshfast.agent.compiler`.

Compiling loads the YAML and validation libraries and holds whole documents: 7 MB and more that the
agent would keep for ever, and time in which it would drain no logs. So the agent starts this.

    fd 0  request, JSON: {"source": {…}, "generation": 2, "hosts": {"name": ["address"]}}
    fd 1  response, JSON: {"problems": ["file:line:column: …"]}, or
          {"changed": true, "listeners": {"name": "address"}, "hosts": {…}}
    fd 3  the blob of the snapshot that workers run
    fd 4  the new blob, written here

`hosts` of a request are answers that the agent already has; a name that is not among them is looked
up here, 5 s at most, and 20 s for all of them. A name that does not resolve has no endpoints; it
comes back with an empty list. `changed` says whether anything but the generation differs.

Invariant: endpoints that both snapshots have keep their slots, because the allocator starts from
the running snapshot. The agent asks only when every worker runs it.

Tests: tests/agent/test_reload.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from time import monotonic
from typing import Any, Protocol

import msgspec

from meshfast.agent.resolver import look_up
from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator, Source, compile_source
from meshfast.policy.document import Document, decode_document

__all__ = ["LIFE_S", "compile_request", "main"]

LIFE_S = 30
LOOKUP_S = 5.0
LOOKUPS_S = 20.0


class Snapshots(Protocol):
    """The part of `meshfast._core.Snapshot` that is needed here."""

    def build(self, document: bytes) -> bytes: ...
    def describe(self, blob: bytes) -> str: ...


def main(snapshots: Snapshots | None = None) -> int:
    """Compile what fd 0 asks for; the exit code is 0 also when the configuration is refused."""
    signal.alarm(LIFE_S)
    os.nice(10)  # traffic first
    if snapshots is None:
        from meshfast import _core

        snapshots = _core.Snapshot
    running = decode_document(snapshots.describe(_read(3)).encode())
    response, blob = compile_request(json.loads(_read(0)), running, snapshots)
    _write(4, blob)
    _write(1, json.dumps(response).encode())
    return 0


def compile_request(
    request: dict[str, Any], running: Document, snapshots: Snapshots
) -> tuple[dict[str, Any], bytes]:
    """Return the response and the blob; the blob is empty when the configuration is refused."""
    hosts = _Hosts(request["hosts"])
    try:
        encoded = compile_source(
            msgspec.convert(request["source"], Source),
            generation=request["generation"],
            allocator=SlotAllocator.from_document(running),
            resolve=hosts.resolve,
        )
        blob = snapshots.build(encoded)
    except ConfigError as error:
        return {"problems": [str(problem) for problem in error.problems]}, b""
    document = decode_document(encoded)
    response = {
        "changed": _comparable(document) != _comparable(running),
        "hosts": hosts.used,
        "listeners": {listener.name: listener.address for listener in document.listeners},
    }
    return response, blob


def _comparable(document: Document) -> Document:
    """The document without its generation, and without the order in which DNS gave addresses."""
    clusters = tuple(
        msgspec.structs.replace(
            cluster, endpoints=tuple(sorted(cluster.endpoints, key=lambda endpoint: endpoint.slot))
        )
        for cluster in document.clusters
    )
    return msgspec.structs.replace(document, generation=0, clusters=clusters)


class _Hosts:
    """Answers `resolve`, and remembers what was asked and answered."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self.used: dict[str, list[str]] = {}
        self._known = known
        self._until = monotonic() + LOOKUPS_S
        self._threads = ThreadPoolExecutor(max_workers=8)

    def resolve(self, host: str) -> list[str]:
        self.used[host] = self._known.get(host) or self._look_up(host)
        return self.used[host]

    def _look_up(self, host: str) -> list[str]:
        lookup = self._threads.submit(look_up, host)
        try:
            return sorted(lookup.result(min(LOOKUP_S, max(0.0, self._until - monotonic()))))
        except (OSError, UnicodeError, FutureTimeout):
            return []


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a lookup that hangs in a thread does not hold the end up
