"""One trace through a whole mesh, in a real Zipkin server."""

from __future__ import annotations

import itertools
import re
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.mesh.chain import CHAIN, Chain
from tests.mesh.harness import wait_until
from tests.mesh.servers import Zipkin

# Who calls whom, from the root on: one span for each end of each call.
EXPECTED = [
    ("load.default", "CLIENT", "order"),
    ("order.default", "SERVER", "order"),
    ("order.default", "CLIENT", "payment-service"),
    ("payment-service.default", "SERVER", "payment-service"),
    ("payment-service.default", "CLIENT", "inventory"),
    ("inventory.default", "SERVER", "inventory"),
]

Spans = list[dict[str, Any]]


@pytest.fixture(scope="module")
def zipkin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zipkin]:
    server = Zipkin(tmp_path_factory.mktemp("zipkin"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def chain(zipkin: Zipkin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    options = ("--zipkin-address", zipkin.address, "--trace-sampling", "100")
    chain = Chain(tmp_path_factory.mktemp("chain"), *options)
    yield chain
    chain.close()


def spans_of(zipkin: Zipkin, trace_id: str, count: int = len(EXPECTED)) -> Spans:
    """The spans of a trace, from the root on, as soon as Zipkin has them all."""
    found: list[Spans] = [[]]

    def all_there() -> bool:
        found[0] = zipkin.trace(trace_id)
        return len(found[0]) >= count

    wait_until(all_there, f"{count} spans of {trace_id}")
    assert len(found[0]) == count, found[0]
    by_parent = {span.get("parentId"): span for span in found[0]}
    assert len(by_parent) == count, f"no two have one parent: {found[0]}"
    line: Spans = []
    # What joins a given context has a parent that nobody recorded.
    ids = {span["id"] for span in found[0]}
    parent = next(span.get("parentId") for span in found[0] if span.get("parentId") not in ids)
    while parent in by_parent:
        line.append(by_parent[parent])
        parent = line[-1]["id"]
    assert len(line) == count, f"one tree: {found[0]}"
    return line


def shape(line: Spans, chain: Chain) -> list[tuple[str, str, str]]:
    """Who, which side, and the service it is about, whose port the name must have."""
    seen = []
    for span in line:
        name = re.fullmatch(r"([a-z-]+)\.default:([0-9]+)/\*", span["name"])
        assert name, span
        assert int(name[2]) == chain.ports[name[1]]
        seen.append((span["localEndpoint"]["serviceName"], span["kind"], name[1]))
    return seen


def innermost(answer: dict[str, Any]) -> dict[str, str]:
    """The headers that the last service of the chain saw."""
    while answer["called"] is not None:
        answer = answer["called"]
    headers: dict[str, str] = answer["headers"]
    return headers


@pytest.mark.parametrize("copied", ["traceparent,tracestate,b3,x-b3-", "traceparent", "x-b3-"])
def test_applications_that_copy_trace_headers_join_one_trace(
    chain: Chain, zipkin: Zipkin, copied: str
) -> None:
    status, answer = chain.call("/", x_copy=copied)
    assert status == 200
    # The first service is told in both forms; what goes on is what it copies.
    trace_id = answer["headers"]["x-b3-traceid"]
    assert trace_id == answer["headers"]["traceparent"].split("-")[1]
    line = spans_of(zipkin, trace_id)
    assert shape(line, chain) == EXPECTED
    assert "parentId" not in line[0], "load began it"


@pytest.mark.parametrize("form", ["traceparent", "b3", "multi"])
def test_a_trace_that_came_goes_on_in_its_form(chain: Chain, zipkin: Zipkin, form: str) -> None:
    trace_id, caller = f"{time.time_ns():032x}", "00f067aa0ba902b7"
    headers = {
        "traceparent": {"traceparent": f"00-{trace_id}-{caller}-01"},
        "b3": {"b3": f"{trace_id}-{caller}-1"},
        "multi": {"x_b3_traceid": trace_id, "x_b3_spanid": caller, "x_b3_sampled": "1"},
    }[form]
    status, answer = chain.call("/", **headers)
    assert status == 200
    # Zipkin takes a trace identifier with a zero half for one of 64 bits.
    line = spans_of(zipkin, trace_id)
    assert shape(line, chain) == EXPECTED
    assert line[0]["parentId"] == caller
    seen = innermost(answer)
    given = {name.replace("_", "-") for name in headers}
    added = {name for name in seen if name == "b3" or name.startswith(("x-b3-", "traceparent"))}
    assert added - {"x-b3-parentspanid"} == given, "no other form is added"
    assert any(line[-1]["id"] in value for value in seen.values()), "told to the application"


def test_a_failed_call_shows_where_it_failed(chain: Chain, zipkin: Zipkin) -> None:
    trace_id = f"a{time.time_ns():031x}"
    status, _ = chain.call("/fail", traceparent=f"00-{trace_id}-00f067aa0ba902b7-01")
    assert status == 500
    line = spans_of(zipkin, trace_id)
    request_ids = set()
    for span in line:
        tags = span["tags"]
        assert tags["http.status_code"] == "500"
        assert tags["error"] == "true"
        assert tags["http.method"] == "GET"
        assert tags["http.url"].endswith("/fail")
        assert tags["component"] == "proxy"
        request_ids.add(tags["guid:x-request-id"])
    assert len(request_ids) == 1
    call, served = line[4], line[5]
    port = chain.ports["inventory"]
    assert call["tags"]["upstream_cluster"] == f"outbound|{port}||inventory.default"
    assert call["remoteEndpoint"]["serviceName"] == "inventory.default"
    principal = "spiffe://cluster.local/ns/default/sa/payment-service"
    assert served["tags"]["source_principal"] == principal
    assert served["remoteEndpoint"]["serviceName"] == "payment-service.default"


def test_zipkin_knows_the_services_and_who_calls_whom(chain: Chain, zipkin: Zipkin) -> None:
    assert chain.call("/")[0] == 200
    names = [f"{service}.default" for service in ("load", *CHAIN)]
    wait_until(lambda: set(names) <= set(zipkin.get("/api/v2/services")), "all services")
    wanted = set(itertools.pairwise(names))

    def links() -> bool:
        end_ms = str(int(time.time() * 1000) + 1000)
        found = zipkin.get("/api/v2/dependencies", endTs=end_ms, lookback="3600000")
        return {(one["parent"], one["child"]) for one in found} == wanted

    wait_until(links, f"the calls {wanted}")


def test_sidecars_count_what_they_post(chain: Chain, zipkin: Zipkin) -> None:
    def posted(address: str) -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert "meshfast_spans_dropped_total 0\n" in text
        return re.search(r"^meshfast_spans_posted_total [1-9]", text, re.MULTILINE) is not None

    assert chain.call("/")[0] == 200
    for address in chain.metrics_addresses():
        wait_until(partial(posted, address), f"{address} has posted")
