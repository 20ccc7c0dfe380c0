"""Registered workloads and their leases: streams come and go, nobody is lost at once."""

import asyncio
import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from meshfast.control.registry import Registry, ServiceRecord, WorkloadRecord, workload_key
from meshfast.control.registry.registry import ENDPOINTS_MAX, ShareError, decode
from meshfast.control.store import Delete, FullError, Put, SqliteStore, Transaction
from meshfast.discovery import Port

GRACE_MS = 10_000


class Clock:
    """Both clocks, the store's and the registry's."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class World:
    """A store whose time passes in the steps of its own writer, and a registry over it."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.store = SqliteStore(directory, clock_ms=self.clock)
        self.registry = self.restart()

    def restart(self) -> Registry:
        """Start a registry as a new control plane would."""
        self.registry = Registry(
            self.store,
            grace_ms=GRACE_MS,
            adoption_ms=60_000,
            adoption_spread_ms=60_000,
            clock_ms=self.clock,
        )
        return self.registry

    def passes(self, duration_ms: int, *, keeping_alive: bool = True) -> None:
        """Let time pass; leases are kept alive as often as the server does it."""
        end_ms = self.clock.now_ms + duration_ms
        next_ms = self.clock.now_ms + self.registry.keep_alive_ms
        while self.clock.now_ms < end_ms:
            self.clock.now_ms += 250
            if keeping_alive and self.clock.now_ms >= next_ms:
                self.registry.keep_alive()
                next_ms += self.registry.keep_alive_ms
            self.store.sweep()

    def instances(self) -> list[str]:
        return [entry.key.rpartition("/")[2] for entry in self.store.scan("/workloads/").entries]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path / "store")
    yield found
    found.store.close()


def record(instance: str = "p1", account: str = "payment", **changes: object) -> WorkloadRecord:
    made = WorkloadRecord(
        instance=instance,
        workload="payment-v1",
        namespace="default",
        service="payment",
        identity=f"spiffe://cluster.local/ns/default/sa/{account}",
        address="127.0.0.1:15006",
        ports=(Port(8080),),
    )
    return replace(made, **changes)


def register(world: World, stream: object, what: WorkloadRecord) -> None:
    asyncio.run(world.registry.register(stream, what))


def test_a_workload_lives_as_long_as_its_stream_and_the_grace(world: World) -> None:
    stream = object()
    register(world, stream, record())
    world.passes(60_000)
    assert world.instances() == ["p1"]
    world.registry.release(stream)
    world.passes(GRACE_MS - 500)
    assert world.instances() == ["p1"]
    world.passes(1_000)
    assert world.instances() == []


def test_keeping_alive_writes_nothing(world: World) -> None:
    register(world, object(), record())
    before = world.store.revision()
    world.passes(60_000)
    assert world.store.revision() == before


def test_the_same_registration_again_writes_nothing(world: World) -> None:
    first, second = object(), object()
    register(world, first, record())
    before = world.store.revision()
    register(world, first, record())
    world.registry.release(first)
    register(world, second, record())
    assert world.store.revision() == before
    world.passes(60_000)
    assert world.instances() == ["p1"]


def test_a_changed_registration_replaces_the_old_one_on_the_same_lease(world: World) -> None:
    stream = object()
    register(world, stream, record())
    [before] = world.store.scan("/workloads/").entries
    register(world, stream, record(healthy=True))
    [after] = world.store.scan("/workloads/").entries
    assert (after.changes, after.lease) == (2, before.lease)


def test_a_stream_that_was_replaced_can_take_nothing_away(world: World) -> None:
    old, new = object(), object()
    register(world, old, record())
    register(world, new, record())
    asyncio.run(world.registry.deregister(old, record().key))
    world.registry.release(old)
    world.passes(60_000)
    assert world.instances() == ["p1"]
    asyncio.run(world.registry.deregister(new, record().key))
    assert world.instances() == []
    asyncio.run(world.registry.deregister(new, record().key))


