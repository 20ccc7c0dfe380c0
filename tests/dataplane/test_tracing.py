"""Spans of a running proxy: through reload and hot restart, and with a Zipkin that is not there."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.fakes.zipkin import FakeZipkin
from tests.dataplane.harness import (
    Client,
    Origin,
    Proxy,
    Response,
    echo_origin,
    free_port,
    pool,
    wait_for,
)
from tests.dataplane.test_lifecycle import restart


class Traced:
    """A proxy on a file of resources that posts every span to an address."""

    def __init__(self, folder: Path, origin: Origin, zipkin: str) -> None:
        self.port = free_port()
        endpoint = f"{{address: 127.0.0.1, ports: {{http: {origin.port}}}}}"
        self.file = folder / "mesh.yaml"
        self.file.write_text(pool(self.port, endpoint))
        arguments = ["-c", str(self.file), "--zipkin-address", zipkin, "--trace-sampling", "100"]
        self.proxy = Proxy(arguments, folder, workers=2)

    def call(self, path: str, *headers: str) -> Response:
        """Make one request on a connection of its own."""
        lines = "".join(f"{line}\r\n" for line in headers)
        with Client(self.port) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n".encode())
            return client.response()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with echo_origin() as origin:
        yield origin


@pytest.fixture
def traced(tmp_path: Path, origin: Origin, zipkin: FakeZipkin) -> Iterator[Traced]:
    traced = Traced(tmp_path, origin, zipkin.address)
    with traced.proxy:
        yield traced


def span_of(zipkin: FakeZipkin, path: str) -> dict[str, Any]:
    """The only span of a request, as soon as it was posted."""

    def found() -> list[dict[str, Any]]:
        return [one for one in zipkin.spans if one["tags"]["http.url"].endswith(path)]

    (span,) = wait_for(f"the span of {path}", found)
    return span


def test_a_gateways_span_says_what_it_did(traced: Traced, zipkin: FakeZipkin) -> None:
    response = traced.call("/one", "User-Agent: test/1")
    span = span_of(zipkin, "/one")
    assert (span["kind"], span["name"]) == ("CLIENT", "pool.default:80/*")
    assert span["localEndpoint"]["serviceName"] == "edge.default"
    assert span["tags"]["http.url"] == "http://shop/one"
    assert span["tags"]["http.status_code"] == "200"
    assert span["tags"]["upstream_cluster"] == "outbound|80||pool.default"
    assert span["tags"]["peer.address"] == "127.0.0.1"
    assert span["tags"]["user_agent"] == "test/1"
    told = f"traceparent: 00-{span['traceId']}-{span['id']}-01\r\n"
    assert told.encode() in response.body
    (record,) = traced.proxy.records(1)
    assert record["trace_id"] == span["traceId"]
    assert record["request_id"] == span["tags"]["guid:x-request-id"]


def test_a_request_without_a_route_has_a_span_named_after_its_host(
    tmp_path: Path, origin: Origin, zipkin: FakeZipkin
) -> None:
    traced = Traced(tmp_path, origin, zipkin.address)
    text = traced.file.read_text()
    with traced.proxy:
        traced.file.write_text(text.replace('hosts: ["*"]\n  gateways', "hosts: [a]\n  gateways"))
        traced.proxy.process.send_signal(signal.SIGHUP)
        wait_for("a 404", lambda: traced.call("/none").status == 404)
        span = wait_for("its span", lambda: [one for one in zipkin.spans if one["name"] == "shop"])[
            0
        ]
    assert span["tags"]["response_flags"] == "NR"
    assert "upstream_cluster" not in span["tags"]
    assert "error" not in span["tags"]


def test_reload_and_hot_restart_go_on_tracing(traced: Traced, zipkin: FakeZipkin) -> None:
    traced.file.write_text(traced.file.read_text().replace("name: pool}", "name: other}"))
    traced.proxy.process.send_signal(signal.SIGHUP)
    applied = ({"result": "success"}, 1.0)
    wait_for(
        "the reload",
        lambda: applied in traced.proxy.metrics()["meshfast_config_reloads_total"],
    )
    traced.call("/reloaded")
    span_of(zipkin, "/reloaded")
    restart(traced.proxy)
    traced.call("/restarted")
    span_of(zipkin, "/restarted")


def test_the_last_spans_of_a_proxy_that_stops_are_posted(
    traced: Traced, zipkin: FakeZipkin
) -> None:
    for number in range(30):
        traced.call(f"/last/{number}")
    assert traced.proxy.stop() == 0
    assert len(zipkin.spans) == 30


def test_a_zipkin_that_hangs_costs_traffic_and_health_nothing(
    tmp_path: Path, origin: Origin
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        traced = Traced(tmp_path, origin, address)
        with traced.proxy as proxy:
            for number in range(1_500):
                assert traced.call(f"/{number}").status == 200
            assert proxy.get("/healthz/ready")[0] == 200
            metrics = proxy.metrics()
            assert metrics["meshfast_spans_posted_total"] == [({}, 0.0)]
            assert len(proxy.records(1_500)) == 1_500
            assert proxy.stop() == 0


def test_without_a_zipkin_no_span_is_made_and_contexts_pass(origin: Origin, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{origin.port}"]
    given = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    with Proxy(arguments, tmp_path) as proxy, Client(port) as client:
        client.send(f"GET / HTTP/1.1\r\nHost: a\r\n{given}\r\n".encode())
        assert given.encode() in client.response().body
        metrics = proxy.metrics()
        assert metrics["meshfast_spans_posted_total"] == [({}, 0.0)]
        assert metrics["meshfast_spans_dropped_total"] == [({}, 0.0)]
