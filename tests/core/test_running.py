"""The file `running`: what a start takes from it, and what it leaves alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from meshfast.agent.state import StateDirectory
from meshfast.cli.running import kept_addresses

DEFAULTS = {"inbound": "0.0.0.0:15006", "outbound": "127.0.0.1:15001"}
LAST: dict[str, Any] = {
    "port": 8080,
    "outbound": "127.0.0.1:41001",
    "inbound": "0.0.0.0:42263",
    "metrics": "127.0.0.1:43020",
    "upstreams": [],
}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(str(tmp_path / "payment"))


def kept(state: StateDirectory, content: bytes, *reserved: str) -> dict[str, str]:
    state.write_now("running", content)
    return kept_addresses(state, DEFAULTS, reserved)


def test_a_first_start_has_nothing_kept(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept_addresses(state, DEFAULTS, ()) == {}
    assert capsys.readouterr().err == ""


def test_what_gives_way_is_tried_where_the_last_start_listened(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kept(state, json.dumps(LAST).encode())
    assert found == {"inbound": "0.0.0.0:42263", "outbound": "127.0.0.1:41001"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("inbound", "reserved"),
    [
        ("10.0.0.1:42263", ()),  # of an option that is not given any more
        ("[::]:42263", ()),
        ("0.0.0.0:443", ()),  # takes a privilege
        ("0.0.0.0:1023", ()),
        ("0.0.0.0:42263", ("42263",)),  # the application's, or an upstream's
    ],
)
def test_an_address_that_this_start_cannot_have_is_left_alone(
    state: StateDirectory, inbound: str, reserved: tuple[str, ...]
) -> None:
    found = kept(state, json.dumps({**LAST, "inbound": inbound}).encode(), *reserved)
    assert found == {"outbound": "127.0.0.1:41001"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        json.dumps({**LAST, "inbound": 42263}).encode(),
        json.dumps({**LAST, "inbound": "0.0.0.0:65536"}).encode(),
        json.dumps({**LAST, "inbound": "0.0.0.0:"}).encode(),
        json.dumps({**LAST, "inbound": "host:42263"}).encode(),
        json.dumps({**LAST, "outbound": "unix:/tmp/socket"}).encode(),
    ],
)
def test_a_broken_file_is_said_and_not_used(
    state: StateDirectory, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept(state, content) == {}
    said = capsys.readouterr().err
    assert said.startswith(
        f"meshfast: where the last start listened is not used: {state.path}/running: "
    )


def test_a_file_that_others_can_write_is_said_and_not_used(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write_now("running", json.dumps(LAST).encode())
    os.chmod(Path(state.path, "running"), 0o622)
    assert kept_addresses(state, DEFAULTS, ()) == {}
    assert "it must be 0600" in capsys.readouterr().err
