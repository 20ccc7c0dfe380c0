"""Signals that are commands: SIGHUP and SIGUSR1 reach the agent, nothing else happens."""

import os
import signal
from collections.abc import Callable

import pytest

from meshfast.supervisor import signals
from tests.supervisor.harness import Mesh


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGHUP, {"type": "reload"}), (signal.SIGUSR1, {"type": "reopen"})],
)
def test_a_command_is_passed_to_the_agent(
    serving_mesh: Callable[..., Mesh], number: signal.Signals, message: dict[str, str]
) -> None:
    mesh = serving_mesh()
    workers = mesh.workers()
    mesh.signal(number)
    mesh.wait_for_message(message)
    assert mesh.workers() == workers


def test_signals_arrive_in_order_as_numbers_and_wait_while_blocked(own_signals: None) -> None:
    reading = signals.install()
    signals.block()
    signal.raise_signal(signal.SIGHUP)
    assert signals.take(reading) == []
    signals.unblock()
    signal.raise_signal(signal.SIGUSR1)
    assert signals.take(reading) == [signal.SIGHUP, signal.SIGUSR1]
    os.close(reading)
