"""Names are looked up in the background, again and again, and keep what they had."""

import asyncio
import threading
import time

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


def test_names_that_take_long_hold_up_nobody() -> None:
    release = threading.Event()

    def look_up(host: str) -> list[str]:
        if host.startswith("slow"):
            release.wait(10)
        return ["1.2.3.4"]

    async def run() -> None:
        resolver = Resolver(look_up)
        for number in range(10):
            resolver.addresses(f"slow{number}")
        resolver.addresses("z")
        work = asyncio.create_task(resolver.run(lambda: None))
        await until(lambda: resolver.addresses("z"))
        work.cancel()

    began_s = time.monotonic()
    asyncio.run(run())  # waits for threads of its own, at its end
    assert time.monotonic() - began_s < 5
    release.set()


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
