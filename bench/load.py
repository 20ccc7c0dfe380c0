"""The load: wrk, its report, and what must be true of it.

wrk is a closed loop: right for saturation and CPU per request, wrong for tails, so no latency is
taken from it. Its processes are pinned to the load core by the caller's argument.

Tests: bench/tests/test_load.py.
"""

from __future__ import annotations

import http.client
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass

from bench.candidates import MissingError
from bench.processes import HarnessError, WrongResponseError, signals_deferred

GRACE_S = 10.0
RESPONSE_S = 10.0
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

SECONDS_PER_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
REQUESTS = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h), ", re.MULTILINE)
SOCKET_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
NOT_2XX = re.compile(r"Non-2xx or 3xx responses: (\d+)")


@dataclass(frozen=True)
class Load:
    """One run of the generator. Errors are counts; cpu_ns is what the generator itself used."""

    requests: int
    seconds: float
    socket_errors: int
    not_2xx: int
    cpu_ns: int

    @property
    def requests_per_second(self) -> float:
        """Completed requests by wall time."""
        return self.requests / self.seconds


def parse_wrk(output: str, cpu_ns: int = 0) -> Load:
    """Read wrk's report. Raises HarnessError when it holds no result."""
    done = REQUESTS.search(output)
    if done is None or int(done[1]) == 0:
        raise HarnessError(f"wrk completed no request:\n{output}")
    sockets = SOCKET_ERRORS.search(output)
    not_2xx = NOT_2XX.search(output)
    return Load(
        requests=int(done[1]),
        seconds=float(done[2]) * SECONDS_PER_UNIT[done[3]],
        socket_errors=sum(map(int, sockets.groups())) if sockets else 0,
        not_2xx=int(not_2xx[1]) if not_2xx else 0,
        cpu_ns=cpu_ns,
    )


def wrk_command(port: int, clients: int, seconds: float, core: int) -> list[str]:
    """Build the command; wrk takes whole seconds, a fraction is cut by SIGINT."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise MissingError("wrk is not here: apt-get install wrk")
    return [
        "taskset", "--cpu-list", str(core), wrk,
        "--threads", "1", "--connections", str(clients),
        "--duration", f"{math.ceil(seconds)}s", "--timeout", "10s",
        f"http://127.0.0.1:{port}/",
    ]  # fmt: skip


def run_wrk(port: int, clients: int, seconds: float, core: int) -> Load:
    """Load 127.0.0.1:port and return what was completed.

    Raises WrongResponseError on any socket error or response outside 2xx and 3xx, HarnessError when
    wrk fails or does not end.
    """
    command = wrk_command(port, clients, seconds, core)
    before = children_cpu_ns()
    process: subprocess.Popen[str] | None = None
    try:
        with signals_deferred():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        output = report_of(process, seconds)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise HarnessError(f"wrk exited with {process.returncode}:\n{output}")
    load = parse_wrk(output, children_cpu_ns() - before)
    if load.socket_errors or load.not_2xx:
        raise WrongResponseError(f"{' '.join(command)}\n{output}")
    return load


def report_of(process: subprocess.Popen[str], seconds: float) -> str:
    """Wait for wrk, interrupting it at a fraction of a second; SIGINT makes it print its report."""
    if seconds != math.ceil(seconds):
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=seconds + GRACE_S)[0]
    except subprocess.TimeoutExpired:
        raise HarnessError(f"wrk still runs {GRACE_S:g} s after its time") from None


def children_cpu_ns() -> int:
    """CPU time of children that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def check_body(name: str, port: int, expected: bytes) -> None:
    """Compare one response on a connection of its own. Raises WrongResponseError."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_S) as client:
            exchange(name, client, GET, expected)
    except OSError as error:
        raise WrongResponseError(f"{name} did not answer: {error!r}") from error


def exchange(name: str, client: socket.socket, request: bytes, expected: bytes) -> None:
    """Send a request and compare status and body byte by byte. Raises WrongResponseError."""
    response = http.client.HTTPResponse(client)
    try:
        client.sendall(request)
        response.begin()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise WrongResponseError(f"{name} did not answer: {error!r}") from error
    finally:
        response.close()
    if status != 200 or body != expected:
        raise WrongResponseError(
            f"{name} answered {status} with {body[:200]!r} instead of 200 with {expected!r}"
        )
