"""A naive store: a list of whole states. What it says is right, because it cannot be otherwise.

`ModelledStore` drives a real store and this one side by side with random operations.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshfast.control.store import (
    CompactedError,
    Condition,
    ConflictError,
    Delete,
    Entry,
    Put,
    Store,
    Transaction,
    Watch,
)
from meshfast.discovery import ORIGIN, Revision
from tests.control.store.contract import Harness

KEYS = ("a", "a/1", "a/2", "b")
PREFIXES = ("", "a", "a/", "b", "c")

keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(PREFIXES)
picks = st.integers(0, 1_000)


@dataclass
class Model:
    """`states[i]` is everything after `revisions[i]`; the first is the empty one at the origin."""

    revisions: list[Revision] = field(default_factory=lambda: [ORIGIN])
    states: list[dict[str, Entry]] = field(default_factory=lambda: [{}])
    compacted: int = 0

    @property
    def now(self) -> dict[str, Entry]:
        return self.states[-1]

    def conflicts(self, conditions: tuple[Condition, ...]) -> list[tuple[str, Revision | None]]:
        found = [(c, self.now[c.key].modified if c.key in self.now else None) for c in conditions]
        return [(c.key, modified) for c, modified in found if modified != c.modified]

    def changes(self, writes: tuple[Put | Delete, ...]) -> bool:
        return any(isinstance(w, Put) or w.key in self.now for w in writes)

    def apply(self, at: Revision, writes: tuple[Put | Delete, ...]) -> None:
        state = dict(self.now)
        for write in writes:
            old = state.pop(write.key, None)
            if isinstance(write, Put):
                created, changes = (old.created, old.changes + 1) if old else (at, 1)
                state[write.key] = Entry(write.key, write.value, created, at, changes, write.lease)
        self.revisions.append(at)
        self.states.append(state)

    def watched(self, prefix: str, after: int) -> list[tuple[Revision, dict[str, Entry | None]]]:
        """Return what a watch has to yield: per later revision the keys that it changed."""
        found = []
        for index in range(after + 1, len(self.states)):
            before, state = self.states[index - 1], self.states[index]
            changed = {
                key: state.get(key)
                for key in sorted({*before, *state})
                if key.startswith(prefix) and before.get(key) != state.get(key)
            }
            if changed:
                found.append((self.revisions[index], changed))
        return found


class ModelledStore(RuleBasedStateMachine):
    """Random operations on a back end; a back end's test file gives the harness."""

    harness: Harness

    def __init__(self) -> None:
        super().__init__()
        self.store: Store = self.harness.open()
        self.model = Model()
        self.leases: list[int] = []
        self.watches: list[tuple[str, int, Watch]] = []

    def teardown(self) -> None:
        self.harness.close()

    def index(self, pick: int) -> int:
        return pick % len(self.model.revisions)

    def lease(self, pick: int) -> int:
        return ([0, 0, *self.leases])[pick % (2 + len(self.leases))]

    @rule(
        key=keys,
        others=st.lists(keys, unique=True, max_size=3),
        conditions=st.lists(st.tuples(keys, picks, st.booleans()), max_size=2),
        value=st.binary(max_size=3),
        pick=picks,
    )
    def transact(
        self,
        key: str,
        others: list[str],
        conditions: list[tuple[str, int, bool]],
        value: bytes,
        pick: int,
    ) -> None:
        writes: list[Put | Delete] = [Put(key, value, self.lease(pick))]
        writes += [Delete(other) for other in others if other != key]
        self.check_transaction(tuple(writes), self.conditions(conditions))

    @rule(gone=st.lists(keys, unique=True, min_size=1, max_size=3))
    def delete(self, gone: list[str]) -> None:
        self.check_transaction(tuple(Delete(key) for key in gone), ())

    def conditions(self, drawn: list[tuple[str, int, bool]]) -> tuple[Condition, ...]:
        """Conditions that mostly hold, and sometimes compare with any older revision."""
        made = []
        for key, pick, holds in drawn:
            entry = self.model.now.get(key)
            actual = entry.modified if entry else None
            made.append(Condition(key, actual if holds else self.model.revisions[self.index(pick)]))
        return tuple(made)

    def check_transaction(
        self, writes: tuple[Put | Delete, ...], conditions: tuple[Condition, ...]
    ) -> None:
        conflicts = self.model.conflicts(conditions)
        if conflicts:
            with pytest.raises(ConflictError) as refusal:
                self.store.transact(Transaction(writes, conditions))
            assert list(refusal.value.conflicts) == conflicts
            return
        at = self.store.transact(Transaction(writes, conditions))
        if self.model.changes(writes):
            assert at > self.model.revisions[-1]
            assert at.n == self.model.revisions[-1].n + 1
            self.model.apply(at, writes)
        else:
            assert at == self.model.revisions[-1]

    @precondition(lambda self: len(self.leases) < 3)
    @rule()
    def grant(self) -> None:
        self.leases.append(self.store.grant(60_000))

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def revoke(self, pick: int) -> None:
        lease = self.leases.pop(pick % len(self.leases))
        at = self.store.revoke(lease)
        gone = tuple(Delete(key) for key, e in self.model.now.items() if e.lease == lease)
        if gone:
            self.model.apply(at, gone)

    @precondition(lambda self: self.leases)
    @rule()
    def expire(self) -> None:
        """Let all leases run out; each is a revision of its own, in an order left open."""
        before = self.store.revision()
        self.harness.advance(61_000)
        self.leases.clear()
        for change_set in self.store.watch("", after=before).poll():
            keys = {change.key for change in change_set.changes}
            (lease,) = {self.model.now[key].lease for key in keys}
            assert keys == {key for key, e in self.model.now.items() if e.lease == lease}
            self.model.apply(change_set.revision, tuple(Delete(key) for key in keys))
        assert not any(entry.lease for entry in self.model.now.values())

    @rule()
    def restart(self) -> None:
        self.store = self.harness.open()
        self.watches.clear()

    @rule(pick=picks)
    def compact(self, pick: int) -> None:
        index = self.index(pick)
        if index < self.model.compacted:
            with pytest.raises(CompactedError):
                self.store.compact(self.model.revisions[index])
            return
        self.store.compact(self.model.revisions[index])
        self.model.compacted = index
        for kept in range(index, len(self.model.revisions)):
            self.read_back("", kept)

    @rule(prefix=prefixes, pick=picks)
    def watch(self, prefix: str, pick: int) -> None:
        index = self.index(pick)
        if index < self.model.compacted:
            with pytest.raises(CompactedError):
                self.store.watch(prefix, after=self.model.revisions[index])
            return
        watch = self.store.watch(prefix, after=self.model.revisions[index])
        self.watches.append((prefix, index, watch))

    @precondition(lambda self: self.watches)
    @rule(pick=picks, limit=st.sampled_from((1, 2, 50)))
    def poll(self, pick: int, limit: int) -> None:
        prefix, index, watch = self.watches.pop(pick % len(self.watches))
        if index < self.model.compacted:
            with pytest.raises(CompactedError):
                watch.poll(limit)
            return
        seen = watch.poll(limit)
        found = [(s.revision, {c.key: c.entry for c in s.changes}) for s in seen]
        assert found == self.model.watched(prefix, index)[:limit]
        self.watches.append((prefix, self.model.revisions.index(watch.revision), watch))

    @rule(prefix=prefixes, pick=picks)
    def read_back(self, prefix: str, pick: int) -> None:
        index = self.index(pick)
        at = self.model.revisions[index]
        if index < self.model.compacted:
            with pytest.raises(CompactedError):
                self.store.scan(prefix, at=at)
            return
        state = self.model.states[index]
        expected = [state[key] for key in sorted(state) if key.startswith(prefix)]
        assert list(self.store.scan(prefix, at=at).entries) == expected
        for key in KEYS:
            assert self.store.read(key, at=at) == state.get(key)

    @invariant()
    def the_present_is_the_model(self) -> None:
        listing = self.store.scan("")
        assert listing.revision == self.model.revisions[-1] == self.store.revision()
        assert list(listing.entries) == [self.model.now[key] for key in sorted(self.model.now)]
