"""Names for workers: answers, failures, last good addresses, and a resolver that hangs."""

import re
import socket
import time

import pytest

from meshfast.agent import resolver as resolver_module
from meshfast.agent.loop import Loop
from meshfast.agent.resolver import Resolver, look_up
from meshfast.telemetry.families import AgentFacts
from tests.agent.conftest import Start
from tests.agent.harness import Supervised


def resolve(agent: Supervised, number: int, host: str) -> tuple[list[str], str | None]:
    agent.ask(number, host)
    answer = agent.answer()
    assert (answer["type"], answer["id"]) == ("resolved", number)
    return answer["addresses"], answer["error"]


def lookups(agent: Supervised) -> dict[str, int]:
    found = re.findall(
        r'^meshfast_dns_lookups_total\{result="(\w+)"\} (\d+)$', agent.scrape(), re.M
    )
    return {result: int(count) for result, count in found}


def test_a_name_is_answered_in_the_order_of_the_system(start: Start) -> None:
    agent = start()
    agent.names({"db.test": ["192.0.2.2", "192.0.2.1", "2001:db8::1"]})
    assert resolve(agent, 7, "DB.test") == (["192.0.2.2", "192.0.2.1", "2001:db8::1"], None)


def test_an_unknown_name_is_an_error_in_words(start: Start) -> None:
    assert resolve(start(), 1, "nowhere.test") == ([], "Name or service not known")


@pytest.mark.parametrize(
    "host", ["", "-x.test", "a b", "a\n", "b\u00fccher.test", "x" * 300, "[::1"]
)
def test_what_is_no_host_name_is_not_looked_up(start: Start, host: str) -> None:
    agent = start()
    assert resolve(agent, 1, host) == ([], "not a host name")
    assert sum(lookups(agent).values()) == 0


@pytest.mark.parametrize(
    ("host", "address"),
    [("192.0.2.1", "192.0.2.1"), ("::1", "::1"), ("[2001:db8::1]", "2001:db8::1")],
)
def test_an_address_is_its_own_answer(start: Start, host: str, address: str) -> None:
    assert resolve(start(), 1, host) == ([address], None)


def test_an_answer_is_kept_for_a_while(start: Start) -> None:
    agent = start()
    agent.names({"db.test": ["192.0.2.1"]})
    for number in range(5):
        assert resolve(agent, number, "db.test") == (["192.0.2.1"], None)
    assert lookups(agent) == {"failure": 0, "success": 1, "timeout": 0}


def test_a_name_is_looked_up_once_for_all_who_ask_at_a_time(start: Start) -> None:
    agent = start()
    agent.names({"db.test": ["192.0.2.1"]})
    for number in range(20):
        agent.ask(number, "db.test")
    assert sorted(agent.answer()["id"] for _ in range(20)) == list(range(20))
    assert lookups(agent)["success"] == 1


def test_a_resolver_that_hangs_costs_five_seconds_and_not_the_other_names(start: Start) -> None:
    agent = start()
    agent.names({"slow.test": "hang", "db.test": ["192.0.2.1"]})
    began = time.monotonic()
    agent.ask(1, "slow.test")
    assert resolve(agent, 2, "db.test") == (["192.0.2.1"], None)
    assert time.monotonic() - began < 2
    assert agent.answer()["error"] == "no answer in time"
    assert 4.5 < time.monotonic() - began < 8
    assert lookups(agent)["timeout"] == 1


def test_hanging_lookups_in_every_thread_end_in_answers_all_the_same(start: Start) -> None:
    agent = start()
    agent.names({f"slow-{number}.test": "hang" for number in range(8)})
    for number in range(8):
        agent.ask(number, f"slow-{number}.test")
    assert {agent.answer()["error"] for _ in range(8)} == {"no answer in time"}


def test_a_worker_that_does_not_read_is_not_read_from(start: Start) -> None:
    agent = start()
    agent.worker.setblocking(False)
    sent = 0
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5:
        try:
            agent.ask(sent, "192.0.2.1")
        except BlockingIOError:
            continue
        sent += 1
        quiet_since = time.monotonic()
        assert sent < 100_000
    agent.worker.settimeout(10)
    assert [agent.answer()["id"] for _ in range(sent)] == list(range(sent))


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_the_last_good_addresses_stand_in_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"db.test": ["192.0.2.1"]}
    clock = Clock()
    monkeypatch.setattr(resolver_module, "time", clock)
    loop = Loop()

    def lookup(host: str) -> list[str]:
        if host not in names:
            raise OSError(2, "Name or service not known")
        return names[host]

    resolver = Resolver(loop, AgentFacts("1", 1), lookup)

    def ask() -> tuple[list[str], str | None]:
        answers = []

        def done(addresses: list[str], error: str | None) -> None:
            answers.append((addresses, error))
            loop.stop()

        resolver.resolve("db.test", done)
        if not answers:
            loop.run()
        loop._stopped = False
        return answers[0]

    assert ask() == (["192.0.2.1"], None)
    names.clear()
    clock.now += 59
    assert ask() == (["192.0.2.1"], None)
    clock.now += 2
    assert ask() == ([], "Name or service not known")
    names["db.test"] = ["192.0.2.9"]
    clock.now += 2
    assert ask() == (["192.0.2.9"], None)
    for one in vars(resolver).values():
        if isinstance(one, socket.socket):
            one.close()


def test_the_system_is_asked_for_addresses_without_duplicates() -> None:
    found = look_up("localhost")
    assert "127.0.0.1" in found or "::1" in found
    assert len(found) == len(set(found))


def test_slow_names_do_not_keep_other_names_waiting(start: Start) -> None:
    agent = start()
    slow = [f"slow{number}.test" for number in range(20)]
    agent.names(dict.fromkeys(slow, "hang") | {"quick.test": ["192.0.2.7"]})
    for number, host in enumerate(slow):
        agent.ask(number, host)
    assert resolve(agent, 99, "quick.test") == (["192.0.2.7"], None)
