"""The socket of the operator API: whose it is, and what becomes of it."""

import os
import socket
import stat
from pathlib import Path

import pytest

from meshfast.control.api import SOCKET_NAME
from meshfast.control.store.contract import UnsafeFileError
from tests.control.api.conftest import Api
from tests.control.server.conftest import Plane


def test_only_the_owner_can_open_the_socket(api: Api) -> None:
    assert api.ask("GET", "/v1/tokens") == (200, [])
    made = (api.directory / SOCKET_NAME).stat()
    assert stat.S_ISSOCK(made.st_mode)
    assert stat.S_IMODE(made.st_mode) == 0o600
    assert stat.S_IMODE(api.directory.stat().st_mode) == 0o700


def test_a_directory_that_others_may_enter_is_refused(plane: Plane) -> None:
    plane.options.state_dir.chmod(0o711)
    with pytest.raises(UnsafeFileError):
        Api(plane)
    assert not (plane.options.state_dir / SOCKET_NAME).exists()


def test_a_socket_that_was_left_behind_is_replaced(plane: Plane) -> None:
    directory: Path = plane.options.state_dir
    left = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(f"/proc/self/fd/{left}/{SOCKET_NAME}")
    os.close(left)
    api = Api(plane)
    assert api.ask("GET", "/v1/tokens") == (200, [])
    api.stop()


def test_it_takes_its_socket_along_when_it_stops(plane: Plane) -> None:
    api = Api(plane)
    assert api.ask("GET", "/v1/tokens") == (200, [])
    api.stop()
    assert not (plane.options.state_dir / SOCKET_NAME).exists()
