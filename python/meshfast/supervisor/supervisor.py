"""The supervisor's life: boot, serve, drain, stop; reaping and signals.

    phase     how it ends
    booting   every worker and the agent are ready → serving; a boot failure → stopping, exit 1
    serving   SIGTERM or SIGINT → draining; the last worker cannot start → stopping, exit 1
    draining  no worker is left → stopping; a second SIGTERM or SIGINT → everything is killed
    stopping  no child is left → the process exits

After every turn of the loop `_settle` compares what is with what should be and does the difference,
so no order of deaths, messages and signals needs a case of its own.

Tests: tests/supervisor/test_boot.py, test_drain.py, test_workers.py.
"""

from __future__ import annotations

import os
import signal
from time import monotonic

from meshfast.supervisor import lock, signals
from meshfast.supervisor.agent_post import AgentPost
from meshfast.supervisor.fleet import Fleet
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.hot_restart import HotRestart, State
from meshfast.supervisor.loop import Loop
from meshfast.supervisor.notify import notify
from meshfast.supervisor.report import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Supervisor"]

BOOTING = "booting"
SERVING = "serving"
DRAINING = "draining"
STOPPING = "stopping"


class Supervisor:
    """Everything of one instance: what it holds, its workers, its agent."""

    def __init__(self, holdings: Holdings) -> None:
        """Begin booting; nothing is forked before `run`."""
        self.holdings = holdings
        self.loop = Loop()
        self.fleet = Fleet(holdings, self.loop)
        self.agent_post = AgentPost(holdings, self.loop, self.fleet)
        self.hot_restart = HotRestart(holdings, self.fleet, self.agent_post)
        self.phase = BOOTING
        self.exit_code = 0
        self._signal_pipe = signals.install()
        self._on_signal: dict[int, Callable[[], None]] = {
            signal.SIGCHLD: self._reap,
            signal.SIGHUP: lambda: self.agent_post.send({"type": "reload"}),
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGUSR1: lambda: self.agent_post.send({"type": "reopen"}),
            signal.SIGUSR2: self._request_hot_restart,
        }
        self.loop.watch(self._signal_pipe, self._take_signals)

    @classmethod
    def resume(cls, state: State) -> Supervisor:
        """Take over from the image before; its children run on and are replaced one by one."""
        supervisor = cls(state.holdings)
        supervisor.phase = SERVING
        supervisor.fleet.has_served = True
        supervisor.fleet.adopt(state.workers, state.homes)
        supervisor.agent_post.adopt(state.agent, state.told)
        say(f"hot restart: image {state.holdings.image} has taken over (pid {os.getpid()})")
        return supervisor

    def run(self) -> int:
        """Live until every child is gone; return the exit code."""
        signals.unblock()
        self._reap()
        while self._settle():
            self.loop.turn(self._until_next_deadline())
        self.holdings.close_listeners_of("worker")
        self.holdings.close_listeners_of("agent")
        lock.release(self.holdings.lock_fd)
        return self.exit_code

    def _settle(self) -> bool:
        """Do what the state asks for; False when nothing is left to do."""
        now = monotonic()
        self.fleet.kill_overdue(now)
        self.agent_post.kill_overdue(now)
        self.hot_restart.kill_overdue(now)
        self._fail_if_hopeless()
        if self.phase in (BOOTING, SERVING):
            self.fleet.settle(now)
            self.agent_post.settle(now)
        if self.phase == BOOTING and self.fleet.is_serving and self.agent_post.is_serving:
            self._begin_serving()
        if self.phase == SERVING and self.hot_restart.is_due:
            self._re_execute()
        self.agent_post.tell_applied()
        if self.phase == DRAINING and not self.fleet.workers:
            self.phase = STOPPING
            self.agent_post.stop(now)
        is_over = not self.fleet.workers and self.agent_post.agent is None
        return not (self.phase == STOPPING and is_over)

    def _begin_serving(self) -> None:
        self.phase = SERVING
        self.fleet.has_served = True
        self.agent_post.send({"type": "serving"})
        notify("READY=1")
        count = self.holdings.settings.workers
        say(f"serving with {count} worker{'s' if count > 1 else ''} (pid {os.getpid()})")

    def _fail_if_hopeless(self) -> None:
        failure = self.fleet.failure or self.agent_post.failure
        if failure and self.phase in (BOOTING, SERVING):
            say(f"stopping: {failure}")
            self.exit_code = 1
            self.phase = STOPPING
            self.fleet.kill()
            self.agent_post.stop(monotonic())

    def _stop(self) -> None:
        """Drain; kill what is left when asked again."""
        if self.phase in (DRAINING, STOPPING):
            say("stopping at once")
            self.phase = STOPPING
            self.fleet.kill()
            self.agent_post.kill()
            return
        drain_ms = self.holdings.settings.drain_ms
        say(f"draining for up to {drain_ms} ms")
        self.phase = DRAINING
        notify("STOPPING=1")
        self.agent_post.send({"type": "drain", "deadline_ms": drain_ms})
        self.fleet.drain(drain_ms, monotonic())
        # A connect that nobody will accept any more is refused, so that its client goes elsewhere.
        self.holdings.close_listeners_of("worker")

    def _request_hot_restart(self) -> None:
        if self.phase == SERVING:
            self.hot_restart.request()
        else:
            say(f"hot restart refused while {self.phase}")

    def _re_execute(self) -> None:
        """Become the next image, unless signals arrived meanwhile: those come first."""
        signals.block()
        late = signals.take(self._signal_pipe)
        if not late:
            self.hot_restart.execute()
        signals.unblock()
        for number in late:
            self._on_signal[number]()

    def _take_signals(self) -> None:
        for number in signals.take(self._signal_pipe):
            self._on_signal[number]()

    def _reap(self) -> None:
        """Collect every process that ended: children, and orphans of theirs that fell to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            now = monotonic()
            _ = (
                self.fleet.on_exit(pid, status, now)
                or self.agent_post.on_exit(pid, status, now)
                or self.hot_restart.on_exit(pid, status)
            )

    def _until_next_deadline(self) -> float | None:
        now = monotonic()
        deadlines = [
            self.fleet.next_deadline(now),
            self.agent_post.next_deadline(now),
            self.hot_restart.kill_at,
            now if self.hot_restart.is_due and self.phase == SERVING else None,
        ]
        return min((at - now for at in deadlines if at is not None), default=None)
