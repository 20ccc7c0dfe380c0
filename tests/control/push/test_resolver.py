"""Names are looked up in the background, again and again, and keep what they had."""

import asyncio
import threading
import time

import pytest

from meshfast.control.push.resolver import LOOK_UPS_MAX, Resolver, look_up_host


class Names:
    """What hosts resolve to; each look-up is counted."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        return self.answers.get(host, [])


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def test_an_answer_comes_later_and_is_told() -> None:
    async def run() -> None:
        names, changes = Names(a=["1.2.3.4"]), []
        resolver = Resolver(names, refresh_s=0.02)
        work = asyncio.create_task(resolver.run(lambda: changes.append(1)))
        assert resolver.addresses("a") == []
        await until(lambda: changes)
        assert resolver.addresses("a") == ["1.2.3.4"]
        looked_up = len(names.asked)
        await until(lambda: len(names.asked) > looked_up + 2)
        assert len(changes) == 1  # the same answer is no change
        names.answers = {"a": ["5.6.7.8"]}
        await until(lambda: resolver.addresses("a") == ["5.6.7.8"])
        names.answers = {}
        looked_up = len(names.asked)
        await until(lambda: len(names.asked) > looked_up + 2)
        assert resolver.addresses("a") == ["5.6.7.8"]
        assert len(changes) == 2
        work.cancel()

    asyncio.run(run())


def test_hosts_that_nobody_names_are_forgotten() -> None:
    async def run() -> None:
        names = Names(a=["1.2.3.4"], b=["1.2.3.5"])
        resolver = Resolver(names, refresh_s=0.01)
        work = asyncio.create_task(resolver.run(lambda: None))
        resolver.addresses("a")
        resolver.addresses("b")
        await until(lambda: resolver.addresses("a") and resolver.addresses("b"))
        resolver.keep({"b"})
        await asyncio.sleep(0)
        names.asked.clear()
        await until(lambda: len(names.asked) > 5)
        assert set(names.asked[1:]) == {"b"}
        work.cancel()

    asyncio.run(run())


def test_the_system_answers_for_loopback_and_not_for_nonsense() -> None:
    assert look_up_host("127.0.0.1") == ["127.0.0.1"]
    assert look_up_host("a" * 300) == []


def test_names_that_take_long_hold_up_neither_the_push_of_others_nor_a_later_name() -> None:
    release = threading.Event()

    def look_up(host: str) -> list[str]:
        if host.startswith("slow"):
            release.wait(10)
        return ["1.2.3.4"]

    async def run() -> None:
        resolver, changes = Resolver(look_up), []
        for number in range(LOOK_UPS_MAX - 1):
            resolver.addresses(f"slow{number}")
        resolver.addresses("z")
        work = asyncio.create_task(resolver.run(lambda: changes.append(1)))
        await until(lambda: changes)
        assert resolver.addresses("z") == ["1.2.3.4"]
        assert resolver.addresses("later") == []
        await until(lambda: len(changes) == 2)
        assert resolver.addresses("later") == ["1.2.3.4"]
        assert resolver.addresses("slow0") == []
        release.set()
        await until(lambda: len(changes) == 2 + LOOK_UPS_MAX - 1)
        work.cancel()

    asyncio.run(run())


def test_the_end_waits_for_no_look_up() -> None:
    release, began = threading.Event(), threading.Event()

    def look_up(host: str) -> list[str]:
        began.set()
        release.wait(10)
        return []

    async def run() -> None:
        resolver = Resolver(look_up)
        resolver.addresses("slow")
        work = asyncio.create_task(resolver.run(lambda: None))
        await until(began.is_set)
        work.cancel()

    began_s = time.monotonic()
    asyncio.run(run())  # waits for threads of its own, at its end
    assert time.monotonic() - began_s < 5
    release.set()


def test_a_look_up_that_fails_unexpectedly_is_logged_and_made_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = [ValueError("a defect")]

    def look_up(host: str) -> list[str]:
        if failures:
            raise failures.pop(0)
        return ["1.2.3.4"]

    async def run() -> None:
        resolver = Resolver(look_up, refresh_s=0.01)
        resolver.addresses("a")
        work = asyncio.create_task(resolver.run(lambda: None))
        await until(lambda: resolver.addresses("a"))
        work.cancel()

    asyncio.run(run())
    [record] = caplog.records
    assert record.getMessage() == "the look-up of a failed unexpectedly"
    assert "ValueError: a defect" in (record.exc_text or "")


def test_a_host_without_a_thread_is_looked_up_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [RuntimeError("can't start new thread")] * (LOOK_UPS_MAX + 1)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    async def run() -> None:
        resolver = Resolver(Names(a=["1.2.3.4"]), refresh_s=0.005)
        resolver.addresses("a")
        work = asyncio.create_task(resolver.run(lambda: None))
        await until(lambda: resolver.addresses("a"))
        work.cancel()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    asyncio.run(run())
    assert {record.getMessage() for record in caplog.records} == {
        "a was not looked up: can't start new thread"
    }


def test_a_host_that_is_named_again_is_looked_up_at_once_and_forgotten_ones_keep_their_places() -> (
    None
):
    release, names = threading.Event(), Names(a=["1.2.3.4"])

    def look_up(host: str) -> list[str]:
        found = names(host)
        if host.startswith("slow"):
            release.wait(10)
        return found

    async def run() -> None:
        resolver = Resolver(look_up, refresh_s=3600)
        work = asyncio.create_task(resolver.run(lambda: None))
        resolver.addresses("a")
        await until(lambda: resolver.addresses("a"))
        slow = [f"slow{number}" for number in range(LOOK_UPS_MAX)]
        for host in slow:
            resolver.addresses(host)
        await until(lambda: len(names.asked) == 1 + LOOK_UPS_MAX)
        resolver.keep([])
        assert resolver.addresses("a") == []
        for _ in range(10):  # turns in which it could be asked
            await asyncio.sleep(0)
        assert names.asked.count("a") == 1
        release.set()
        await until(lambda: resolver.addresses("a"))
        assert names.asked.count("a") == 2
        work.cancel()

    asyncio.run(run())


def test_so_many_names_are_looked_up_at_a_time() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def look_up(host: str) -> list[str]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return ["1.2.3.4"]

    async def run() -> None:
        resolver = Resolver(look_up)
        hosts = [f"h{number}" for number in range(100)]
        for host in hosts:
            resolver.addresses(host)
        work = asyncio.create_task(resolver.run(lambda: None))
        await until(lambda: all(map(resolver.addresses, hosts)))
        work.cancel()

    asyncio.run(run())
    assert 1 < most <= LOOK_UPS_MAX
