"""A signal ends the demo once, and never in the middle of what must be whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from meshfast.cli.demo.interrupts import SIGNALS, Interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    one = Interrupts()
    one.install()
    yield one
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send a signal to ourselves; its handler has run when this returns."""
    os.kill(os.getpid(), number)
    signal.sigpending()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_with_its_code(interrupts: Interrupts, number: int) -> None:
    with pytest.raises(SystemExit) as ended:
        send(number)
    assert ended.value.code == 128 + number


def test_a_signal_waits_for_what_must_be_whole(interrupts: Interrupts) -> None:
    done = []

    def work() -> None:
        with interrupts.held():
            send(signal.SIGTERM)
            done.append("whole")

    with pytest.raises(SystemExit) as ended:
        work()
    assert done == ["whole"]
    assert ended.value.code == 143


def test_after_the_first_signal_nothing_is_raised_any_more(interrupts: Interrupts) -> None:
    with pytest.raises(SystemExit):
        send(signal.SIGINT)
    send(signal.SIGINT)
    with interrupts.held():
        send(signal.SIGTERM)


def test_once_signals_are_held_for_good_they_change_nothing(interrupts: Interrupts) -> None:
    interrupts.hold()
    send(signal.SIGTERM)
    with interrupts.held():
        pass
