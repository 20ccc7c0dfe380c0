"""What the tests of the harness share: tools that may be absent, small servers, the relay.

Outside CI a test without its tool is skipped with the tool's name; in CI every tool is installed,
and its absence fails.
"""

from __future__ import annotations

import os
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.__main__ import COMPILE
from bench.candidates import BENCH


@pytest.fixture
def need() -> Callable[..., None]:
    """Require programs on PATH."""

    def require(*programs: str) -> None:
        for program in programs:
            if shutil.which(program) is None:
                if os.environ.get("CI"):
                    pytest.fail(f"{program} is not installed, and CI installs it")
                pytest.skip(f"{program} is not installed")

    return require


@pytest.fixture(scope="session")
def relay_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the relay."""
    binary = tmp_path_factory.mktemp("relay") / "relay"
    subprocess.run([*COMPILE, "-o", str(binary), str(BENCH / "relay.c")], check=True)
    return binary


@contextmanager
def serving(handle: Callable[[socketserver.BaseRequestHandler], None]) -> Iterator[int]:
    """Serve connections with a function, from threads; yield the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            handle(self)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def answering() -> Callable[[bytes, bytes], object]:
    """Serve HTTP/1.1 keep-alive: `with answering(b"200 OK", b"body") as port`."""

    @contextmanager
    def serve(status: bytes, body: bytes) -> Iterator[int]:
        answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

        def handle(connection: socketserver.BaseRequestHandler) -> None:
            received = b""
            while piece := connection.request.recv(65536):
                received += piece
                if received.endswith(b"\r\n\r\n"):
                    connection.request.sendall(answer)
                    received = b""

        with serving(handle) as port:
            yield port

    return serve
