"""The workers: N lanes of two slots each, kept occupied, replaced one by one, drained together.

A lane normally has one worker on its *home* slot. During a hot restart its successor boots on the
other slot; when that one is ready, the old one drains and the successor's slot becomes home. The
table of who dies and what happens then is docs/deaths.md.

What it does not do: decide when to drain or restart, talk to the agent.

Invariants
1. A slot has at most one living worker; it is free again only when that one has been reaped.
2. A lane without a worker is filled as soon as its back-off allows.
3. Connections handed over to a slot that is empty are passed on to a serving worker.

Tests: tests/supervisor/test_workers.py, test_drain.py, test_hot_restart.py.
"""

from __future__ import annotations

import os
from functools import partial
from time import monotonic

from meshfast.supervisor import channel
from meshfast.supervisor.children import (
    BOOT_FAILURE,
    BOOTING,
    DRAINING,
    SERVING,
    Child,
    describe_status,
    fork,
)
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.loop import Loop
from meshfast.supervisor.post import hang_up, listen_to
from meshfast.supervisor.report import fail, say, warn
from meshfast.supervisor.respawn import Respawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from meshfast.supervisor.post import Handler

__all__ = ["Fleet"]

# Loading the extension and the snapshot takes well under a second; what needs this long hangs.
BOOT_S_MAX = 30.0
BOOT_DEATHS_MAX = 3
# After the drain time a worker closes what is left by itself; then it has this long to exit.
DRAIN_SLACK_S = 1.0


