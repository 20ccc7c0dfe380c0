"""The settings document: what is taken and what is refused, field by field."""

import json
from typing import Any

import pytest

from meshfast.supervisor.settings import Settings, SettingsError

WEB = {"name": "web", "address": "127.0.0.1:80", "owner": "worker", "fallback": False}
GOOD: dict[str, Any] = {
    "version": 1,
    "instance": "default",
    "runtime_dir": "/run/meshfast",
    "workers": 2,
    "drain_ms": 45_000,
    "sockets": [WEB],
    "shared_memory_fd": 5,
    "snapshot_fd": 6,
    "generation": 1,
    "agent": {"anything": ["goes"]},
    "app": None,
    "log_level": "info",
}


def parse(document: object) -> Settings:
    return Settings.parse(json.dumps(document).encode())


def test_takes_a_complete_document() -> None:
    settings = parse(GOOD)
    assert settings.workers == 2
    assert settings.worker_slots == 4
    assert settings.agent == {"anything": ["goes"]}
    assert [(one.name, one.address) for one in settings.sockets] == [("web", "127.0.0.1:80")]
    assert (settings.worker_module, settings.agent_module) == ("meshfast.worker", "meshfast.agent")


def test_takes_a_socket_with_the_address_of_the_last_start_and_without() -> None:
    sockets = parse(
        {**GOOD, "sockets": [WEB, {**WEB, "name": "b", "kept": "127.0.0.1:81"}]}
    ).sockets
    assert [one.kept for one in sockets] == ["", "127.0.0.1:81"]


def test_takes_an_application() -> None:
    app = parse({**GOOD, "app": {"command": ["a", "b"], "env": {"C": "d"}}}).app
    assert app is not None
    assert (app.command, app.env) == (["a", "b"], {"C": "d"})


@pytest.mark.parametrize("name", sorted(GOOD))
def test_refuses_a_document_without_a_field(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is missing"):
        parse({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour is not known"),
        ({"version": 2}, "version must be 1 to 1"),
        ({"version": True}, "version must be int, not bool"),
        ({"workers": 0}, "workers must be 1 to"),
        ({"workers": 2.0}, "workers must be int, not float"),
        ({"drain_ms": -1}, "drain_ms must be 0 to"),
        ({"snapshot_fd": -1}, "snapshot_fd must be 0 to"),
        ({"log_level": "warning"}, "log_level must be one of trace, debug, info, warn, error"),
        ({"instance": "../other"}, "instance must be"),
        ({"instance": ""}, "instance must be"),
        ({"app": []}, "app must be null or dict, not list"),
        ({"app": {"command": ["true"]}}, "app: env is missing"),
        ({"app": {"command": [], "env": {}}}, "app: command and env must be texts"),
        ({"app": {"command": [1], "env": {}}}, "app: command and env must be texts"),
        ({"app": {"command": ["a"], "env": {"A": 1}}}, "app: command and env must be texts"),
        ({"app": {"command": ["a\0"], "env": {}}}, "app: command and env must be texts"),
        ({"sockets": ["web"]}, r"sockets\[0\]: not an object"),
        ({"sockets": [WEB, WEB]}, r"sockets\[1\]: the name web is used twice"),
        ({"sockets": [{**WEB, "owner": "root"}]}, r"sockets\[0\]: owner must be one of"),
        ({"sockets": [{**WEB, "backlog": 1}]}, r"sockets\[0\]: backlog is not known"),
        ({"sockets": [{**WEB, "kept": None}]}, r"sockets\[0\]: kept must be str"),
        ({"entry_points": {"thread": "x"}}, "entry_points: thread is not known"),
    ],
)
def test_refuses_a_field_that_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse({**GOOD, **change})


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff"])
def test_refuses_what_is_no_json_object(text: bytes) -> None:
    with pytest.raises(SettingsError):
        Settings.parse(text)
