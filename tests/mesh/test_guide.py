"""docs/mesh.md works as it stands there, apart from ports and the places of state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.agent.fakes.zipkin import FakeZipkin
from tests.mesh.harness import free_port, wait_until
from tests.pages import Terminal, shell_blocks


def says(mark: str) -> Callable[[str], bool]:
    """Tell whether a log has come to these words."""
    return lambda log: mark in log


def test_the_guide_of_the_mesh_works_as_written(tmp_path: Path, zipkin: FakeZipkin) -> None:
    hosts, control, tokens, payment, order, questions, token, second, canary, traced = shell_blocks(
        Path("docs/mesh.md"), {port: str(free_port()) for port in ("8080", "8081", "8082")}
    )
    terminal = Terminal(tmp_path)
    terminal.run(hosts)
    host_b = tmp_path / "host-b"
    status = ". host-a/env; meshfast status"
    with terminal.running(control, "control", says("control plane ready")):
        terminal.run(tokens)
        assert (host_b / "order.token").stat().st_mode & 0o077 == 0
        with terminal.running(payment, "payment", says("application accepts")):
            wait_until(lambda: "1/1" in terminal.run(status), "payment is healthy")
            assert terminal.run(order).startswith("paid by v1\n")
            answer = terminal.run(questions)
            assert "SYNCED" in answer
            assert "0 found" in answer
            terminal.run(token)
            with terminal.running(second, "second", says("application accepts")):
                wait_until(lambda: "2/2" in terminal.run(status), "both are healthy")
                said = terminal.run(canary)
                assert "payment.default: v1 90, v2 10\n" in said
                assert said.endswith("payment.default: v1 100, v2 0\n")
            terminal.run(traced.replace("127.0.0.1:9411", zipkin.address))
            assert [one["localEndpoint"]["serviceName"] for one in zipkin.spans] == [
                "order.default"
            ]