class Fleet:
    """The workers by slot.

    `has_served` is set by the owner when the mesh has once been ready; from then on a failing boot
    is fatal only if no worker is left. `failure` is the reason to stop everything, empty if none.
    """

    def __init__(self, holdings: Holdings, loop: Loop) -> None:
        """Begin with empty lanes; `settle` fills them."""
        self.holdings = holdings
        self.loop = loop
        self.lanes = holdings.settings.workers
        self.workers: dict[int, Child] = {}
        self.homes = list(range(self.lanes))
        self.posts = [Respawn() for _ in range(self.lanes)]
        self.has_served = False
        self.is_replacing = False
        self.failure = ""
        self._relayed: set[int] = set()
        self._turn = 0
        self._handlers: dict[str, Handler] = {
            "ready": self._on_ready,
            "applied": self._on_applied,
            "drained": self._on_drained,
            "identity_applied": self._on_identity_applied,
            "inbound_drained": self._on_inbound_drained,
        }

    def adopt(self, workers: list[Child], homes: list[int]) -> None:
        """Take over the workers of the image before and plan to replace them."""
        self.homes = homes
        self.is_replacing = True
        for worker in workers:
            self.workers[worker.slot] = worker
            if worker.fd >= 0:
                listen_to(worker, self.loop, self._handlers)

    @property
    def is_serving(self) -> bool:
        """Tell whether every lane has a worker that is ready."""
        return all(
            any(worker.phase == SERVING for worker in self._active(lane))
            for lane in range(self.lanes)
        )

    @property
    def generation_of_all(self) -> int:
        """Return the oldest snapshot that a living worker may still serve from."""
        applied = [worker.applied for worker in self.workers.values()]
        return min(applied, default=self.holdings.generation)

    @property
    def identity_of_all(self) -> int:
        """Return the oldest identity that a living worker may still show."""
        serials = [worker.identity for worker in self.workers.values()]
        return min(serials, default=self.holdings.identity_serial)

    @property
    def is_quiet(self) -> bool:
        """Tell whether no worker has an inbound exchange, after `drain_inbound`."""
        return all(worker.quiet for worker in self.workers.values())

    def settle(self, now: float) -> None:
        """Fill empty lanes and go on with a replacement, as far as is possible now."""
        for lane in range(self.lanes):
            if not self._active(lane):
                self._spawn(lane, self.homes[lane], now)
        if self.is_replacing:
            self._replace_next(now)
        self._relay_inboxes()

    def next_deadline(self, now: float) -> float | None:
        """Return the monotonic second at which `kill_overdue` or `settle` has something to do."""
        deadlines = [worker.kill_at for worker in self.workers.values() if worker.kill_at]
        deadlines += [post.not_before for post in self.posts if post.not_before > now]
        return min(deadlines, default=None)

    def broadcast(self, message: dict[str, Any], fd: int) -> None:
        """Send a message with one descriptor to every living worker."""
        for worker in self.workers.values():
            worker.send(message, (fd,))

    def drain(self, deadline_ms: int, now: float) -> None:
        """Ask every worker to finish; from now on nobody is replaced."""
        self.is_replacing = False
        for worker in self.workers.values():
            if worker.phase != DRAINING:
                self._drain(worker, deadline_ms, now, closing=True)

    def drain_inbound(self, deadline_ms: int) -> None:
        """Ask every worker to finish what comes in; what the application sends out goes on."""
        for worker in self.workers.values():
            worker.quiet = False
            worker.send({"type": "drain_inbound", "deadline_ms": deadline_ms})

    def kill(self) -> None:
        """Kill every worker; `on_exit` follows for each. A death is expected from now on."""
        for worker in self.workers.values():
            worker.phase = DRAINING
            worker.kill()

    def kill_overdue(self, now: float) -> None:
        """Kill the workers whose time to boot or to drain is over."""
        for worker in self.workers.values():
            if worker.kill_at is not None and now >= worker.kill_at:
                doing = "drained" if worker.phase == DRAINING else "ready"
                warn(f"{worker.name} (pid {worker.pid}) is not {doing} in time and is killed")
                worker.kill_at = None
                worker.kill()

    def on_exit(self, pid: int, status: int, now: float) -> bool:
        """Account for a reaped process; False when it is no worker."""
        worker = next((one for one in self.workers.values() if one.pid == pid), None)
        if worker is None:
            return False
        # What it said last is not heard: a successor that became ready and died at once must not
        # send its predecessor away.
        hang_up(worker, self.loop)
        del self.workers[worker.slot]
        if worker.phase != DRAINING:
            self._on_death(worker, status, now)
        elif status:
            warn(f"{worker.name} (pid {pid}) ended while draining: {describe_status(status)}")
        return True

    def _on_death(self, worker: Child, status: int, now: float) -> None:
        lane = worker.slot % self.lanes
        post = self.posts[lane]
        post.on_death(now, was_ready=worker.phase == SERVING)
        fail(f"{worker.name} (pid {worker.pid}) died: {describe_status(status)}")
        is_boot_failure = os.waitstatus_to_exitcode(status) == BOOT_FAILURE
        is_hopeless = is_boot_failure or post.boot_deaths >= BOOT_DEATHS_MAX
        if not is_hopeless or worker.phase == SERVING:
            return
        if not self.has_served:
            self.failure = f"{worker.name} cannot start; what it said is above"
        elif self.is_replacing and self._active(lane):
            self.is_replacing = False
            post.on_ready()
            fail("hot restart abandoned: the new worker cannot start, the old ones go on")
        elif is_boot_failure and not any(w.phase == SERVING for w in self.workers.values()):
            self.failure = f"{worker.name} cannot start and no worker is left"
        elif is_boot_failure:
            post.hold(now)

    def _spawn(self, lane: int, slot: int, now: float) -> None:
        post = self.posts[lane]
        if now < post.not_before:
            return
        settings = self.holdings.settings
        try:
            pid, fd = fork(
                settings.worker_module,
                settings.module_path,
                lambda control_fd: self.holdings.worker_settings(slot, control_fd),
            )
        except OSError as error:
            fail(f"worker {slot} cannot be forked: {error.strerror}")
            post.on_death(now, was_ready=False)
            post.hold(now)
            if not self.has_served and post.boot_deaths >= BOOT_DEATHS_MAX:
                self.failure = f"worker {slot} cannot be forked: {error.strerror}"
            return
        worker = Child(
            slot,
            pid,
            fd,
            self.holdings.image,
            self.holdings.generation,
            now + BOOT_S_MAX,
            identity=self.holdings.identity_serial,
            quiet=not self.holdings.has_inbound,
        )
        self.workers[slot] = worker
        listen_to(worker, self.loop, self._handlers)

    def _replace_next(self, now: float) -> None:
        """Boot one successor if none is booting; end when every lane is of this image."""
        outdated = [lane for lane in range(self.lanes) if self._is_outdated(lane)]
        if not outdated:
            self.is_replacing = False
            say(f"hot restart: all workers are of image {self.holdings.image}")
            return
        if any(len(self._active(lane)) > 1 for lane in outdated):
            return
        for lane in outdated:
            slot = self._other_slot(self._active(lane)[0].slot)
            if slot not in self.workers:  # else the predecessor's predecessor is still draining
                self._spawn(lane, slot, now)
                return

    def _drain(self, worker: Child, deadline_ms: int, now: float, *, closing: bool) -> None:
        """Let a worker finish. *closing*: nobody accepts after it, so it takes all that come."""
        worker.phase = DRAINING
        worker.kill_at = now + deadline_ms / 1000 + DRAIN_SLACK_S
        worker.send({"type": "drain", "deadline_ms": deadline_ms, "closing": closing})

    def _on_ready(self, worker: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        if worker.phase != BOOTING:
            return
        worker.phase = SERVING
        worker.kill_at = None
        lane = worker.slot % self.lanes
        self.posts[lane].on_ready()
        self.homes[lane] = worker.slot
        for old in self._active(lane):
            if old is not worker:
                self._drain(old, self.holdings.settings.drain_ms, monotonic(), closing=False)

    def _on_applied(self, worker: Child, message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        generation = message.get("generation")
        if type(generation) is not int or not 0 <= generation <= self.holdings.generation:
            raise channel.ChannelError(f"applied what was never sent: {generation!r}")
        worker.applied = max(worker.applied, generation)

    def _on_identity_applied(self, worker: Child, message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        serial = message.get("serial")
        if type(serial) is not int or not 0 <= serial <= self.holdings.identity_serial:
            raise channel.ChannelError(f"identity applied that was never sent: {serial!r}")
        worker.identity = max(worker.identity, serial)

    def _on_inbound_drained(self, worker: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        worker.quiet = True

    def _on_drained(self, worker: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        if worker.phase == DRAINING:
            worker.kill_at = monotonic() + DRAIN_SLACK_S

    def _relay_inboxes(self) -> None:
        """Watch the inboxes of empty slots while somebody could take what arrives there."""
        can_relay = any(worker.phase == SERVING for worker in self.workers.values())
        empty = set(range(len(self.holdings.inboxes))) - self.workers.keys() if can_relay else set()
        for slot in self._relayed - empty:
            self.loop.forget(self.holdings.inboxes[slot][0])
        for slot in empty - self._relayed:
            self.loop.watch(self.holdings.inboxes[slot][0], partial(self._relay, slot))
        self._relayed = empty

    def _relay(self, slot: int) -> None:
        """Pass one handed-over connection on to a serving worker, each in turn."""
        serving = [worker.slot for worker in self.workers.values() if worker.phase == SERVING]
        self._turn += 1
        shift = self._turn % max(len(serving), 1)
        targets = serving[shift:] + serving[:shift]
        channel.forward(
            self.holdings.inboxes[slot][0], [self.holdings.inboxes[target][1] for target in targets]
        )

    def _active(self, lane: int) -> list[Child]:
        """Return the lane's workers that are not draining: one, or two during a replacement."""
        pair = (self.workers.get(lane), self.workers.get(lane + self.lanes))
        return [worker for worker in pair if worker is not None and worker.phase != DRAINING]

    def _is_outdated(self, lane: int) -> bool:
        return any(worker.image != self.holdings.image for worker in self._active(lane))

    def _other_slot(self, slot: int) -> int:
        return (slot + self.lanes) % (2 * self.lanes)
