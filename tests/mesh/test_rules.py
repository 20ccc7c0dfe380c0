"""Rules of Istio's kinds between sidecars: which route a request takes, and which endpoint.

One mesh serves the module: `shop` with three instances and `order`, which calls. Every answer is
asked for over mutual TLS, and says which instance gave it.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.mesh.harness import (
    DEADLINE_S,
    Answer,
    Caller,
    Fixture,
    free_port,
    wait_until,
)

URL = "http://shop/"
INSTANCES = ("a", "b", "c")
HELD_MIN, AT_ONCE = 2, 8

# Names itself and its caller. On `c` a request for /hold says so and waits for one for /release.
SHOP = """
import http.server, json, os, sys, threading
released = [threading.Event()]
class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        if sys.argv[2] == "c" and self.path == "/hold":
            until = released[-1]
            os.write(1, b"held\\n")  # whole, whatever other threads write
            until.wait()
        if self.path == "/release":
            released.append(threading.Event())
            released[-2].set()
        caller = self.headers.get("x-forwarded-client-cert", "")
        body = json.dumps({"name": sys.argv[2], "caller": caller}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_DELETE = do_GET = do_PATCH = do_POST = do_PUT = answer
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(sys.argv[1])), Shop).serve_forever()
"""


class Shop:
    """The mesh of the module."""

    def __init__(self, mesh: Fixture) -> None:
        self.mesh = mesh
        for name in INSTANCES:
            port = free_port()
            command = [sys.executable, "-c", SHOP, str(port), name]
            options = ("--service-port", "80", "--label", f"instance={name}")
            self.busy = mesh.run("shop", *options, name=name, app_port=port, command=command)
        self.log = mesh.folder / "access.log"
        self.order = mesh.run("order", "--access-log", str(self.log))
        wait_until(self._is_served, "three instances are healthy")

    @contextmanager
    def holding(self, headers: dict[str, str]) -> Iterator[None]:
        """Let `c` have some unfinished requests, and the others none."""
        before = self._held()
        threads: list[threading.Thread] = []

        def hold() -> None:
            with self.order.caller() as caller:
                assert caller.call("http://shop/hold", "GET", headers).status == 200

        def settled() -> bool:
            return sum(one.is_alive() for one in threads) == self._held() - before

        try:
            # Many at once: one after the other, least request would give `c` a single one.
            while self._held() - before < HELD_MIN:
                more = [threading.Thread(target=hold) for _ in range(AT_ONCE)]
                threads += more
                for one in more:
                    one.start()
                wait_until(settled, "all others are answered")
            yield
        finally:
            with self.order.caller() as caller:
                assert caller.call("http://shop/release").status == 200
            for one in threads:
                one.join(DEADLINE_S)
                assert not one.is_alive()

    def records(self, request_id: str) -> list[dict[str, Any]]:
        """The access records of a request in its caller's sidecar."""
        whole = [line for line in self.log.read_text().splitlines(True) if line.endswith("\n")]
        return [one for one in map(json.loads, whole) if one.get("request_id") == request_id]

    def _held(self) -> int:
        return self.busy.text.count("held\n")

    def _is_served(self) -> bool:
        return bool(self.mesh.control.services()["shop.default"]["healthy"] == len(INSTANCES))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    mesh = Fixture(tmp_path_factory.mktemp("shop"))
    try:
        yield Shop(mesh)
    finally:
        mesh.close()


