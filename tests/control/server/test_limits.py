"""Bounds: slow readers, large frames, many streams, flapping workloads."""

import json
import time

from meshfast.control.push.status import SidecarStatus
from meshfast.control.push.stream import StreamLimits
from meshfast.control.push.streams import Streams
from meshfast.discovery import Code, Goodbye
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Sidecar, Wire, client_context, join

CLUSTER = "outbound|8080||payment.default"


def shown(plane: Plane) -> dict[str, SidecarStatus]:
    return {one.instance: one for one in plane.ask(plane.operations.sidecars())}


def entry(number: int) -> str:
    """A ServiceEntry of some size: its endpoints have 100 KiB."""
    endpoints = "".join(
        f"    - {{address: 10.0.{at // 250}.{at % 250}, labels: {{app: {'a' * 60}}}}}\n"
        for at in range(500)
    )
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{number}}}
spec:
  hosts: [s{number}.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
{endpoints}"""


def test_a_sidecar_that_does_not_read_is_cut_off_and_others_do_not_wait(start: Start) -> None:
    plane = start(stream_limits=StreamLimits(send_s=1.0))
    applied = plane.ask(plane.operations.apply("---".join(map(entry, range(12)))))
    deadline = time.monotonic() + 10
    while plane.operations.revision() != applied.revision:  # else its first pushes are empty
        assert time.monotonic() < deadline
        time.sleep(0.01)
    slow = Sidecar.join(plane.token("slow"), "slow")
    slow.connect(is_narrow=True)
    slow.wait_open()
    with Sidecar.join(plane.token("order"), "o1") as order:
        slow.subscribe()  # and never reads again
        order.subscribe()
        began_s = time.monotonic()
        order.wait_until(lambda: len(order.held.get("endpoint", {})) == 12)
        assert sum(map(len, order.held["endpoint"].values())) > 1 << 20
        assert time.monotonic() - began_s < 5.0
        deadline = time.monotonic() + 15
        while shown(plane)["slow"].connected:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    slow.disconnect()


def test_a_frame_beyond_the_limit_ends_the_stream(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        assert sidecar.wire is not None
        sidecar.wire.tls.sendall((17 << 20).to_bytes(4, "big"))
        assert sidecar.ended().code == Code.TOO_LARGE


def test_bytes_that_are_no_message_end_the_stream(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        assert sidecar.wire is not None
        sidecar.wire.tls.sendall(b"\0\0\0\3abc")
        assert sidecar.ended().code == Code.MALFORMED


def test_streams_beyond_the_limit_are_refused(plane: Plane) -> None:
    streams: Streams = plane.control.streams
    streams._streams_max = 2
    tokens = [plane.token("payment") for _ in range(3)]
    with Sidecar.join(tokens[0], "p1") as first, Sidecar.join(tokens[1], "p2") as second:
        first.wait_open()
        second.wait_open()
        credentials, _ = join(tokens[2], instance="p3")
        wire = Wire(tokens[2].control, client_context(tokens[2].root, credentials))
        [goodbye] = wire.all()
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code == Code.SLOW


def test_a_workload_whose_health_flaps_is_slowed_down_and_ends_where_it_is(start: Start) -> None:
    plane = start(stream_limits=StreamLimits(registrations_per_s=20.0, registrations_burst=5))
    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment"), "p1") as payment,
    ):
        order.subscribe()
        payment.wait_open()
        began_s = time.monotonic()
        for turn in range(46):
            payment.register(8080, healthy=turn % 2 == 0, labels={"turn": str(turn)})
        payment.register(8080, labels={"version": "last"})

        def revisions() -> list[str]:
            body = order.held.get("endpoint", {}).get(CLUSTER, b"[]")
            return [one["workload"]["revision"] for one in json.loads(body)]

        order.wait_until(lambda: revisions() == ["last"])
        assert time.monotonic() - began_s > 1.5  # 42 beyond the burst at 20 a second
