"""meshfast.policy.slots: slots stay with their endpoint and are not reused too early."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator
from meshfast.policy.document import Cluster, Document, Endpoint, Service, Workload

A, B, C, D = (("c", f"10.0.0.{n}:80") for n in range(1, 5))


def test_gives_the_lowest_free_slots_in_order() -> None:
    assert SlotAllocator().assign([A, B, A, C], 1) == {A: 0, B: 1, C: 2}


def test_an_endpoint_keeps_its_slot() -> None:
    allocator = SlotAllocator()
    allocator.assign([A, B], 1)
    assert allocator.assign([C, B], 2) == {B: 1, C: 2}


def test_a_slot_is_free_again_when_every_worker_has_left_its_last_generation() -> None:
    allocator = SlotAllocator()
    allocator.assign([A, B], 1)
    allocator.assign([B], 2)
    allocator.release(1)
    assert allocator.assign([B, C], 3) == {B: 1, C: 2}
    allocator.release(2)
    assert allocator.assign([B, C, D], 4) == {B: 1, C: 2, D: 0}


def test_an_endpoint_that_comes_back_before_the_release_gets_its_own_slot() -> None:
    allocator = SlotAllocator()
    allocator.assign([A, B], 1)
    allocator.assign([B], 2)
    assert allocator.assign([A, B], 3) == {A: 0, B: 1}
    allocator.release(3)
    assert allocator.assign([A, B, C], 4) == {A: 0, B: 1, C: 2}


def test_too_many_endpoints_are_refused_and_nothing_changes() -> None:
    allocator = SlotAllocator(slots_max=2)
    allocator.assign([A], 1)
    with pytest.raises(ConfigError, match="3 endpoints do not fit into 2 slots"):
        allocator.assign([A, B, C], 2)
    assert allocator.assign([C], 2) == {C: 1}


def test_takes_over_the_slots_of_a_running_document() -> None:
    workload = Workload(name="", namespace="", app="", revision="")
    cluster = Cluster(
        name="c",
        service=Service(host="c", name="c", namespace=""),
        subset="",
        balancer="RANDOM",
        connect_timeout_ms=1,
        idle_timeout_ms=1,
        endpoints=(Endpoint(slot=1, address=A[1], weight=1, workload=workload),),
    )
    document = Document(generation=7, workload=workload, listeners=(), clusters=(cluster,))
    allocator = SlotAllocator.from_document(document)
    assert allocator.assign([B, A, C], 8) == {B: 0, A: 1, C: 2}
    assert SlotAllocator.from_document(document).assign([C], 8) == {C: 0}


class Generations(RuleBasedStateMachine):
    """Any history of generations and releases keeps slots unique and stable."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = SlotAllocator(slots_max=8)
        self.generation = 0
        self.released = 0
        self.held: dict[int, dict[tuple[str, str], int]] = {}  # what each generation uses

    @rule(keys=st.sets(st.sampled_from([("c", str(n)) for n in range(12)]), max_size=8))
    def assign(self, keys: set[tuple[str, str]]) -> None:
        self.generation += 1
        try:
            self.held[self.generation] = self.allocator.assign(sorted(keys), self.generation)
        except ConfigError:
            self.held[self.generation] = {}

    @rule(back=st.integers(0, 3))
    def release(self, back: int) -> None:
        self.released = max(self.released, self.generation - back)
        self.allocator.release(self.released)
        self.held = {g: held for g, held in self.held.items() if g >= self.released}

    @invariant()
    def no_two_endpoints_share_a_slot_in_generations_that_run(self) -> None:
        owners: dict[int, tuple[str, str]] = {}
        for held in self.held.values():
            for key, slot in held.items():
                assert 0 <= slot < 8
                assert owners.setdefault(slot, key) == key


TestGenerations = Generations.TestCase