def test_an_instance_of_another_identity_is_another_one(world: World) -> None:
    mine, other = object(), object()
    register(world, mine, record())
    register(world, other, record(account="order"))
    assert world.instances() == ["p1", "p1"]
    asyncio.run(world.registry.deregister(other, record(account="order").key))
    assert [entry.key for entry in world.store.scan("/workloads/").entries] == [record().key]


def test_an_identity_has_its_share_of_endpoints(world: World) -> None:
    ports = tuple(Port(number) for number in range(1, 65))
    for number in range(ENDPOINTS_MAX // len(ports)):
        register(world, object(), record(f"p{number:02}", ports=ports))
    for more in (record("more"), record("more", ports=ports)):
        with pytest.raises(ShareError, match="sa/payment has 1024 endpoints"):
            register(world, object(), more)
    register(world, object(), record("p00", ports=ports, healthy=True))
    register(world, object(), record("o1", account="order", ports=ports))
    world.restart().adopt()
    with pytest.raises(ShareError):
        register(world, object(), record("more"))
    stream = object()
    register(world, stream, record("p00", ports=ports))
    asyncio.run(world.registry.deregister(stream, record("p00").key))
    register(world, object(), record("more"))


def test_what_was_lost_is_not_said_again_over_something_newer(world: World) -> None:
    old, new = object(), object()
    register(world, old, record())
    world.passes(GRACE_MS + 1_000, keeping_alive=False)
    [(stream, lost)] = world.registry.keep_alive()

    async def newer_first() -> None:
        await asyncio.gather(
            world.registry.register(new, record(healthy=True)),
            world.registry.register_again(stream, lost),
        )

    asyncio.run(newer_first())
    [entry] = world.store.scan("/workloads/").entries
    assert decode(entry) == record(healthy=True)


def test_what_was_lost_is_not_said_again_over_a_removal(world: World) -> None:
    stream = object()
    register(world, stream, record())

    async def gone_first() -> None:
        await asyncio.gather(
            world.registry.deregister(stream, record().key),
            world.registry.register_again(stream, record()),
        )

    asyncio.run(gone_first())
    assert world.instances() == []


def test_a_registration_that_waited_for_a_removal_is_there_and_kept_alive(world: World) -> None:
    old, new, newest = object(), object(), object()
    register(world, old, record())

    async def all_at_once() -> None:
        await asyncio.gather(
            world.registry.deregister(old, record().key),
            world.registry.register(new, record()),
            world.registry.register(newest, record(healthy=True)),
        )

    asyncio.run(all_at_once())
    world.registry.release(new)
    world.passes(60_000)
    assert world.instances() == ["p1"]
    world.registry.release(newest)
    world.passes(GRACE_MS + 1_000)
    assert world.instances() == []


def test_a_removal_that_fails_leaves_the_workload_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = object()
    register(world, stream, record())

    def fails(_: object) -> None:
        raise FullError("the disk is full")

    monkeypatch.setattr(world.store, "transact", fails)
    with pytest.raises(FullError):
        asyncio.run(world.registry.deregister(stream, record().key))
    monkeypatch.undo()
    world.passes(60_000)
    assert world.instances() == ["p1"]
    asyncio.run(world.registry.deregister(stream, record().key))
    assert world.instances() == []


def test_after_a_start_workloads_are_held_and_then_go_one_by_one(world: World) -> None:
    for number in range(20):
        register(world, object(), record(f"p{number:02}"))
    registry = world.restart()
    assert registry.adopt() == 20
    world.passes(60_000)
    assert len(world.instances()) == 20
    returned = object()
    register(world, returned, record("p19"))
    left = []
    for _ in range(13):
        world.passes(6_000)
        left.append(len(world.instances()))
    lost = [before - after for before, after in zip([20, *left], left, strict=False)]
    assert max(lost) <= 3
    assert world.instances() == ["p19"]


def test_one_that_comes_back_after_a_start_changes_nothing(world: World) -> None:
    register(world, object(), record())
    before = world.store.revision()
    world.restart().adopt()
    register(world, object(), record())
    world.passes(200_000)
    assert world.store.revision() == before
    assert world.instances() == ["p1"]


def test_what_was_lost_while_nobody_kept_it_alive_is_named(world: World) -> None:
    stream = object()
    register(world, stream, record())
    world.passes(GRACE_MS + 1_000, keeping_alive=False)
    assert world.instances() == []
    assert world.registry.keep_alive() == [(stream, record())]
    register(world, stream, record())
    assert world.instances() == ["p1"]
    assert world.registry.keep_alive() == []


def test_many_at_once_are_all_written(world: World) -> None:
    async def everybody() -> None:
        calls = (world.registry.register(object(), record(f"p{n:03}")) for n in range(100))
        await asyncio.gather(*calls)

    asyncio.run(everybody())
    assert len(world.instances()) == 100


def registered(world: World) -> list[list[int]]:
    """The sets of ports that the service is kept with."""
    entry = world.store.read("/services/default/payment")
    if entry is None:
        return []
    found = msgspec.json.decode(entry.value, type=ServiceRecord)
    return [[port.number for port in ports] for ports in found.registered]


def at(address: int, *ports: int, namespace: str = "default") -> WorkloadRecord:
    return record(
        f"p{address}",
        address=f"10.0.0.{address}:15006",
        ports=tuple(Port(number) for number in ports),
        namespace=namespace,
    )


def test_a_service_is_kept_with_the_ports_of_those_who_are_there(world: World) -> None:
    one, two = object(), object()
    register(world, two, at(2, 9000))
    register(world, one, at(1, 8080))
    assert registered(world) == [[8080], [9000]]
    register(world, one, at(1))  # it drains
    assert registered(world) == [[9000]]
    register(world, two, at(2))
    assert registered(world) == [[9000]]
    register(world, two, at(2))
    assert registered(world) == [[9000]]


def test_a_service_is_not_kept_with_ports_of_long_ago(world: World) -> None:
    for number in range(1000, 1100):  # a developer's free port of each start
        stream = object()
        register(world, stream, at(1, number))
        asyncio.run(world.registry.deregister(stream, at(1).key))
    assert registered(world) == [[1099]]


def test_a_service_that_was_forgotten_does_not_come_back_by_a_farewell(world: World) -> None:
    register(world, object(), at(1))
    assert registered(world) == []


def test_services_of_one_name_in_two_namespaces_are_two(world: World) -> None:
    register(world, object(), at(1, 8080))
    register(world, object(), at(2, 9000, namespace="shop"))
    assert registered(world) == [[8080]]


def test_ports_of_all_who_register_at_once_are_kept(world: World) -> None:
    async def everybody() -> None:
        records = [at(number, 8000 + number % 8) for number in range(1, 65)]
        calls = [world.registry.register(object(), one) for one in records]
        await asyncio.gather(*calls)

    asyncio.run(everybody())
    assert sorted(registered(world)) == [[8000 + number] for number in range(8)]


def test_one_that_comes_while_another_writes_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(world, object(), at(1, 8080))
    register(world, object(), at(2, 9000))
    write = world.store.transact

    def beside(transaction: Transaction) -> object:
        """Bring back, in the very moment of the write, what the write takes for gone."""
        monkeypatch.setattr(world.store, "transact", write)
        world.registry._roll.enter(at(2).key, at(2, 9000))
        return write(transaction)

    world.registry._roll.leave(at(2).key)
    monkeypatch.setattr(world.store, "transact", beside)
    register(world, object(), at(1, 8081))
    assert registered(world) == [[8081], [9000]]


def service_revision(world: World) -> object:
    entry = world.store.read("/services/default/payment")
    return entry and entry.modified


def test_one_that_was_not_there_is_seen_by_who_relies_on_its_service(world: World) -> None:
    register(world, object(), at(1, 8080))
    for came in (at(2, 8080), at(3)):  # the service stays as it is
        before = service_revision(world)
        register(world, object(), came)
        assert service_revision(world) != before
        assert registered(world) == [[8080]]
        before = service_revision(world)
        register(world, object(), replace(came, healthy=True))
        assert service_revision(world) == before


def test_one_that_was_lost_comes_back_with_its_service(world: World) -> None:
    stream = object()
    register(world, stream, at(1, 8080))
    world.passes(GRACE_MS + 1_000, keeping_alive=False)
    assert world.registry.keep_alive() == [(stream, at(1, 8080))]
    gone = Transaction((Delete("/services/default/payment"),))
    world.store.transact(gone)
    asyncio.run(world.registry.register_again(stream, at(1, 8080)))
    assert (world.instances(), registered(world)) == (["p1"], [[8080]])


def test_an_instance_that_changes_its_service_brings_the_other_one(world: World) -> None:
    register(world, object(), at(1, 8080))
    register(world, object(), replace(at(1, 8080), service="order"))
    assert world.store.read("/services/default/order") is not None
    assert registered(world) == [[8080]]


def test_an_identity_has_its_share_when_everybody_comes_at_once(world: World) -> None:
    ports = tuple(Port(number) for number in range(1, 65))

    async def everybody() -> list[BaseException | None]:
        calls = [
            world.registry.register(object(), record(f"p{number:02}", ports=ports))
            for number in range(40)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(everybody())
    assert [type(one) for one in outcomes if one] == [ShareError] * 24
    stored = [decode(entry) for entry in world.store.scan("/workloads/").entries]
    assert sum(len(one.ports) for one in stored) == ENDPOINTS_MAX


def test_a_share_that_could_not_be_written_is_free_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise FullError("the disk is full")

    ports = tuple(Port(number) for number in range(1, ENDPOINTS_MAX + 1))
    with monkeypatch.context() as full:
        full.setattr(world.store, "transact", fails)
        with pytest.raises(FullError):
            register(world, object(), record("p1", ports=ports))
    register(world, object(), record("p2", ports=ports))
    assert world.instances() == ["p2"]


def fleet(count: int) -> list[WorkloadRecord]:
    """Make workloads of one service, each with an identity of its own."""
    return [
        record(f"p{number}", f"sa{number}", address=f"10.0.{number >> 8}.{number & 255}:15006")
        for number in range(count)
    ]


def batches(records: list[WorkloadRecord], size: int) -> Iterator[list[WorkloadRecord]]:
    for first in range(0, len(records), size):
        yield records[first : first + size]


def work(registry: Registry, records: list[WorkloadRecord]) -> int:
    """Count what Python calls, generators' steps among them, while all of them register."""
    calls = itertools.count()

    def count(*_: object) -> None:
        next(calls)

    async def everybody() -> None:
        for one in records:
            await registry.register(object(), one)

    threading.setprofile(count)  # what is written is written in threads
    sys.setprofile(count)
    try:
        asyncio.run(everybody())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return next(calls)


def test_a_fleet_that_comes_back_costs_as_much_as_it_is_large(tmp_path: Path) -> None:
    costs = []
    for count in (1_000, 4_000):
        world = World(tmp_path / str(count))
        lease = world.store.grant(GRACE_MS)
        for some in batches(fleet(count), 500):
            puts = [Put(one.key, msgspec.json.encode(one), lease) for one in some]
            world.store.transact(Transaction(tuple(puts)))
        before = world.store.revision()
        assert world.registry.adopt() == count
        costs.append(work(world.registry, fleet(count)))
        assert world.store.revision() == before
        world.store.close()
    assert costs[1] < 5 * costs[0], costs


def test_a_fleet_that_comes_first_costs_as_much_as_it_is_large(tmp_path: Path) -> None:
    costs = []
    for count in (200, 800):
        world = World(tmp_path / str(count))
        costs.append(work(world.registry, fleet(count)))
        assert len(world.instances()) == count
        world.store.close()
    assert costs[1] < 5 * costs[0], costs


def test_keys_are_named_by_identity_and_instance() -> None:
    assert workload_key("shop", "sa", "p1") == "/workloads/shop/sa/p1"
