"""The operator API as the commands call it, and the forms in which they show its answers.

Does not do: find a control plane on another machine. The socket lies in the state directory, so
these commands run where `meshfast control` does, as its user.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

import difflib
import http
import http.client
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import rich_click as click
import yaml

from meshfast.cli.control import default_state_dir
from meshfast.control.api import BODY_BYTES_MAX, SOCKET_NAME
from meshfast.errors import ConfigError, MeshfastError, Problem
from meshfast.resources.texts import CHECKS

__all__ = [
    "LABEL",
    "NAME",
    "NAMESPACE",
    "ChangedError",
    "OperatorApi",
    "difference",
    "operator_options",
    "table",
    "warn",
]

ANSWER_S = 30.0
START_HINT = "start it with `meshfast control`, or name its --state-dir"
F = TypeVar("F", bound=Callable[..., Any])


def operator_options(command: F) -> F:
    """Add what every command of an operator takes: `--state-dir` and `-o`."""
    command = click.option(
        "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table"
    )(command)
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, readable=False, path_type=Path),  # `ask` says who may
        help="As given to `control`.  [default: ~/.local/state/meshfast/control]",
    )(command)


class Name(click.ParamType[str]):
    """A name that something of a mesh can have: `label` or `name` of `CHECKS`."""

    name = "text"  # as options without a type are shown

    def __init__(self, check: str) -> None:
        """`check` says which names are taken."""
        self._check = CHECKS[check]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what nothing can be named, before it becomes part of a path of the API."""
        expected = self._check(value)
        if expected is not None:
            self.fail(f"expected {expected}, got {value!r}", param, ctx)
        return str(value)


LABEL = Name("label")
NAME = Name("name")
NAMESPACE = click.option("-n", "--namespace", type=LABEL, default="default", show_default=True)


class ChangedError(ConfigError):
    """A resource was not at the revision that the request expected."""


class OperatorApi:
    """The control plane that keeps its state in a directory; the default one when None."""

    def __init__(self, state_dir: Path | None) -> None:
        """Connect to nothing yet."""
        self._directory = state_dir or default_state_dir(os.environ, os.getuid())

    def ask(
        self, method: str, *path: str, body: object = None, query: dict[str, str] | None = None
    ) -> Any:
        """Send a request to `/v1/<path>`, and return what the answer's JSON says.

        Raises `ConfigError` with the problems of a refusal, `ChangedError` when that was about
        an expected revision, and `MeshfastError` without an answer.
        """
        content = b"" if body is None else msgspec.json.encode(body)
        if len(content) > BODY_BYTES_MAX:
            raise ConfigError(f"the files are too long: {BODY_BYTES_MAX} bytes at most, together")
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        target += "?" + urlencode(query) if query else ""
        connection = _Connection(self._directory)
        try:
            connection.request(method, target, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise MeshfastError(
                f"no control plane answers in {self._directory} ({START_HINT})"
            ) from None
        except PermissionError:
            raise MeshfastError(
                f"{self._directory}: only the owner of the state directory can operate the mesh"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise MeshfastError(f"the control plane did not answer: {error}") from None
        finally:
            connection.close()
        return _decoded(status, text)


class _Connection(http.client.HTTPConnection):
    """HTTP over the socket of a state directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._directory = directory

    def connect(self) -> None:
        """Connect by the directory's descriptor: a socket's own path has 107 bytes at most."""
        descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(ANSWER_S)
            self.sock.connect(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        finally:
            os.close(descriptor)


def _decoded(status: int, text: bytes) -> Any:
    try:
        answer = msgspec.json.decode(text)
        if status < 400:
            return answer
        problems = msgspec.convert(answer["problems"], list[Problem])
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise MeshfastError(f"the control plane answered {status}; its log says why") from None
    raise ChangedError(problems) if status == http.HTTPStatus.CONFLICT else ConfigError(problems)


def warn(applied: dict[str, Any], *, places: bool = True) -> None:
    """Print the warnings about what was applied; without places where nobody wrote a file."""
    for written in applied["warnings"]:
        warning = Problem(**written)
        if not places:
            warning = replace(warning, file="", line=0)
        print(f"warning: {warning}", file=sys.stderr)


def difference(changes: Iterable[dict[str, Any]], *, new: str = "file") -> str:
    """Show changes of resources as unified differences, coloured on a terminal.

    `new` says where the new documents come from.
    """
    lines = [line for change in changes for line in _lines(change, new)]
    if sys.stdout.isatty():
        lines = [_coloured(line) for line in lines]
    return "\n".join(lines)


def _lines(change: dict[str, Any], new: str) -> Iterator[str]:
    name = f"{change['kind']}/{change['namespace']}/{change['name']}"
    before, after = (
        yaml.safe_dump(document, sort_keys=False).splitlines() if document else []
        for document in (change["before"], change["after"])
    )
    yield from difflib.unified_diff(before, after, f"mesh/{name}", f"{new}/{name}", lineterm="")


def _coloured(line: str) -> str:
    colours = {"@": "cyan", "+": "green", "-": "red"}
    return click.style(line, fg=colours[line[0]]) if line[:1] in colours else line


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align rows in columns under their titles."""
    lines = [list(titles), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
