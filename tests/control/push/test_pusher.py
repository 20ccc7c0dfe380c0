"""From the store to the views: debounced, whole, and never worse than before."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshfast.control.ca import SpiffeId
from meshfast.control.ca.issuance import revoked_key
from meshfast.control.push import Mesh, Pusher
from meshfast.control.push.debounce import Debounce
from meshfast.control.push.resolver import Resolver
from meshfast.control.push.view import NamespaceView
from meshfast.control.registry import workload_key
from meshfast.control.store import Put, SqliteStore, Transaction
from meshfast.errors import ConfigError
from tests.control.translate.made import workload

PAYMENT = "outbound|8080||payment.default"


@dataclass(eq=False)
class FakeStream:
    """What a stream looks like to the pusher."""

    namespace: str = "default"
    views: list[NamespaceView] = field(default_factory=list)

    def notify(self, view: NamespaceView) -> None:
        self.views.append(view)


class FakeStreams(list[FakeStream]):
    """All streams; counts how often the revoked were looked for."""

    revocations = 0

    def end_revoked(self) -> None:
        self.revocations += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store")
    yield opened
    opened.close()


@asynccontextmanager
async def pushing(
    store: SqliteStore, streams: FakeStreams, quiet_s: float = 0.05
) -> AsyncIterator[Pusher]:
    mesh = Mesh(store)
    pusher = Pusher(mesh, Resolver(), debounce=Debounce(quiet_s, 1.0))
    work = asyncio.create_task(pusher.run(streams))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    try:
        yield pusher
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        mesh.close()


def register(store: SqliteStore, at: int) -> None:
    value = msgspec.json.encode(workload(at=at))
    store.transact(Transaction((Put(workload_key("default", "payment", f"p{at}"), value),)))


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def endpoints(view: NamespaceView) -> int:
    found = view.resource("endpoint", PAYMENT)
    return 0 if found is None else len(msgspec.json.decode(found.body))


def test_changes_that_come_together_are_one_push_and_one_view_for_all(store: SqliteStore) -> None:
    async def run() -> None:
        streams = FakeStreams([FakeStream(), FakeStream(), FakeStream("shop")])
        async with pushing(store, streams, quiet_s=0.3) as pusher:
            for at in range(10):
                register(store, at)
            await until(lambda: streams[0].views)
            assert pusher.pushes == 1
            assert endpoints(streams[0].views[0]) == 10
            assert streams[0].views[0] is streams[1].views[0]
            assert streams[2].views[0] is not streams[0].views[0]
            assert pusher.revision == store.revision() == streams[0].views[0].revision

    asyncio.run(run())


def test_a_change_that_no_sidecar_sees_is_not_pushed(store: SqliteStore) -> None:
    async def run() -> None:
        streams = FakeStreams([FakeStream()])
        async with pushing(store, streams) as pusher:
            store.transact(Transaction((Put("/tokens/0", b"{}"),)))
            register(store, 1)
            await until(lambda: streams[0].views)
            store.transact(Transaction((Put("/tokens/1", b"{}"),)))
            register(store, 2)
            await until(lambda: len(streams[0].views) == 2)
            assert pusher.pushes == 2

    asyncio.run(run())


def test_revoking_does_not_wait_for_quiet(store: SqliteStore) -> None:
    async def run() -> None:
        streams = FakeStreams([FakeStream()])
        async with pushing(store, streams, quiet_s=0.9):
            identity = SpiffeId("cluster.local", "default", "payment")
            key = revoked_key(identity.namespace, identity.service_account)
            store.transact(Transaction((Put(key, b"{}"),)))
            await until(lambda: streams.revocations)
            assert streams[0].views == []

    asyncio.run(run())


def test_what_cannot_be_translated_leaves_the_last_good_view(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        streams = FakeStreams([FakeStream()])
        async with pushing(store, streams) as pusher:
            register(store, 1)
            await until(lambda: streams[0].views)
            good = pusher.view("default")

            def fails(*arguments: Any) -> Any:
                raise ConfigError("too many endpoints")

            monkeypatch.setattr("meshfast.control.push.pusher.Translation", fails)
            register(store, 2)
            await until(lambda: "too many endpoints" in caplog.text)
            assert pusher.view("default") is good
            assert len(streams[0].views) == 1
            monkeypatch.undo()
            register(store, 3)
            await until(lambda: len(streams[0].views) == 2)
            assert endpoints(streams[0].views[1]) == 3

    asyncio.run(run())


def test_pushing_goes_on_after_the_history_was_cut(store: SqliteStore) -> None:
    async def run() -> None:
        streams = FakeStreams([FakeStream()])
        async with pushing(store, streams):
            for at in range(3):  # nothing is read between these: the loop does not run
                register(store, at)
            store.compact(store.revision())
            await until(lambda: streams[0].views)
            assert endpoints(streams[0].views[-1]) == 3
            register(store, 9)
            await until(lambda: endpoints(streams[0].views[-1]) == 4)

    asyncio.run(run())
