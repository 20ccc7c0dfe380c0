"""The supervisor's life: boot, serve, drain, stop; reaping and signals.

    phase     how it ends
    booting   every worker and the agent are ready → serving; a boot failure → stopping, exit 1
    serving   SIGTERM or SIGINT → withdrawing in a mesh, else draining; the application ends →
              draining; the last worker cannot start → stopping, exit 1
    withdraw. the agent has seen that nobody is sent here any more, or 2 s are over → quieting, or
              draining without an application
    quieting  no worker has an inbound exchange, or the drain time is over → leaving
    leaving   the application, told to end, is gone → draining
    draining  no worker is left → stopping; a second SIGTERM or SIGINT → everything is killed
    stopping  no child is left → the process exits

After every turn of the loop `_settle` compares what is with what should be and does the difference,
so no order of deaths, messages and signals needs a case of its own.

Tests: tests/supervisor/test_boot.py, test_drain.py, test_workers.py, test_app.py.
"""

from __future__ import annotations

import os
import signal
from time import monotonic

from meshfast.supervisor import lock, signals
from meshfast.supervisor.agent_post import STOP_S_MAX, AgentPost
from meshfast.supervisor.app import KILLED_BASE, App
from meshfast.supervisor.fleet import Fleet
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.hot_restart import HotRestart, State
from meshfast.supervisor.loop import Loop
from meshfast.supervisor.notify import notify
from meshfast.supervisor.report import fail, say, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Supervisor"]

BOOTING = "booting"
SERVING = "serving"
WITHDRAWING = "withdrawing"
QUIETING = "quieting"
LEAVING = "leaving"
DRAINING = "draining"
STOPPING = "stopping"

# Phases in which workers and agent are replaced when they die.
KEPT_UP = (BOOTING, SERVING, WITHDRAWING, QUIETING, LEAVING)

# A control plane that cannot say so in this time is not worth waiting for.
WITHDRAW_S_MAX = 2.0


