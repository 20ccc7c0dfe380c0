"""What outlives every child and every image of the supervisor: descriptors, pairs, the snapshot.

Each of the 2N worker slots has two socket pairs, made once: an *inbox* (any worker sends accepted
connections into it, the worker of the slot takes them out) and a *resolver* (the worker asks, the
agent answers). The supervisor keeps all ends, so what waits in a pair is found by the next worker
of the slot. Children get the ends that are theirs, and their settings name them.

What it does not do: fork, send messages. Tests: tests/supervisor/test_holdings.py.
"""

from __future__ import annotations

import os

from meshfast.supervisor import channel
from meshfast.supervisor.settings import Settings
from meshfast.supervisor.sockets import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Holdings"]

# A listener is named by its direction, a slash, and the address that was asked for.
INBOUND = "inbound/"


class Holdings:
    """The supervisor's property. `image` counts the times it has re-executed itself.

    `identity_fd` is the newest identity from the agent, sealed, never read here; None before.
    `is_meshed`: the agent has said that the sidecar has identity and configuration.
    `inboxes[slot]` is [receiving, sending], `resolvers[slot]` is [worker's end, agent's end].
    """

    __slots__ = (
        "generation",
        "identity_fd",
        "identity_serial",
        "image",
        "inboxes",
        "is_meshed",
        "listeners",
        "lock_fd",
        "resolvers",
        "settings",
        "snapshot_fd",
    )

    def __init__(self, settings: Settings, lock_fd: int, listeners: list[Listener]) -> None:
        """Take what is open already and make the pairs of every slot."""
        self.settings = settings
        self.lock_fd = lock_fd
        self.listeners = listeners
        self.snapshot_fd = settings.snapshot_fd
        self.generation = settings.generation
        self.identity_fd: int | None = None
        self.identity_serial = 0
        self.is_meshed = False
        self.image = 0
        self.inboxes = [list(channel.pair()) for _ in range(settings.worker_slots)]
        self.resolvers = [list(channel.pair()) for _ in range(settings.worker_slots)]

    def replace_snapshot(self, generation: int, fd: int) -> None:
        """Keep a newer snapshot and close the one before."""
        os.close(self.snapshot_fd)
        self.snapshot_fd = fd
        self.generation = generation

    def replace_identity(self, serial: int, fd: int) -> None:
        """Keep a newer identity and close the one before."""
        if self.identity_fd is not None:
            os.close(self.identity_fd)
        self.identity_fd = fd
        self.identity_serial = serial

    def listeners_of(self, owner: str) -> list[Listener]:
        """Return the listeners that a kind of child gets, in the order they were bound."""
        return [listener for listener in self.listeners if listener.owner == owner]

    def close_inbound(self) -> None:
        """Close what others reach the application by; workers forked from now on have none."""
        for listener in [one for one in self.listeners if one.name.startswith(INBOUND)]:
            self.listeners.remove(listener)
            listener.close()

    @property
    def has_inbound(self) -> bool:
        """Tell whether workers that are forked now accept inbound connections."""
        return any(listener.name.startswith(INBOUND) for listener in self.listeners)

    def close_listeners_of(self, owner: str) -> None:
        """Close what a kind of child listened on: from now on the kernel refuses connects."""
        for listener in self.listeners_of(owner):
            self.listeners.remove(listener)
            listener.close()

    def worker_settings(self, slot: int, control_fd: int) -> dict[str, Any]:
        """Return the settings of the worker on *slot*; no identity before there is one."""
        identity = {"identity_fd": self.identity_fd, "identity_serial": self.identity_serial}
        return {
            "version": 1,
            "slot": slot,
            "worker_slots": self.settings.worker_slots,
            "shared_memory_fd": self.settings.shared_memory_fd,
            "snapshot_fd": self.snapshot_fd,
            "generation": self.generation,
            "control_fd": control_fd,
            "listeners": [
                {"name": listener.name, "fd": listener.fd}
                for listener in self.listeners_of("worker")
            ],
            "inbox_fd": self.inboxes[slot][0],
            "outboxes": [
                {"slot": other, "fd": ends[1]}
                for other, ends in enumerate(self.inboxes)
                if other != slot
            ],
            "resolver_fd": self.resolvers[slot][0],
            **(identity if self.identity_fd is not None else {}),
            "drain_ms": self.settings.drain_ms,
            "log_level": self.settings.log_level,
        }

    def agent_settings(self, control_fd: int) -> dict[str, Any]:
        """Return the settings document of the agent.

        `bound` names the workers' listeners, so that a new agent does not ask for them again.
        """
        return {
            "version": 1,
            "worker_slots": self.settings.worker_slots,
            "shared_memory_fd": self.settings.shared_memory_fd,
            "snapshot_fd": self.snapshot_fd,
            "generation": self.generation,
            "control_fd": control_fd,
            "listeners": [
                {"name": listener.name, "address": listener.address, "fd": listener.fd}
                for listener in self.listeners_of("agent")
            ],
            "bound": [
                {"name": listener.name, "address": listener.address}
                for listener in self.listeners_of("worker")
            ],
            "resolvers": [
                {"slot": slot, "fd": ends[1]} for slot, ends in enumerate(self.resolvers)
            ],
            "identity_fd": self.identity_fd,
            "identity_serial": self.identity_serial,
            "agent": self.settings.agent,
            "log_level": self.settings.log_level,
        }

    def fds(self) -> list[int]:
        """Return every descriptor held, for the passage through `exec`."""
        return [
            self.lock_fd,
            self.snapshot_fd,
            self.settings.shared_memory_fd,
            *([] if self.identity_fd is None else [self.identity_fd]),
            *(listener.fd for listener in self.listeners),
            *(fd for ends in (*self.inboxes, *self.resolvers) for fd in ends),
        ]

    def to_document(self) -> dict[str, Any]:
        """Return everything as JSON data; `from_document` takes it back."""
        return {
            "settings": self.settings.document,
            "lock_fd": self.lock_fd,
            "listeners": [listener.to_document() for listener in self.listeners],
            "snapshot_fd": self.snapshot_fd,
            "generation": self.generation,
            "identity_fd": self.identity_fd,
            "identity_serial": self.identity_serial,
            "is_meshed": self.is_meshed,
            "image": self.image,
            "inboxes": self.inboxes,
            "resolvers": self.resolvers,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Holdings:
        """Take over what the image before held; `image` is one higher."""
        holdings = cls.__new__(cls)
        holdings.settings = Settings(document["settings"])
        holdings.lock_fd = document["lock_fd"]
        holdings.listeners = [Listener(**fields) for fields in document["listeners"]]
        holdings.snapshot_fd = document["snapshot_fd"]
        holdings.generation = document["generation"]
        holdings.identity_fd = document["identity_fd"]
        holdings.identity_serial = document["identity_serial"]
        holdings.is_meshed = document["is_meshed"]
        holdings.image = document["image"] + 1
        holdings.inboxes = document["inboxes"]
        holdings.resolvers = document["resolvers"]
        return holdings
