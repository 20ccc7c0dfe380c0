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


def test_signals_arrive_in_order_as_numbers_and_wait_while_blocked() -> None:
    before = {number: signal.getsignal(number) for number in signals.HANDLED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    reading = signals.install()
    try:
        signals.block()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.take(reading) == []
        signals.unblock()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.take(reading) == [signal.SIGHUP, signal.SIGUSR1]
    finally:
        os.close(signal.set_wakeup_fd(-1))
        os.close(reading)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