# Route by route: the conditions, then requests that take it. A request is a line of curl's words:
# method, target, headers. What no route takes stands at the end.
ROUTES = {
    "method": ("{method: {exact: DELETE}}", ["DELETE /x", "DELETE /header -H x-user:ann"]),
    "method-regex": ("{method: {regex: PUT|PATCH}}", ["PUT /", "PATCH /"]),
    "header-exact": ("{headers: {x-user: {exact: ann}}}", ["GET / -H x-user:ann"]),
    "header-prefix": ("{headers: {x-user: {prefix: an}}}", ["GET / -H X-User:andy"]),
    "header-regex": ("{headers: {x-user: {regex: 'b[ou]b'}}}", ["GET / -H x-user:bub"]),
    "header-present": ("{headers: {x-user: {}, x-two: {}}}", ["GET / -H x-user: -H x-two:2"]),
    "without": (
        "{uri: {prefix: /w}, withoutHeaders: {x-no: {}, x-tier: {exact: free}}}",
        ["GET /w", "GET /w -H x-tier:paid"],
    ),
    "query-exact": ("{queryParams: {q: {exact: '1'}}}", ["GET /?q=1", "GET /?a=b&q=1"]),
    "query-prefix": ("{queryParams: {q: {prefix: ab}}}", ["GET /?q=abc"]),
    "query-regex": ("{queryParams: {q: {regex: '[0-9]+'}}}", ["GET /?q=23"]),
    "query-present": ("{queryParams: {debug: {}}}", ["GET /?debug", "GET /?debug=1"]),
    "authority-exact": ("{authority: {exact: shop.default}}", ["GET http://shop.default/"]),
    "authority-prefix": (
        "{authority: {prefix: shop.default.svc.}}",
        ["GET http://shop.default.svc.cluster.local/"],
    ),
    "authority-regex": (
        "{authority: {regex: 'shop[.]default[.]svc(:80)?'}}",
        ["GET http://shop.default.svc/", "GET http://shop.default.svc:80/"],
    ),
    "uri-exact": ("{uri: {exact: /exact}}", ["GET /exact", "GET /exact?with=query"]),
    "uri-prefix": ("{uri: {prefix: /pre}}", ["GET /prefix/deep", "POST /pre"]),
    "uri-regex": ("{uri: {regex: '/r/[a-z]+'}}", ["GET /r/abc", "GET /r/abc?x"]),
    "any-case": ("{uri: {exact: /Case}, ignoreUriCase: true}", ["GET /case", "GET /CASE"]),
    "any-case-prefix": ("{uri: {prefix: /LOW}, ignoreUriCase: true}", ["GET /lower"]),
    "all-of": (
        "{method: {exact: POST}, uri: {prefix: /and}, headers: {x-a: {exact: '1'}}, "
        "queryParams: {b: {exact: '2'}}, scheme: {exact: http}}",
        ["POST /and?b=2 -H x-a:1"],
    ),
    "one-of": ("{uri: {exact: /or-1}}, {uri: {exact: /or-2}}", ["GET /or-1", "GET /or-2"]),
    "wide": ("{uri: {prefix: /first}}", ["GET /first", "GET /first/narrow"]),
    "narrow": ("{uri: {prefix: /first/narrow}}", []),
    "port": ("{port: 80, uri: {exact: /port}}", ["GET /port"]),
    "port-other": ("{port: 81, uri: {exact: /port-81}}", []),
}
UNMATCHED = [
    "GET /",
    "GET / -H x-user:Ann",
    "GET / -H x-user:bobby",
    "GET / -H x-user:",
    "GET / -H x-two:2",
    "GET /w -H x-no:",
    "GET /w -H x-tier:free",
    "GET /?q=12a",
    "GET /?q=",
    "GET /?Q=1",
    "GET /?debugger",
    "GET /exact/",
    "GET /Exact",
    "GET /r/ABC",
    "GET /r/abc/d",
    "GET /xr/abc",
    "GET /lo",
    "POST /and?b=2",
    "POST /and?b=2 -H x-a:2",
    "GET /and?b=2 -H x-a:1",
    "GET /port-81",
]
REQUESTS = [(line, name) for name, (_, lines) in ROUTES.items() for line in lines]
REQUESTS += [(line, "") for line in UNMATCHED]


def rules() -> str:
    """The VirtualService: each route says its name in the answer, and sends to one instance."""
    routes = "".join(
        f"    - name: {name}\n"
        f"      match: [{conditions}]\n"
        f"      headers: {{response: {{set: {{x-route: {name}}}}}}}\n"
        f"      route: [{{destination: {{host: shop, subset: {instance_of(name)}}}}}]\n"
        for name, (conditions, _) in ROUTES.items()
    )
    return RULE.format(subsets=subsets(), routes=routes)


def instance_of(route: str) -> str:
    """The instance that a route sends to: each in its turn."""
    return INSTANCES[list(ROUTES).index(route) % len(INSTANCES)]


def subsets() -> str:
    return ", ".join(f"{{name: {name}, labels: {{instance: {name}}}}}" for name in INSTANCES)


RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: shop}}
spec:
  host: shop
  subsets: [{subsets}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop]
  http:
{routes}"""


@pytest.fixture(scope="module")
def ruled(shop: Shop) -> Iterator[Caller]:
    shop.mesh.apply(rules())
    with shop.order.caller() as caller:
        yield caller
    shop.mesh.delete("VirtualService", "shop")
    shop.mesh.delete("DestinationRule", "shop")


def ask(caller: Caller, line: str) -> Answer:
    """Send what a line of `ROUTES` says."""
    request, *headers = line.split(" -H ")
    method, target = request.split(" ")
    url = target if target.startswith("http") else f"http://shop{target}"
    return caller.call(url, method, dict(one.split(":", 1) for one in headers))


@pytest.mark.parametrize(("line", "route"), REQUESTS, ids=[line for line, _ in REQUESTS])
def test_the_first_route_whose_conditions_hold_takes_a_request(
    ruled: Caller, line: str, route: str
) -> None:
    answer = ask(ruled, line)
    assert answer.headers.get("x-route", "") == route, answer
    if not route:
        assert answer.status == 404
        return
    seen = json.loads(answer.body)
    assert (answer.status, seen["name"]) == (200, instance_of(route))
    assert "URI=spiffe://cluster.local/ns/default/sa/order" in seen["caller"], "mutual TLS"


def test_what_no_route_takes_is_told_in_the_access_log(ruled: Caller, shop: Shop) -> None:
    answer = ask(ruled, "GET /nobody-takes-this")
    request_id = answer.headers["x-request-id"]
    assert re.search(rb"route_not_found .flags NR.", answer.body), answer.body
    [record] = wait_until(lambda: shop.records(request_id), "its record")
    assert (record["response_flags"], record["route_name"]) == ("NR", None)


POLICY = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: shop}}
spec:
  host: shop
  trafficPolicy: {whole}
  subsets:
    - {{name: all, labels: {{app: shop}}, trafficPolicy: {of_subset}}}
    - {{name: c, labels: {{instance: c}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop]
  http:
    - match: [{{uri: {{exact: /release}}}}]
      route: [{{destination: {{host: shop, subset: c}}}}]
    - match: [{{headers: {{x-subset: {{}}}}}}]
      route: [{{destination: {{host: shop, subset: all}}}}]
    - route: [{{destination: {{host: shop}}}}]
"""
WORKERS = 2
CONNECTIONS = 6  # shared out over the workers
CALLS = 240
TURNS = 30
DEVIATIONS = 5.5  # a share is beyond them by chance in one run of 25 millions


@pytest.mark.parametrize(
    ("whole", "of_subset", "headers", "expected"),
    [
        ("", "", {}, "LEAST_REQUEST"),
        ("LEAST_CONN", "", {}, "LEAST_REQUEST"),
        ("RANDOM", "ROUND_ROBIN", {}, "RANDOM"),
        ("RANDOM", "ROUND_ROBIN", {"x-subset": "all"}, "ROUND_ROBIN"),
        ("ROUND_ROBIN", "", {"x-subset": "all"}, "ROUND_ROBIN"),
        ("ROUND_ROBIN", "LEAST_REQUEST", {}, "ROUND_ROBIN"),
        ("ROUND_ROBIN", "LEAST_REQUEST", {"x-subset": "all"}, "LEAST_REQUEST"),
        ("LEAST_REQUEST", "RANDOM", {"x-subset": "all"}, "RANDOM"),
    ],
)
def test_a_busy_endpoint_gets_what_the_balancer_gives_it(
    shop: Shop, whole: str, of_subset: str, headers: dict[str, str], expected: str
) -> None:
    policies = [simple(whole), simple(of_subset)]
    warnings = shop.mesh.apply(POLICY.format(whole=policies[0], of_subset=policies[1]))
    assert [one.split()[0] for one in warnings] == ["LEAST_CONN"] * (whole == "LEAST_CONN")
    with shop.holding(headers), ExitStack() as stack:
        callers = [stack.enter_context(shop.order.caller()) for _ in range(CONNECTIONS)]
        names = [name_of(callers[n % CONNECTIONS].call(URL, "GET", headers)) for n in range(CALLS)]
        turns = [name_of(callers[0].call(URL, "GET", headers)) for _ in range(TURNS)]
    JUDGES[expected](Counter(names), turns)


def simple(balancer: str) -> str:
    """A trafficPolicy, or null."""
    return f"{{loadBalancer: {{simple: {balancer}}}}}" if balancer else "null"


def name_of(answer: Answer) -> str:
    assert answer.status == 200, answer
    return str(json.loads(answer.body)["name"])


def least_request(answered: Counter[str], _: list[str]) -> None:
    """The two that are idle share everything: what one worker holds, the other one sees."""
    assert answered["c"] == 0, answered
    assert_share(answered["a"], 1 / 2)


def random(answered: Counter[str], turns: list[str]) -> None:
    """Each gets a third."""
    for name in INSTANCES:
        assert_share(answered[name], 1 / 3)
    assert turns[3:] != turns[:-3]


def round_robin(answered: Counter[str], turns: list[str]) -> None:
    """Each worker asks one after the other."""
    assert turns[3:] == turns[:-3]
    for name in INSTANCES:
        assert abs(answered[name] - CALLS / len(INSTANCES)) <= WORKERS, answered


def assert_share(count: int, share: float) -> None:
    """It is a share of the calls, as far as chance allows."""
    deviation = math.sqrt(CALLS * share * (1 - share))
    assert abs(count - CALLS * share) <= DEVIATIONS * deviation, f"{count} of {CALLS}"


JUDGES: dict[str, Callable[[Counter[str], list[str]], None]] = {
    "LEAST_REQUEST": least_request,
    "RANDOM": random,
    "ROUND_ROBIN": round_robin,
}