class Supervisor:
    """Everything of one instance: what it holds, its workers, its agent, its application."""

    def __init__(self, holdings: Holdings) -> None:
        """Begin booting; nothing is forked before `run`."""
        self.holdings = holdings
        self.loop = Loop()
        self.fleet = Fleet(holdings, self.loop)
        self.agent_post = AgentPost(holdings, self.loop, self.fleet)
        self.app = App(holdings)
        self.hot_restart = HotRestart(holdings, self.fleet, self.agent_post, self.app)
        self.phase = BOOTING
        self._failed = False
        self._stopped_by = 0  # the first signal that asked for it
        self._step_until: float | None = None  # the end of withdrawing or quieting
        self._signal_pipe = signals.install()
        self._on_signal: dict[int, Callable[[], None]] = {
            signal.SIGCHLD: self._reap,
            signal.SIGHUP: lambda: self.agent_post.send({"type": "reload"}),
            signal.SIGINT: lambda: self._stop(signal.SIGINT),
            signal.SIGTERM: lambda: self._stop(signal.SIGTERM),
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
        supervisor.agent_post.adopt(state.agent, state.told, state.told_identity)
        supervisor.app.adopt(state.app)
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
        return self._exit_code()

    def _exit_code(self) -> int:
        """Give 1 after a failure, else the application's code; one that never ran got our signal.

        128 + n as in a shell (POSIX, XCU 2.8.2). Without an application, 0.
        """
        if self._failed:
            return 1
        if self.app.exit_code is not None:
            return self.app.exit_code
        is_left_out = self.holdings.settings.app is not None and self._stopped_by
        return KILLED_BASE + self._stopped_by if is_left_out else 0

    def _settle(self) -> bool:
        """Do what the state asks for; False when nothing is left to do."""
        now = monotonic()
        self.fleet.kill_overdue(now)
        self.agent_post.kill_overdue(now)
        self.app.kill_overdue(now)
        self.hot_restart.kill_overdue(now)
        self._fail_if_hopeless()
        if self.phase in KEPT_UP:
            self.fleet.settle(now)
            self.agent_post.settle(now)
        if self.phase == BOOTING and self.fleet.is_serving and self.agent_post.is_serving:
            self._begin_serving()
        self._settle_app(now)
        if self.phase == SERVING and self.hot_restart.is_due:
            self._re_execute()
        self.agent_post.tell_applied()
        if self.phase == DRAINING and not self.fleet.workers:
            self.phase = STOPPING
            self.agent_post.stop(now)
        is_alive = self.fleet.workers or self.agent_post.agent or self.app.is_running
        return not (self.phase == STOPPING and not is_alive)

    def _settle_app(self, now: float) -> None:
        """Start the application when all is there for it, and go on when it is quiet or gone."""
        if self.phase == SERVING:
            self.app.start_if_due()
        is_over = self._step_until is not None and now >= self._step_until
        if self.phase == WITHDRAWING and (self.agent_post.has_withdrawn or is_over):
            self._quiet(now) if self.app.is_running else self._drain(now)
        elif self.phase == QUIETING and (self.fleet.is_quiet or is_over):
            self.phase = LEAVING
            self._step_until = None
            self.app.stop(now, self.holdings.settings.drain_ms / 1000)
        if self.phase in KEPT_UP and self.app.exit_code is not None:
            self._drain(now)

    def _begin_serving(self) -> None:
        self.phase = SERVING
        self.fleet.has_served = True
        self.agent_post.send({"type": "serving"})
        notify("READY=1")
        count = self.holdings.settings.workers
        say(f"serving with {count} worker{'s' if count > 1 else ''} (pid {os.getpid()})")

    def _fail_if_hopeless(self) -> None:
        failure = self.fleet.failure or self.agent_post.failure
        if failure and self.phase in KEPT_UP:
            fail(f"stopping: {failure}")
            self._failed = True
            self.phase = STOPPING
            self.fleet.kill()
            self.agent_post.stop(monotonic())
            self.app.stop(monotonic(), STOP_S_MAX)

    def _stop(self, number: int) -> None:
        """Withdraw or drain; kill what is left when asked again."""
        self._stopped_by = self._stopped_by or number
        if self.phase in (WITHDRAWING, QUIETING, LEAVING, DRAINING, STOPPING):
            say("stopping at once")
            self.phase = STOPPING
            self.fleet.kill()
            self.agent_post.kill()
            self.app.kill()
        elif self.holdings.is_meshed:
            self._withdraw(monotonic())
        else:
            self._drain(monotonic())

    def _withdraw(self, now: float) -> None:
        """Have the agent deregister, so that nobody is sent here when the sockets close."""
        say("withdrawing from the mesh")
        self.phase = WITHDRAWING
        self._step_until = now + WITHDRAW_S_MAX
        notify("STOPPING=1")
        drain_ms = self.holdings.settings.drain_ms
        self.agent_post.send({"type": "drain", "deadline_ms": drain_ms})

    def _quiet(self, now: float) -> None:
        """Take no more calls for the application; it may still make its own."""
        drain_ms = self.holdings.settings.drain_ms
        say(f"stopping: inbound exchanges have up to {drain_ms} ms")
        self.phase = QUIETING
        self._step_until = now + drain_ms / 1000
        self.fleet.drain_inbound(drain_ms)
        self.holdings.close_inbound()

    def _drain(self, now: float) -> None:
        """Let every exchange finish and every worker end."""
        drain_ms = self.holdings.settings.drain_ms
        say(f"draining for up to {drain_ms} ms")
        if self.phase in (BOOTING, SERVING):
            notify("STOPPING=1")
            self.agent_post.send({"type": "drain", "deadline_ms": drain_ms})
        self.phase = DRAINING
        self.fleet.drain(drain_ms, now)
        # A connect that nobody will accept any more is refused, so that its client goes elsewhere.
        self.holdings.close_listeners_of("worker")

    def _request_hot_restart(self) -> None:
        if self.phase == SERVING:
            self.hot_restart.request()
        else:
            warn(f"hot restart refused while {self.phase}")

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
                or self.app.on_exit(pid, status)
                or self.hot_restart.on_exit(pid, status)
            )

    def _until_next_deadline(self) -> float | None:
        now = monotonic()
        deadlines = [
            self.fleet.next_deadline(now),
            self.agent_post.next_deadline(now),
            self.app.kill_at,
            self._step_until if self.phase in (WITHDRAWING, QUIETING) else None,
            self.hot_restart.kill_at,
            now if self.hot_restart.is_due and self.phase == SERVING else None,
        ]
        return min((at - now for at in deadlines if at is not None), default=None)
