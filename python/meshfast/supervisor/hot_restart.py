"""Hot restart: the supervisor re-executes itself in place, with its sockets and its children.

SIGUSR2 runs the new image's `--check` over the present state; only when that succeeds does `exec`
follow. State goes through a memfd as JSON (descriptors by number, children by pid); the pid stays,
so `waitpid` still works, as do the lock and the subreaper bit. The new image then replaces the
workers one by one (`fleet`) and the agent (`agent_post`).

What is not carried over: the records of past deaths.

Invariants
1. Until `exec` succeeds nothing has changed; every failure before leaves the old image in charge.
2. No signal is lost: they are blocked from the last look at them until the new image listens.
3. A state of another `VERSION`, shared memory or a snapshot of another layout is refused by
   `--check`, so it never reaches `exec`.

Tests: tests/supervisor/test_hot_restart.py.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from time import monotonic

from meshfast.supervisor.children import Child, describe_status
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.launch import command
from meshfast.supervisor.report import fail, warn
from meshfast.supervisor.settings import SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from meshfast.supervisor.agent_post import AgentPost
    from meshfast.supervisor.app import App
    from meshfast.supervisor.fleet import Fleet

__all__ = ["VERSION", "HotRestart", "State", "StateError", "check"]

VERSION = 1
CHECK_S_MAX = 20.0


class StateError(Exception):
    """The state is not one that this image can take over."""


class State:
    """What passes from image to image.

    `told` and `told_identity` are what the agent has heard as applied. `app` is the application's
    part, as `App.to_document` gives it.
    """

    __slots__ = ("agent", "app", "holdings", "homes", "told", "told_identity", "workers")

    def __init__(
        self,
        holdings: Holdings,
        workers: list[Child],
        homes: list[int],
        agent: Child | None,
        told: int,
        told_identity: int,
        app: dict[str, Any],
    ) -> None:
        """Keep the parts."""
        self.holdings = holdings
        self.workers = workers
        self.homes = homes
        self.agent = agent
        self.told = told
        self.told_identity = told_identity
        self.app = app

    @classmethod
    def parse(cls, text: bytes) -> State:
        """Decode a state; raise `StateError` for one that this image does not know."""
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise StateError(f"state: version {document['version']}, not {VERSION}")
            agent = document["agent"]
            return cls(
                Holdings.from_document(document["holdings"]),
                [Child(**fields) for fields in document["workers"]],
                document["homes"],
                None if agent is None else Child(**agent),
                document["told"],
                document["told_identity"],
                dict(document["app"]),
            )
        except (KeyError, SettingsError, TypeError, ValueError) as error:
            raise StateError(f"state: {type(error).__name__}: {error}") from None

    def encode(self) -> bytes:
        """Return what `parse` takes back."""
        document: dict[str, Any] = {
            "version": VERSION,
            "holdings": self.holdings.to_document(),
            "workers": [worker.to_document() for worker in self.workers],
            "homes": self.homes,
            "agent": None if self.agent is None else self.agent.to_document(),
            "told": self.told,
            "told_identity": self.told_identity,
            "app": self.app,
        }
        return json.dumps(document).encode()

    def fds(self) -> list[int]:
        """Return every descriptor that must pass through `exec`."""
        children = [*self.workers, *([] if self.agent is None else [self.agent])]
        return [*self.holdings.fds(), *(child.fd for child in children if child.fd >= 0)]


class HotRestart:
    """A restart under way: first a check, then due, then this image is no more."""

    def __init__(self, holdings: Holdings, fleet: Fleet, agent_post: AgentPost, app: App) -> None:
        """Begin with no restart under way."""
        self._holdings = holdings
        self._fleet = fleet
        self._agent_post = agent_post
        self._app = app
        self._check_pid = 0
        self.kill_at: float | None = None
        self.is_due = False

    def request(self) -> None:
        """Start the check of the image that is on disk now."""
        if self._check_pid or self.is_due:
            warn("hot restart: one is under way already")
            return
        fd = _memfd(self._state().encode())
        # What the workers of the new image would be given; onto itself, a descriptor is inherited.
        held = (self._holdings.settings.shared_memory_fd, self._holdings.snapshot_fd)
        try:
            self._check_pid = os.posix_spawn(
                sys.executable,
                command("--check", "--state-fd", str(fd)),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, one, one) for one in held],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE],
            )
            self.kill_at = monotonic() + CHECK_S_MAX
        except OSError as error:
            fail(f"hot restart abandoned: {sys.executable}: {error.strerror}")
        finally:
            os.close(fd)

    def kill_overdue(self, now: float) -> None:
        """Kill a check that takes too long; it then counts as failed."""
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            os.kill(self._check_pid, signal.SIGKILL)

    def on_exit(self, pid: int, status: int) -> bool:
        """Account for a reaped process; False when it is not the check."""
        if pid != self._check_pid:
            return False
        self._check_pid = 0
        self.kill_at = None
        self.is_due = status == 0
        if not self.is_due:
            reason = describe_status(status)
            fail(f"hot restart abandoned: the new image fails its check ({reason})")
        return True

    def execute(self) -> None:
        """Become the new image; return only if the kernel refuses, with nothing changed.

        Called with signals blocked.
        """
        self.is_due = False
        state = self._state()
        fd = _memfd(state.encode())
        fds = state.fds()
        try:
            for passed in fds:
                os.set_inheritable(passed, True)
            os.execv(sys.executable, command("--state-fd", str(fd)))
        except OSError as error:
            fail(f"hot restart abandoned: {sys.executable}: {error.strerror}")
            for passed in fds:
                os.set_inheritable(passed, False)
            os.close(fd)

    def _state(self) -> State:
        return State(
            self._holdings,
            list(self._fleet.workers.values()),
            self._fleet.homes,
            self._agent_post.agent,
            self._agent_post.told,
            self._agent_post.told_identity,
            self._app.to_document(),
        )


def check(text: bytes) -> None:
    """Raise what would keep this image from taking over.

    That is the state, a room that does not load, or shared memory or a snapshot that its processes
    cannot read. The rooms are imported here, in a process that ends right away; the supervisor
    never does.
    """
    holdings = State.parse(text).holdings
    settings = holdings.settings
    sys.path[:0] = settings.module_path
    _, agent = _loaded(settings.worker_module), _loaded(settings.agent_module)
    try:
        agent.check(settings.shared_memory_fd, holdings.snapshot_fd)
    except Exception as error:
        raise StateError(f"what runs cannot be taken over, only restarted: {error}") from error


def _loaded(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise StateError(f"{module}: {type(error).__name__}: {error}") from error


def _memfd(content: bytes) -> int:
    """Return an inheritable memfd with this content."""
    fd = os.memfd_create("meshfast-state", 0)
    os.write(fd, content)
    return fd
