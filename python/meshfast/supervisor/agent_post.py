"""The agent's post: one agent at a time, replaced when it dies, and what it may ask for.

The agent publishes snapshots, hands identities over and asks for listeners; all of that outlives
it, because the supervisor keeps it. Its death never touches traffic. A replaced agent is stopped
before the next one starts: two would read the same access-log rings. Its sockets stay open here, so
nobody is refused meanwhile.

Invariants
1. Generations and the serials of identities only grow; what is not newer is dropped.
2. `applied` and `identity_applied` are sent once all living workers have it, and their numbers only
   grow. An agent that takes over hears the numbers in force when it has become ready.

Tests: tests/supervisor/test_agent.py.
"""

from __future__ import annotations

import os

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
from meshfast.supervisor.fleet import BOOT_DEATHS_MAX, BOOT_S_MAX, Fleet
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.loop import Loop
from meshfast.supervisor.post import hang_up, listen_to
from meshfast.supervisor.report import fail, say, warn
from meshfast.supervisor.respawn import Respawn
from meshfast.supervisor.settings import SocketSettings
from meshfast.supervisor.sockets import BindError, bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from meshfast.supervisor.post import Handler

__all__ = ["AgentPost"]

STOP_S_MAX = 5.0
AGENT = -1


class AgentPost:
    """The agent and its post. `failure` is the reason to stop everything, empty if none.

    `has_withdrawn`: nobody is sent to this sidecar any more, as far as the agent can see.
    """

    def __init__(self, holdings: Holdings, loop: Loop, fleet: Fleet) -> None:
        """Begin without an agent; `settle` starts one."""
        self.holdings = holdings
        self.loop = loop
        self.fleet = fleet
        self.agent: Child | None = None
        self.post = Respawn()
        self.failure = ""
        self.has_withdrawn = False
        self.told = holdings.generation
        self.told_identity = 0
        self._handlers: dict[str, Handler] = {
            "ready": self._on_ready,
            "bind": self._on_bind,
            "hopeless": self._on_hopeless,
            "identity": self._on_identity,
            "meshed": self._on_meshed,
            "snapshot": self._on_snapshot,
            "unbind": self._on_unbind,
            "withdrawn": self._on_withdrawn,
        }

    def adopt(self, agent: Child | None, told: int, told_identity: int) -> None:
        """Take over the agent of the image before and what it has heard as applied."""
        self.agent = agent
        self.told = told
        self.told_identity = told_identity
        if agent is not None and agent.fd >= 0:
            listen_to(agent, self.loop, self._handlers)

    @property
    def is_serving(self) -> bool:
        """Tell whether there is an agent that is ready."""
        return self.agent is not None and self.agent.phase == SERVING

    def settle(self, now: float) -> None:
        """Fill the post, or empty it for an agent of this image once the workers are."""
        if self.agent is None:
            self._spawn(now)
        elif self.agent.image != self.holdings.image and not self.fleet.is_replacing:
            self.stop(now)

    def tell_applied(self) -> None:
        """Tell the agent when all living workers have something newer than it knows."""
        generation = self.fleet.generation_of_all
        if self.agent is not None and self.is_serving and generation > self.told:
            self.told = generation
            self.agent.send({"type": "applied", "generation": generation})
        serial = self.fleet.identity_of_all
        if self.agent is not None and self.is_serving and serial > self.told_identity:
            self.told_identity = serial
            self.agent.send({"type": "identity_applied", "serial": serial})

    def send(self, message: dict[str, Any]) -> None:
        """Send a message if there is an agent."""
        if self.agent is not None:
            self.agent.send(message)

    def stop(self, now: float) -> None:
        """Ask the agent to exit; it is killed when it takes longer than `STOP_S_MAX`."""
        if self.agent is not None and self.agent.phase != DRAINING:
            self.agent.phase = DRAINING
            self.agent.kill_at = now + STOP_S_MAX
            self.agent.send({"type": "stop"})

    def kill(self) -> None:
        """Kill the agent; `on_exit` follows."""
        if self.agent is not None:
            self.agent.phase = DRAINING
            self.agent.kill()

    def kill_overdue(self, now: float) -> None:
        """Kill the agent if its time to boot or to stop is over."""
        agent = self.agent
        if agent is not None and agent.kill_at is not None and now >= agent.kill_at:
            doing = "gone" if agent.phase == DRAINING else "ready"
            warn(f"agent (pid {agent.pid}) is not {doing} in time and is killed")
            agent.kill_at = None
            agent.kill()

    def next_deadline(self, now: float) -> float | None:
        """Return the monotonic second at which `kill_overdue` or `settle` has something to do."""
        if self.agent is not None:
            return self.agent.kill_at
        return self.post.not_before if self.post.not_before > now else None

    def on_exit(self, pid: int, status: int, now: float) -> bool:
        """Account for a reaped process; False when it is not the agent."""
        agent = self.agent
        if agent is None or agent.pid != pid:
            return False
        hang_up(agent, self.loop)
        self.agent = None
        if agent.phase == DRAINING:
            return True
        fail(f"agent (pid {pid}) died: {describe_status(status)}")
        self.post.on_death(now, was_ready=agent.phase == SERVING)
        is_boot_failure = os.waitstatus_to_exitcode(status) == BOOT_FAILURE
        if agent.phase == BOOTING and (is_boot_failure or self.post.boot_deaths >= BOOT_DEATHS_MAX):
            if self.fleet.has_served:
                self.post.hold(now)
            else:
                self.failure = "the agent cannot start; what it said is above"
        return True

    def _spawn(self, now: float) -> None:
        if now < self.post.not_before:
            return
        settings = self.holdings.settings
        try:
            pid, fd = fork(
                settings.agent_module, settings.module_path, self.holdings.agent_settings
            )
        except OSError as error:
            fail(f"agent cannot be forked: {error.strerror}")
            self.post.hold(now)
            return
        self.agent = Child(
            AGENT, pid, fd, self.holdings.image, self.holdings.generation, now + BOOT_S_MAX
        )
        listen_to(self.agent, self.loop, self._handlers)

    def _on_ready(self, agent: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        if agent.phase != BOOTING:
            return
        agent.phase = SERVING
        agent.kill_at = None
        self.post.on_ready()
        if self.fleet.has_served:
            self.told = -1
            self.told_identity = 0
            agent.send({"type": "serving"})

    def _on_snapshot(self, _agent: Child, message: dict[str, Any], fds: list[int]) -> None:
        generation = _newer("a snapshot", "generation", message, fds, self.holdings.generation)
        if generation is not None:
            self.holdings.replace_snapshot(generation, fds[0])
            self.fleet.broadcast({"type": "snapshot", "generation": generation}, fds[0])

    def _on_identity(self, _agent: Child, message: dict[str, Any], fds: list[int]) -> None:
        serial = _newer("an identity", "serial", message, fds, self.holdings.identity_serial)
        if serial is not None:
            self.holdings.replace_identity(serial, fds[0])
            self.fleet.broadcast({"type": "identity", "serial": serial}, fds[0])

    def _on_hopeless(self, _agent: Child, message: dict[str, Any], fds: list[int]) -> None:
        """Give a start up that cannot succeed; what was in the mesh before goes on."""
        channel.close_all(fds)
        if not self.holdings.is_meshed:
            self.failure = str(message.get("reason"))

    def _on_meshed(self, _agent: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        self.holdings.is_meshed = True

    def _on_withdrawn(self, _agent: Child, _message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        self.has_withdrawn = True

    def _on_bind(self, agent: Child, message: dict[str, Any], fds: list[int]) -> None:
        channel.close_all(fds)
        name, address = message.get("name"), message.get("address")
        if type(name) is not str or type(address) is not str:
            raise channel.ChannelError("bind needs a name and an address")
        agent.send({"type": "bound", "name": name, "error": self._bind(name, address)})

    def _on_unbind(self, _agent: Child, message: dict[str, Any], fds: list[int]) -> None:
        """Close a listener of the workers that no configuration names any more.

        The workers have closed theirs with the snapshot, after taking what waited there; from now
        on a connect is refused.
        """
        channel.close_all(fds)
        name = message.get("name")
        for listener in self.holdings.listeners_of("worker"):
            if listener.name == name:
                self.holdings.listeners.remove(listener)
                listener.close()
                say(f"no longer listening on {listener.address} ({name})")

    def _bind(self, name: str, address: str) -> str | None:
        """Bind for the workers and tell them; return what went wrong. Binding again is no error."""
        held = next((one for one in self.holdings.listeners if one.name == name), None)
        if held is not None:
            is_same = held.owner == "worker" and held.address == address
            return None if is_same else f"EEXIST: {name} listens on {held.address}"
        try:
            listener = bind(SocketSettings(name, address, "worker", fallback=False))
        except BindError as error:
            return str(error)
        self.holdings.listeners.append(listener)
        say(f"listening on {listener.address} ({name})")
        self.fleet.broadcast({"type": "listener", "name": name}, listener.fd)
        return None


def _newer(
    what: str, number_name: str, message: dict[str, Any], fds: list[int], held: int
) -> int | None:
    """Return the number of what came with one descriptor; None, all closed, when it is not newer.

    Raises ChannelError, all closed, for anything else.
    """
    number = message.get(number_name)
    if len(fds) != 1 or type(number) is not int:
        channel.close_all(fds)
        raise channel.ChannelError(f"{what} is a {number_name} and one descriptor")
    if number <= held:
        channel.close_all(fds)
        warn(f"{what.partition(' ')[2]} {number} is not newer than {held}: dropped")
        return None
    return number
