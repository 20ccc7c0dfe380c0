"""The harness itself: what tests of a mesh rely on without seeing it."""

import socket
from pathlib import Path

from tests.mesh.harness import free_port


def test_a_free_port_is_given_once_and_to_nobody_else() -> None:
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
    assert max(ports) < ephemeral
    with socket.create_server(("127.0.0.1", ports[0])):
        pass
