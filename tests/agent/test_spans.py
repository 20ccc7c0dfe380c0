"""Spans on their way to a Zipkin server that takes them, refuses them, is slow, or is not there."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshfast.agent import spans
from meshfast.agent.log import Log
from meshfast.agent.loop import Loop
from meshfast.agent.resolver import Resolver
from meshfast.agent.spans import SpanExporter
from meshfast.telemetry.families import AgentFacts
from tests.agent.conftest import Start
from tests.agent.fakes.recorded import RecordedSource
from tests.agent.fakes.zipkin import FakeZipkin
from tests.agent.harness import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from meshfast.agent.resolver import Done


class Names(Resolver):
    """Knows some names, and answers at once."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self._known = known

    def resolve(self, host: str, done: Done, *, anew: bool = False) -> None:
        found = [host] if host[0].isdigit() else self._known.get(host, [])
        done(found, None if found else "unknown")


class World:
    """An exporter on a loop that the test turns."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = Loop()
        self.source = RecordedSource(directory / "state.json")
        self.facts = AgentFacts("1", 1)
        self.log_path = directory / "agent.log"
        self._log_fd = os.open(self.log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.written = 0

    def export_to(self, address: str) -> SpanExporter:
        names = Names({"zipkin.test": ["127.0.0.1"]})
        log = Log("info", self._log_fd)
        self._exporter = SpanExporter(self.loop, self.source, self.facts, log, names, address)
        return self._exporter

    def write(self, count: int, width: int = 0) -> None:
        """Be workers that write spans, numbered from the last one on."""
        pad = "x" * width
        with (self.directory / "spans").open("ab") as ring:
            for number in range(self.written, self.written + count):
                ring.write(b'{"id":"%016x","pad":"%s"}\n' % (number, pad.encode()))
        self.written += count

    def until(self, what: Callable[[], bool]) -> None:
        """Turn the loop until it is so."""
        deadline = time.monotonic() + DEADLINE_S

        def look() -> None:
            if what() or time.monotonic() >= deadline:
                self.loop.stop()
            else:
                self.loop.call_later(0.005, look)

        self.loop._stopped = False
        look()
        self.loop.run()
        assert what(), self.log_path.read_text()

    def close(self) -> None:
        self._exporter.finish(0.0)
        self.loop._selector.close()
        os.close(self._log_fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off and time-outs of a tenth, so that tests of them do not take minutes."""
    for name in ("POST_S", "DELAY_S_MIN", "DELAY_S_MAX", "BATCH_S"):
        monkeypatch.setattr(spans, name, getattr(spans, name) / 10)


def numbers(found: list[dict[str, str]]) -> list[int]:
    return [int(span["id"], 16) for span in found]


def test_spans_are_posted_in_batches_as_zipkin_wants_them(world: World, zipkin: FakeZipkin) -> None:
    world.write(3)
    world.export_to(zipkin.address)
    world.until(lambda: world.facts.spans_posted == 3)
    assert numbers(zipkin.spans) == [0, 1, 2]
    ((path, headers),) = zipkin.requests
    assert path == "/api/v2/spans"
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == zipkin.address
    assert headers["b3"] == "0"
    world.write(2)
    world.until(lambda: world.facts.spans_posted == 5)
    assert numbers(zipkin.spans) == [0, 1, 2, 3, 4]
    assert len(zipkin.batches) == 2


def test_many_spans_go_in_batches_of_bounded_size(world: World, zipkin: FakeZipkin) -> None:
    world.write(2_000, width=900)
    world.export_to(zipkin.address)
    world.until(lambda: world.facts.spans_posted == 2_000)
    assert numbers(zipkin.spans) == list(range(2_000))
    sizes = [sum(len(span["pad"]) for span in batch) for batch in zipkin.batches]
    assert max(sizes) <= spans.BATCH_BYTES_MAX
    assert len(sizes) < 20


def test_a_name_is_resolved_and_followed(world: World, zipkin: FakeZipkin) -> None:
    world.write(1)
    world.export_to("zipkin.test:" + zipkin.address.rpartition(":")[2])
    world.until(lambda: world.facts.spans_posted == 1)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_fails_is_asked_again_and_nothing_is_lost(
    world: World, zipkin: FakeZipkin
) -> None:
    zipkin.status = 500
    world.write(4)
    world.export_to(zipkin.address)
    world.until(lambda: len(zipkin.requests) == 1)
    zipkin.status = 202
    world.until(lambda: world.facts.spans_posted == 4)
    assert world.facts.spans_dropped == 0
    text = world.log_path.read_text()
    assert text.count("spans are not posted") == 1
    assert "status 500" in text
    assert text.count("spans are posted again") == 1


