"""The state in memory follows the store, whatever happens to its history."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from meshfast.control.ca.issuance import revoked_key
from meshfast.control.push import Mesh, resource_key
from meshfast.control.registry import workload_key
from meshfast.control.store import Delete, Limits, Put, SqliteStore, Transaction
from tests.control.translate.made import entry, resources, workload


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store", limits=Limits(page_max=3))
    yield opened
    opened.close()


def put(store: SqliteStore, key: str, value: object) -> None:
    store.transact(Transaction((Put(key, msgspec.json.encode(value)),)))


def delete(store: SqliteStore, key: str) -> None:
    store.transact(Transaction((Delete(key),)))


def register(store: SqliteStore, at: int) -> str:
    key = workload_key("default", "payment", f"p{at}")
    put(store, key, workload(at=at))
    return key


def addresses(mesh: Mesh) -> list[str]:
    return [one.address for one in mesh.workloads()]


def test_what_is_there_is_read_page_by_page(store: SqliteStore) -> None:
    [loaded] = resources(entry())
    put(store, resource_key("ServiceEntry", "default", "api"), loaded.resource)
    for at in range(8):
        register(store, at)
    mesh = Mesh(store)
    assert len(addresses(mesh)) == 8
    assert [one.loaded.resource for one in mesh.resources.values()] == [loaded.resource]
    assert mesh.revision == store.revision()
    mesh.close()


def test_changes_are_followed(store: SqliteStore) -> None:
    mesh = Mesh(store)
    assert not mesh.poll()
    key = register(store, 1)
    assert mesh.poll()
    assert addresses(mesh) == ["10.0.0.1:15006"]
    delete(store, key)
    assert mesh.poll()
    assert addresses(mesh) == []
    assert mesh.revision == store.revision()
    mesh.close()


def test_what_no_sidecar_sees_is_no_change(store: SqliteStore) -> None:
    mesh = Mesh(store)
    put(store, "/tokens/0", {})
    put(store, "/issued/1", {})
    assert not mesh.poll()
    assert mesh.revision == store.revision()
    mesh.close()


def test_workloads_are_in_the_order_of_their_first_registration(store: SqliteStore) -> None:
    for at in (3, 1, 2):
        register(store, at)
    put(store, workload_key("default", "payment", "p3"), workload(at=3, healthy=True))
    mesh = Mesh(store)
    assert addresses(mesh) == ["10.0.0.3:15006", "10.0.0.1:15006", "10.0.0.2:15006"]
    mesh.close()


def test_workloads_of_a_revoked_identity_are_not_in_it(store: SqliteStore) -> None:
    register(store, 1)
    put(store, workload_key("default", "order", "o1"), workload("order", at=2))
    mesh = Mesh(store)
    put(store, revoked_key("default", "payment"), {})
    assert mesh.poll()
    assert addresses(mesh) == ["10.0.0.2:15006"]
    assert mesh.is_revoked("default", "payment")
    assert mesh.revoked() == {("default", "payment")}
    delete(store, revoked_key("default", "payment"))
    assert mesh.poll()
    assert len(addresses(mesh)) == 2
    mesh.close()


def test_behind_a_compaction_everything_is_read_again(store: SqliteStore) -> None:
    register(store, 1)
    mesh = Mesh(store)
    delete(store, workload_key("default", "payment", "p1"))
    for at in range(2, 7):
        register(store, at)
    store.compact(store.revision())
    assert mesh.poll()
    assert addresses(mesh) == [f"10.0.0.{at}:15006" for at in range(2, 7)]
    register(store, 9)
    assert mesh.poll()
    assert len(addresses(mesh)) == 6
    mesh.close()


def test_an_entry_that_cannot_be_read_hides_no_other_one(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    [loaded] = resources(entry())
    mesh = Mesh(store)
    good, bad = (resource_key("ServiceEntry", "default", name) for name in ("api", "bad"))
    for key, value in ((bad, b"{]"), (workload_key("default", "payment", "p0"), b"{]")):
        store.transact(Transaction((Put(key, value),)))
    put(store, good, loaded.resource)
    register(store, 1)
    assert mesh.poll()
    for found in (mesh, Mesh(store)):
        assert list(found.resources) == [good]
        assert addresses(found) == ["10.0.0.1:15006"]
        found.close()
    assert caplog.text.count(f"{bad} is not served") == 2


def test_an_entry_that_cannot_be_read_any_more_stays_what_it_was(store: SqliteStore) -> None:
    [loaded] = resources(entry())
    key = resource_key("ServiceEntry", "default", "api")
    put(store, key, loaded.resource)
    mesh = Mesh(store)
    store.transact(Transaction((Put(key, b"{]"),)))
    for at in range(3):
        register(store, at)
    store.compact(store.revision())
    assert mesh.poll()
    assert mesh.readings == 2
    assert mesh.resources[key].loaded.resource == loaded.resource
    delete(store, key)
    assert mesh.poll()
    assert mesh.resources == {}
    mesh.close()
