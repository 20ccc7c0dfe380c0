"""User instructions per request of one worker, under callgrind: the regression gate.

Run time wobbles by percents on a shared machine; instruction counts do not, so a slow-down of one
percent shows here and nowhere else. It counts user space only (no kernel, no cache misses, no
waiting), so it says that something grew, not what a user would notice.

    python -m bench.instructions [--at-most N] [--requests N]

The supervisor forks its workers and cannot be wrapped, so this stands in for it: it makes what a
worker is given (sealed snapshot, shared memory, listening socket, control, inbox and resolver
channels), runs `_core.run_worker` in an interpreter under valgrind, sends a fixed trace over one
keep-alive connection, and drains it. That is done twice, with a short and a long trace, and the
difference is divided: start-up, snapshot and exit cancel out.

It needs valgrind (apt-get install valgrind) and meshfast in the running interpreter. Functions have
names when the wheel was built with the `bench` profile; the files stay in bench/out for
callgrind_annotate.

Tests: bench/tests/test_instructions.py.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.candidates import OUT, MissingError
from bench.cases import body
from bench.load import exchange
from bench.processes import HarnessError

WARM_UP_REQUESTS = 100
WORKER_SLOTS = 2
BODY_BYTES = 128
TIMEOUT_S = 120.0  # valgrind is some 50 times slower than the processor
MESSAGE_BYTES_MAX = 65536
DRAIN_MS = 1000
LISTENER = "gateway/127.0.0.1"
CLUSTER = "outbound|80||origin"

# What is run under valgrind; the settings are the only argument.
RUN_WORKER = (
    "import os, sys; from meshfast import _core; os._exit(_core.run_worker(sys.argv[1].encode()))"
)

REQUEST = (
    b"GET /items/42?full=1 HTTP/1.1\r\n"
    b"Host: origin.example\r\n"
    b"User-Agent: trace/1\r\n"
    b"Accept: */*\r\n"
    b"\r\n"
)

SUMMARY = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Shared:
    """Descriptors a worker shares with everyone: the sealed snapshot and the counters."""

    snapshot_fd: int
    shared_memory_fd: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, compare with --at-most. 1: above it, or nothing could be counted."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--at-most", type=float, help="fail above this many instructions")
    parser.add_argument("--requests", type=int, default=1000, help="in the trace (default 1000)")
    options = parser.parse_args(arguments)
    try:
        with origin() as origin_port, shared_by_core(origin_port) as shared:
            found = instructions_per_request(RUN_WORKER, shared, options.requests)
    except (HarnessError, MissingError) as error:
        print(f"bench failed: {error}", file=sys.stderr)
        return 1
    print(f"{found:.0f} user instructions per request (trace of {options.requests})")
    if options.at_most is not None and found > options.at_most:
        print(f"above the limit of {options.at_most:.0f}", file=sys.stderr)
        return 1
    return 0


def instructions_per_request(program: str, shared: Shared, requests: int) -> float:
    """Count a short and a long trace, and divide what the long one took more."""
    short = count(program, shared, WARM_UP_REQUESTS)
    long = count(program, shared, WARM_UP_REQUESTS + requests)
    return (long - short) / requests


def count(program: str, shared: Shared, requests: int) -> int:
    """Count the user instructions of one worker that serves a trace, start to exit.

    program: Python source run with the worker's settings (JSON) as its only argument.
    Raises HarnessError when the worker does not become ready, drain and exit with 0.
    """
    OUT.mkdir(exist_ok=True)
    counts = OUT / f"callgrind.{requests}"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        control, theirs, *others = channels(stack)
        passed = [listener, theirs, *others]
        settings = worker_settings(shared, listener, theirs, others)
        process = subprocess.Popen(
            [*valgrind(counts), sys.executable, "-c", program, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[
                shared.snapshot_fd,
                shared.shared_memory_fd,
                *(item.fileno() for item in passed),
            ],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)  # before the wait; does nothing to one that has exited
        theirs.close()
        await_message(control, process, "ready")
        send_trace(listener.getsockname()[1], requests)
        control.send(json.dumps({"type": "drain", "deadline_ms": DRAIN_MS}).encode())
        await_message(control, process, "drained")
        output, _ = process.communicate(timeout=TIMEOUT_S)
    if process.returncode != 0:
        raise HarnessError(f"the worker exited with {process.returncode}: {output.decode()}")
    return parse_callgrind(counts.read_text())


def parse_callgrind(text: str) -> int:
    """Read the total of a callgrind file. Raises HarnessError when it has none."""
    found = SUMMARY.search(text)
    if found is None:
        raise HarnessError("the callgrind file has no summary: was the worker killed?")
    return int(found[1])


def valgrind(counts: Path) -> list[str]:
    """Build the part of the command before the program. Raises MissingError."""
    path = shutil.which("valgrind")
    if path is None:
        raise MissingError("valgrind is not here: apt-get install valgrind")
    return [path, "--tool=callgrind", "--quiet", f"--callgrind-out-file={counts}"]


def channels(stack: ExitStack) -> list[socket.socket]:
    """Make the channels of a worker: our control end, its control end, its inbox, its resolver.

    The far ends of inbox and resolver stay open and silent: one worker has nobody to hand
    connections to, and the snapshot names addresses only.
    """
    ends: list[socket.socket] = []
    for _ in range(3):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends += [stack.enter_context(end) for end in pair]
    control, theirs, inbox, _, resolver, _ = ends
    control.settimeout(TIMEOUT_S)
    return [control, theirs, inbox, resolver]


def worker_settings(
    shared: Shared,
    listener: socket.socket,
    control: socket.socket,
    inbox_and_resolver: Sequence[socket.socket],
) -> dict[str, Any]:
    """Write what the supervisor would write for the only worker."""
    inbox, resolver = inbox_and_resolver
    return {
        "version": 1,
        "slot": 0,
        "worker_slots": WORKER_SLOTS,
        "shared_memory_fd": shared.shared_memory_fd,
        "snapshot_fd": shared.snapshot_fd,
        "generation": 1,
        "control_fd": control.fileno(),
        "listeners": [{"name": LISTENER, "fd": listener.fileno()}],
        "inbox_fd": inbox.fileno(),
        "outboxes": [],
        "resolver_fd": resolver.fileno(),
        "log_level": "error",
    }


def await_message(control: socket.socket, process: subprocess.Popen[bytes], wanted: str) -> None:
    """Read messages until the wanted type. Raises HarnessError when the worker goes or is late."""
    while True:
        try:
            message = control.recv(MESSAGE_BYTES_MAX)
        except TimeoutError:
            raise HarnessError(f"the worker was not {wanted} within {TIMEOUT_S:g} s") from None
        if not message:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            raise HarnessError(f"the worker went before it was {wanted}: {output.decode()}")
        if json.loads(message).get("type") == wanted:
            return


def send_trace(port: int, requests: int) -> None:
    """Send requests one after the other on one connection. Raises WrongResponseError."""
    expected = body(BODY_BYTES)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
        for _ in range(requests):
            exchange("the worker", client, REQUEST, expected)


@contextmanager
def origin() -> Iterator[int]:
    """Answer every request with the same bytes, from a thread; yield the port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Answering(socketserver.BaseRequestHandler):
    """One keep-alive connection of the origin."""

    def handle(self) -> None:
        """Answer each head; a request of the trace has no body."""
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        received = b""
        while piece := self.request.recv(MESSAGE_BYTES_MAX):
            received += piece
            if received.endswith(b"\r\n\r\n"):
                self.request.sendall(answer % BODY_BYTES + body(BODY_BYTES))
                received = b""