@pytest.mark.usefixtures("hasty")
def test_a_batch_that_fails_again_and_again_makes_room_for_newer_ones(
    world: World, zipkin: FakeZipkin
) -> None:
    zipkin.status = 503
    world.write(4)
    world.export_to(zipkin.address)
    world.until(lambda: world.facts.spans_dropped == 4)
    assert len(zipkin.requests) == spans.TRIES_MAX
    zipkin.status = 202
    world.write(3)
    world.until(lambda: world.facts.spans_posted == 3)
    assert numbers(zipkin.spans) == [4, 5, 6]


@pytest.mark.usefixtures("hasty")
def test_a_batch_that_is_refused_is_not_posted_again(world: World, zipkin: FakeZipkin) -> None:
    zipkin.status = 400
    world.write(4)
    world.export_to(zipkin.address)
    world.until(lambda: world.facts.spans_dropped == 4)
    assert len(zipkin.requests) == 1


@pytest.mark.usefixtures("hasty")
def test_what_is_held_for_a_server_that_is_gone_is_bounded(
    world: World, zipkin: FakeZipkin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "TRIES_MAX", 1_000)
    zipkin.close()
    world.write(4_000, width=900)
    exporter = world.export_to(zipkin.address)
    world.until(lambda: exporter._queued_bytes >= spans.QUEUE_BYTES_MAX)
    world.until(lambda: exporter._failures >= 5)
    assert exporter._queued_bytes <= spans.QUEUE_BYTES_MAX + spans.DRAIN_BYTES
    held = exporter._queued_bytes + sum(map(len, exporter._batch))
    assert held < len((world.directory / "spans").read_bytes()), "the rest waits in the ring"


@pytest.mark.usefixtures("hasty")
def test_a_server_that_hangs_holds_nothing_up(world: World, zipkin: FakeZipkin) -> None:
    zipkin.delay_s = 60.0
    world.write(2)
    world.export_to(zipkin.address)
    turns: list[float] = []

    def turn() -> None:
        turns.append(time.monotonic())
        world.loop.call_later(0.01, turn)

    turn()
    world.until(lambda: world.facts.spans_dropped == 2)
    assert len(zipkin.requests) == spans.TRIES_MAX
    assert max(b - a for a, b in itertools.pairwise(turns)) < 0.5


def test_the_last_spans_are_posted_at_the_end(world: World, zipkin: FakeZipkin) -> None:
    exporter = world.export_to(zipkin.address)
    world.write(700, width=900)
    exporter.finish(DEADLINE_S)
    assert numbers(zipkin.spans) == list(range(700))
    assert (world.facts.spans_posted, world.facts.spans_dropped) == (700, 0)


@pytest.mark.parametrize("server", ["gone", "hangs", "fails", "unknown"])
def test_the_end_waits_for_its_time_at_most_and_counts_what_it_lost(
    world: World, zipkin: FakeZipkin, server: str
) -> None:
    address = "unknown.test:9411" if server == "unknown" else zipkin.address
    if server == "gone":
        zipkin.close()
    zipkin.delay_s = 60.0 if server == "hangs" else 0.0
    zipkin.status = 500
    exporter = world.export_to(address)
    world.write(700, width=900)
    began = time.monotonic()
    exporter.finish(0.3)
    assert time.monotonic() - began < 0.3 + 1.0
    assert (world.facts.spans_posted, world.facts.spans_dropped) == (0, 700)


def test_a_batch_on_its_way_at_the_end_is_not_lost(world: World, zipkin: FakeZipkin) -> None:
    zipkin.delay_s = 0.2
    world.write(3)
    exporter = world.export_to(zipkin.address)
    world.until(lambda: len(zipkin.requests) == 1)
    exporter.finish(DEADLINE_S)
    assert (world.facts.spans_posted, world.facts.spans_dropped) == (3, 0)


# the whole agent


def test_an_agent_serves_and_ends_while_zipkin_hangs(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "spans").write_bytes(b'{"id":"1"}\n' * 50)
        agent = start(zipkin_address=f"127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(DEADLINE_S)
        connected, _ = silent.accept()
        with connected:
            assert agent.request("/healthz/live")[0] == 200
            assert "meshfast_spans_posted_total 0" in agent.scrape()
            began = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began < 4.0


def test_an_agent_posts_what_there_is_when_it_is_told_to_stop(
    start: Start, tmp_path: Path, zipkin: FakeZipkin
) -> None:
    agent = start(zipkin_address=zipkin.address)
    (tmp_path / "spans").write_bytes(b'{"id":"1"}\n' * 50)
    assert agent.stop() == 0
    assert len(zipkin.spans) == 50


def test_an_agent_counts_what_it_posted(start: Start, tmp_path: Path, zipkin: FakeZipkin) -> None:
    (tmp_path / "spans").write_bytes(b'{"id":"1"}\n' * 7)
    agent = start(zipkin_address=zipkin.address)
    wait_for(lambda: "meshfast_spans_posted_total 7\n" in agent.scrape())
    assert "meshfast_spans_dropped_total 0\n" in agent.scrape()
