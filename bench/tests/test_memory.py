"""Behaviour of bench.memory: idle clients are real, and growth is divided among them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from bench.memory import IDLE_CLIENTS, Memory, idle_clients
from bench.processes import WrongResponseError

Answering = Callable[[bytes, bytes], AbstractContextManager[int]]


def test_growth_is_divided_among_idle_clients() -> None:
    memory = Memory(
        label="proxy",
        idle={"proxy/1": 1_000_000},
        after_load={"proxy/1": 2_000_000, "proxy/2": 500_000},
        alone=3_000_000,
        idle_cpu_share=0.001,
        with_idle_clients={"proxy/1": 2_500_000, "proxy/2": 500_000},
    )
    assert memory.bytes_per_idle_client == pytest.approx(500_000 / IDLE_CLIENTS)


def test_idle_clients_are_answered_before_they_idle(answering: Answering) -> None:
    with answering(b"200 OK", b"good") as port, idle_clients(port, 20, b"good"):
        pass


def test_an_idle_client_that_is_answered_wrongly_ends_the_measurement(
    answering: Answering,
) -> None:
    wrong = pytest.raises(WrongResponseError, match=r"answered 404 with b'' instead of 200")
    with answering(b"404 Not Found", b"") as port, wrong, idle_clients(port, 1, b"good"):
        pytest.fail("it was not answered")
