"""A process that compiles the configuration once and ends: `python -I -m meshfast.agent.compiler`.

Compiling loads the YAML and validation libraries and holds whole documents: 7 MB and more that the
agent would keep for ever, and time in which it would drain no logs. So the agent starts this.

    fd 0  request, JSON: {"source": {…}, "generation": 2, "hosts": {"name": ["address"]},
          "kept": false, "reserved": [["cluster", "address", slot]]}
    fd 1  response, JSON: {"problems": ["file:line:column: …"]}, or
          {"changed": "endpoints", "listeners": {"name": "address"}, "hosts": {…}}
    fd 3  the blob of the snapshot that workers run
    fd 4  the new blob, written here
    fd 5  the configuration file: a copy to compile (`kept`), or where to put one

`hosts` of a request are answers that the agent already has; a name that is not among them is looked
up here, 5 s at most, and 20 s for all of them. A name that does not resolve has no endpoints; it
comes back with an empty list. `changed` is `nothing`, `endpoints` or `more`: what differs from the
running snapshot, besides the generation.

Invariant: endpoints that both snapshots have keep their slots, because the allocator starts from
the running snapshot, which every worker runs when the agent asks. `reserved` are the slots of older
snapshots that exchanges still hold; nobody else gets them.

Tests: tests/agent/test_reload.py.
"""

from __future__ import annotations

import dataclasses
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
from meshfast.errors import ConfigError, Problem
from meshfast.policy import SlotAllocator, Source, build_source
from meshfast.policy.document import Document, decode_document
from meshfast.resources.nodes import FILE_BYTES_MAX

__all__ = ["LIFE_S", "main"]

LIFE_S = 30
LOOKUP_S = 5.0
LOOKUPS_S = 20.0
COPY_FD = 5
COPY = f"/proc/self/fd/{COPY_FD}"


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
    response = _compile(json.loads(_read(0)), running, snapshots)
    _write(1, json.dumps(response).encode())
    return 0


def _compile(request: dict[str, Any], running: Document, snapshots: Snapshots) -> dict[str, Any]:
    """Return the response; the blob is written when the configuration is not refused."""
    hosts = _Hosts(request["hosts"])
    source = msgspec.convert(request["source"], Source)
    allocator = SlotAllocator.from_document(running)
    allocator.reserve({(cluster, address): slot for cluster, address, slot in request["reserved"]})
    try:
        _, blob = build_source(
            _source_of_copy(source, request["kept"]),
            generation=request["generation"],
            allocator=allocator,
            resolve=hosts.resolve,
            build=snapshots.build,
        )
    except ConfigError as error:
        return {"problems": [_text(problem, source) for problem in error.problems]}
    _write(4, blob)
    # Both as the snapshot compiler writes them: what policy leaves out is null there.
    document = decode_document(snapshots.describe(blob).encode())
    return {
        "changed": _difference(document, running),
        "hosts": hosts.used,
        "listeners": {listener.name: listener.address for listener in document.listeners},
    }


def _source_of_copy(source: Source, kept: bool) -> Source:
    """The same source with the copy as its file; as it is when the file cannot be read."""
    if source.config_path is None:
        return source
    if not kept:
        try:
            with open(source.config_path, "rb") as file:
                _write(COPY_FD, file.read(FILE_BYTES_MAX + 1))
        except OSError:
            return source  # the loader says why, in its own words
    return msgspec.structs.replace(source, config_path=COPY)


def _text(problem: Problem, source: Source) -> str:
    """The problem under the name of the file that operators know."""
    if problem.file == COPY and source.config_path is not None:
        problem = dataclasses.replace(problem, file=source.config_path)
    return str(problem)


def _difference(new: Document, running: Document) -> str:
    if _comparable(new, endpoints=False) != _comparable(running, endpoints=False):
        return "more"
    same = _comparable(new, endpoints=True) == _comparable(running, endpoints=True)
    return "nothing" if same else "endpoints"


def _comparable(document: Document, *, endpoints: bool) -> Document:
    """The document without its generation, and without the order in which DNS gave addresses."""
    clusters = tuple(
        msgspec.structs.replace(
            cluster,
            endpoints=tuple(sorted(cluster.endpoints, key=lambda endpoint: endpoint.slot))
            if endpoints
            else (),
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
