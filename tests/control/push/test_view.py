"""A view versions bodies, and what did not change stays the same object."""

from meshfast.control.push.view import NamespaceView
from meshfast.discovery import TYPES, Revision, content_version


def bodies(**clusters: bytes) -> dict[str, dict[str, bytes]]:
    return {type: (dict(clusters) if type == "cluster" else {}) for type in TYPES}


def test_a_version_is_the_hash_of_the_body() -> None:
    view = NamespaceView(Revision(1, 1), bodies(a=b"x"))
    found = view.resource("cluster", "a")
    assert found is not None
    assert found.version == content_version(b"x")
    assert view.resource("cluster", "b") is None
    assert view.resource("endpoint", "a") is None
    assert list(view.names("cluster")) == ["a"]


def test_changes_name_what_is_new_changed_or_gone() -> None:
    before = NamespaceView(Revision(1, 1), bodies(same=b"1", changed=b"1", gone=b"1"))
    after = NamespaceView(Revision(1, 2), bodies(same=b"1", changed=b"2", new=b"1"), before)
    assert {type: sorted(names) for type, names in after.changes(before).items()} == {
        "cluster": ["changed", "gone", "new"]
    }
    assert after.resource("cluster", "same") is before.resource("cluster", "same")


def test_the_same_bodies_are_no_change() -> None:
    before = NamespaceView(Revision(1, 1), bodies(a=b"1"))
    assert NamespaceView(Revision(1, 2), bodies(a=b"1"), before).changes(before) == {}
