"""What a child is after the fork: its descriptors, group, signals and limits."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from meshfast.supervisor.children import describe_status
from tests.supervisor.harness import Mesh


def named_fds(settings: dict[str, object]) -> set[int]:
    """Return the descriptors in a settings document."""
    fds = {value for name, value in settings.items() if name.endswith("_fd")}
    for value in settings.values():
        if isinstance(value, list):
            fds |= {entry["fd"] for entry in value if "fd" in entry}
    return {fd for fd in fds if isinstance(fd, int)}


def test_a_worker_holds_only_the_descriptors_that_its_settings_name(
    serving_mesh: Callable[..., Mesh],
) -> None:
    answer = serving_mesh(workers=2).ask()
    connection = 1
    expected = named_fds(answer["settings"]) | {0, 1, 2}
    assert expected <= set(answer["fds"])
    assert len(answer["fds"]) == len(expected) + connection


def test_a_child_leads_its_own_process_group(serving_mesh: Callable[..., Mesh]) -> None:
    answer = serving_mesh().ask()
    assert answer["group"] == answer["pid"]


def test_a_child_has_no_signal_blocked_and_leaves_the_commands_to_the_supervisor(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    answer = mesh.ask()
    assert answer["blocked"] == 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(answer["pid"], number)
    assert mesh.ask()["pid"] == answer["pid"]


def test_a_child_writes_no_core_and_is_killed_first_when_memory_runs_out(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    pid = mesh.ask()["pid"]
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    # Not 0, which does not hold where cores go to a program.
    assert next(line for line in limits if "core file" in line).split()[4] == "1"
    ours = int(Path(f"/proc/{mesh.process.pid}/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(ours + 100, 1000)


def test_the_two_workers_and_the_agent_are_wired_pairwise(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    settings = mesh.ask()["settings"]
    slots = {0, 1, 2, 3}
    assert settings["worker_slots"] == 4
    assert {one["slot"] for one in settings["outboxes"]} == slots - {settings["slot"]}
    agent = mesh.ask(name="metrics")["settings"]
    assert {one["slot"] for one in agent["resolvers"]} == slots
    assert [one["name"] for one in agent["bound"]] == ["web"]
    assert agent["agent"] == {"kind": "fake"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit code 0"), (78 << 8, "exit code 78"), (9, "signal SIGKILL"), (40, "signal 40")],
)
def test_a_wait_status_is_told_in_words(status: int, words: str) -> None:
    assert describe_status(status) == words
