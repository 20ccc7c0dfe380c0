"""A control plane that stops, is killed, or starts again: nobody loses what they have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshfast.control.ca import AuthorityError
from meshfast.discovery import Goodbye, JoinToken
from tests.control.server.conftest import Plane, Start, free_port
from tests.control.server.sidecar import Sidecar, join

CLUSTER = "outbound|8080||payment.default"
ROOT = Path(__file__).resolve().parents[3]
KILLS = 15


def workloads(plane: Plane) -> list[str]:
    return [one.workload.instance for one in plane.ask(plane.operations.workloads())]


def wait_for_payment(sidecar: Sidecar) -> None:
    sidecar.wait_until(lambda: b"payment" in sidecar.held.get("route", {}).get("outbound", b""))


def wait_for_pushes(sidecar: Sidecar, number: int) -> None:
    sidecar.wait_until(lambda: len(sidecar.pushes) == number)


def test_a_stop_says_goodbye(start: Start) -> None:
    plane = start()
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        plane.stop()
        goodbye = sidecar.ended()
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code == "drain"


def test_sidecars_resume_with_what_they_hold_and_nothing_is_pushed_to_them(start: Start) -> None:
    port = free_port()
    plane = start(port=port)
    order = Sidecar.join(plane.token("order"), "o1")
    payment = Sidecar.join(plane.token("payment"), "p1")
    for sidecar in (order, payment):
        sidecar.connect()
        sidecar.subscribe()
    payment.wait_open()
    payment.register(8080)
    for sidecar in (order, payment):
        wait_for_payment(sidecar)
    revision, root = plane.operations.revision(), plane.token().root
    plane.stop()
    for sidecar in (order, payment):
        sidecar.disconnect()
        sidecar.pushes.clear()
    again = start(port=port)
    assert again.token().root == root
    assert again.operations.revision() >= revision
    assert workloads(again) == ["p1"]
    for sidecar in (order, payment):
        held = {type: dict(bodies) for type, bodies in sidecar.held.items()}
        sidecar.connect()
        wait_for_pushes(sidecar, 4)
        if sidecar is payment:
            payment.register(8080)
        assert [(one.resources, one.removed) for one in sidecar.pushes] == [([], [])] * 4
        assert sidecar.held == held
    with Sidecar.join(again.token("ledger"), "l1") as ledger:  # and changes come as before
        ledger.wait_open()
        ledger.register(9000, address="127.0.0.1:15009")
        order.wait_until(lambda: "outbound|9000||ledger.default" in order.held["cluster"])
    for sidecar in (order, payment):
        sidecar.disconnect()


def test_workloads_are_held_for_sidecars_that_are_still_coming_back(start: Start) -> None:
    port = free_port()
    plane = start(port=port, grace_ms=1000)
    sidecars = [Sidecar.join(plane.token("payment"), f"p{n}") for n in range(3)]
    for number, sidecar in enumerate(sidecars):
        sidecar.connect()
        sidecar.wait_open()
        sidecar.register(8080, address=f"127.0.0.1:{16000 + number}")
    deadline = time.monotonic() + 10
    while len(workloads(plane)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for sidecar in sidecars:
        sidecar.disconnect()
    plane.stop()
    again = start(port=port, grace_ms=1000)
    end = time.monotonic() + 3.0  # three times the grace, and nobody has come back
    while time.monotonic() < end:
        assert len(workloads(again)) == 3
        time.sleep(0.1)


SERVER = """
import asyncio, sys
from pathlib import Path
from meshfast.control.ca import IssuanceLimits
from meshfast.control.server import ControlPlane, Options

async def main():
    plane = ControlPlane(Options(
        state_dir=Path(sys.argv[1]), host="127.0.0.1", port=0, trust_domain="cluster.local",
        build=bytes, issuance_limits=IssuanceLimits(instance_burst=10_000, total_burst=10_000)))
    await plane.start()
    created = await plane.operations.create_token("payment", uses=1000)
    print(created.text, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Process:
    """A control plane in a process of its own that can be killed."""

    def __init__(self, state_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(state_dir)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the control plane did not start"
        self.token = JoinToken.parse(line)

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_a_control_plane_that_is_killed_in_the_middle_of_writes_starts_as_the_same(
    tmp_path: Path,
) -> None:
    roots = set()
    for number in range(KILLS):
        process = Process(tmp_path / "state")
        try:
            roots.add(process.token.root)
            sidecar = Sidecar.join(process.token, f"i{number}")
            sidecar.connect()
            sidecar.wait_open()
            for change in range(number):  # writes are under way when the kill comes
                sidecar.register(8080 + change)
        finally:
            process.kill()
        sidecar.disconnect()
        for path in (tmp_path / "state").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert len(roots) == 1


def test_two_control_planes_do_not_share_a_directory(start: Start) -> None:
    start()
    with pytest.raises(Exception, match="another control plane uses this store"):
        start()


def test_certificates_of_before_a_kill_are_good_after_it(tmp_path: Path) -> None:
    first = Process(tmp_path / "state")
    sidecar = Sidecar.join(first.token, "p1")
    first.kill()
    second = Process(tmp_path / "state")
    try:
        sidecar.address = second.token.control
        with sidecar:
            sidecar.wait_open()
        # A token of before is good as well: nothing that was acknowledged is lost.
        old = JoinToken.parse(first.token.text())
        moved = JoinToken(**{**{f: getattr(old, f) for f in old.__struct_fields__},
                             "control": second.token.control})  # fmt: skip
        assert join(moved)[0] is not None
    finally:
        second.kill()


def test_no_new_authority_is_made_beside_a_store_that_is_used(start: Start, tmp_path: Path) -> None:
    plane = start()
    plane.token()
    plane.stop()
    kept = tmp_path / "kept"
    (tmp_path / "state" / "ca").rename(kept)
    with pytest.raises(AuthorityError, match=r"root\.pem is missing, but the store"):
        start()
    assert not (tmp_path / "state" / "ca").exists()
    kept.rename(tmp_path / "state" / "ca")
    start()
