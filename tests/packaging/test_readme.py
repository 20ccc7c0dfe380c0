"""What the README tells a reader to type works as it stands there, apart from the ports.

Each line of its shell blocks that begins with `meshfast` is run from the root of the checkout. A
proxy that serves is waited for and ended; every other command has to end by itself. The `make`
lines are CI's own (tests/architecture/test_door.py), those of the environment tests/packaging's.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT, text

MESHFAST = Path(sys.executable).with_name("meshfast")
DEADLINE_S = 60
PORTS = ("8080", "3128")


def commands() -> list[str]:
    """Return the lines of the README's shell blocks that call meshfast."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text(Path("README.md")), re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("meshfast ")]


def serves(command: str) -> bool:
    return (
        command.startswith("meshfast proxy")
        and " -o " not in command + " "
        and ("--mode validate" not in command)
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def words(command: str, folder: Path) -> list[str]:
    """Return the words of a command, with ports that are free here, also in a file it names."""
    found = shlex.split(command)[1:]
    for at, word in enumerate(found):
        if word.endswith(".yaml"):
            (folder / "config.yaml").write_text(with_free_ports(text(Path(word))))
            found[at] = str(folder / "config.yaml")
        else:
            found[at] = with_free_ports(word)
    return [str(MESHFAST), *found]


def with_free_ports(written: str) -> str:
    for port in PORTS:
        written = re.sub(rf"(?<=[: ]){port}\b", free_port(), written)
    return written


def test_the_readme_shows_every_way_to_use_the_proxy() -> None:
    shown = "\n".join(commands())
    for part in ("demo", "schema", "--listen", "--forward", "-c examples/", "validate", "-o json"):
        assert part in shown


@pytest.mark.parametrize("command", [one for one in commands() if not serves(one)])
def test_a_command_of_the_readme_ends_well(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        words(command, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [one for one in commands() if serves(one)])
def test_a_proxy_of_the_readme_serves(command: str, tmp_path: Path) -> None:
    runtime = ["--runtime-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [*words(command, tmp_path), *runtime], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stderr is not None
        try:
            said = []
            for line in proxy.stderr:
                said.append(line)
                if "serving with" in line:
                    break
            assert "serving with" in said[-1], said
        finally:
            proxy.send_signal(signal.SIGTERM)
            proxy.stderr.read()
        assert proxy.wait(timeout=DEADLINE_S) == 0