@contextmanager
def shared_by_core(origin_port: int) -> Iterator[Shared]:
    """Have meshfast make the snapshot and the shared memory. Raises MissingError without it."""
    try:
        core = importlib.import_module("meshfast._core")
    except ImportError as error:
        raise MissingError(f"meshfast is not in this interpreter: {error}") from error
    blob = core.Snapshot.build(json.dumps(snapshot_document(origin_port)).encode())
    memory = core.SharedMemory.create(WORKER_SLOTS)
    snapshot_fd = os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(snapshot_fd, blob)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(snapshot_fd, fcntl.F_ADD_SEALS, seals)
        yield Shared(snapshot_fd, memory.fileno())
    finally:
        os.close(snapshot_fd)


def snapshot_document(origin_port: int) -> dict[str, Any]:
    """Describe one listener, one route, one endpoint: what `proxy --listen --to` compiles to."""
    workload = {"namespace": "default", "revision": "latest", "principal": ""}
    return {
        "version": 1,
        "generation": 1,
        "workload": {**workload, "name": "edge", "app": "edge"},
        "listeners": [
            {
                "name": LISTENER,
                "direction": "gateway",
                "protocol": "HTTP",
                "forward_proxy": False,
                "virtual_hosts": [
                    {
                        "name": "default/origin",
                        "domains": ["*"],
                        "routes": [
                            {
                                "name": "default/origin/0",
                                "matches": [],
                                "timeout_ms": None,
                                "destinations": [{"cluster": CLUSTER, "weight": 1}],
                            }
                        ],
                    }
                ],
                "tcp_routes": [],
            }
        ],
        "clusters": [
            {
                "name": CLUSTER,
                "service": {"host": "origin", "name": "origin", "namespace": "default"},
                "subset": "",
                "balancer": "LEAST_REQUEST",
                "connect_timeout_ms": 10000,
                "idle_timeout_ms": 600000,
                "endpoints": [
                    {
                        "slot": 0,
                        "address": f"127.0.0.1:{origin_port}",
                        "weight": 1,
                        "workload": {**workload, "name": "origin", "app": "origin"},
                    }
                ],
            }
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
