"""meshfast.cli.launch: what is handed to the supervisor, up to the exec."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path

import msgspec
import pytest

from meshfast.cli import launch
from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator, Source, compile_source
from meshfast.supervisor.settings import Settings

OPTIONS = launch.Options(
    source=Source(listen=":8080", to="127.0.0.1:9000", access_log="off"),
    workers=2,
    drain_ms=45_000,
    metrics_address="127.0.0.1:15020",
    metrics_fallback=True,
    log_level="info",
    instance="default",
    runtime_dir="/run/meshfast",
    version="1.2.3",
)


def settings() -> dict[str, object]:
    document = compile_source(
        OPTIONS.source, generation=1, allocator=SlotAllocator(), resolve=lambda host: []
    )
    return launch.settings(OPTIONS, document, shared_memory_fd=5, snapshot_fd=6)


def test_too_many_workers_for_the_descriptor_limit_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: taken.append(limits))
    launch.raise_descriptor_limit(8)
    assert taken == [(1024, 1024)]
    with pytest.raises(ConfigError, match="200 workers need 2464 descriptors"):
        launch.raise_descriptor_limit(200)


def test_the_supervisor_takes_the_settings() -> None:
    taken = Settings.parse(msgspec.json.encode(settings()))
    assert (taken.workers, taken.drain_ms, taken.generation) == (2, 45_000, 1)
    assert (taken.shared_memory_fd, taken.snapshot_fd) == (5, 6)
    sockets = {entry.name: (entry.address, entry.owner, entry.fallback) for entry in taken.sockets}
    assert sockets == {
        "gateway/0.0.0.0:8080": ("0.0.0.0:8080", "worker", False),
        "metrics": ("127.0.0.1:15020", "agent", True),
    }


def test_the_agent_gets_what_it_needs_to_compile_again() -> None:
    agent = settings()["agent"]
    assert msgspec.convert(agent, Source) == OPTIONS.source
    assert isinstance(agent, dict)
    assert agent["access_log"] == "off"
    assert agent["metrics_socket"] == "metrics"
    assert agent["dns_refresh_s"] == 5
    assert agent["version"] == "1.2.3"


def test_a_sealed_file_holds_the_bytes_and_takes_no_others() -> None:
    fd = launch.sealed("test", b"0123456789")
    try:
        assert os.read(fd, 100) == b"0123456789"
        for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0)):
            with pytest.raises(OSError, match="not permitted") as refused:
                change()
            assert refused.value.errno == errno.EPERM
    finally:
        os.close(fd)


def test_resolves_a_name_and_gives_nothing_for_one_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look_up(host: str, port: None, type: int) -> list[object]:
        if host != "db":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        ips = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
        return [(socket.AF_INET, type, 6, "", (ip, 0)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert launch.resolve("db") == ["10.0.0.1", "10.0.0.2"]
    assert launch.resolve("nowhere") == []


def test_a_name_that_cannot_be_encoded_has_no_address() -> None:
    assert launch.resolve("a" * 64 + ".test") == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"XDG_RUNTIME_DIR": "{}"}, "{}/meshfast"), ({"XDG_RUNTIME_DIR": "/nowhere"}, None)],
)
def test_the_runtime_directory_is_the_users_own(
    tmp_path: Path, environment: dict[str, str], expected: str | None
) -> None:
    environment = {name: value.format(tmp_path) for name, value in environment.items()}
    chosen = launch.default_runtime_dir(environment, uid=4321)
    assert chosen == (expected.format(tmp_path) if expected else "/tmp/meshfast-4321")
    assert launch.default_runtime_dir({"XDG_RUNTIME_DIR": "/nowhere"}, uid=0) == "/run/meshfast"
