"""Edits of heads at a whole proxy, from the file: what the origin gets and what the caller gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataplane.harness import Client, Origin, pooled

RULES = [
    "headers:",
    "  request:",
    "    set: {X-Env: '100%% prod', x-team: payments}",
    "    add: {Via: edge}",
    "    remove: [X-Debug]",
    "  response:",
    "    set: {cache-control: no-store}",
    "    remove: [server, x-version]",
]

DESTINATION = (
    "headers: {request: {set: {x-team: overruled, x-zone: here}},"
    " response: {add: {X-Version: gone, X-Served-By: pool}}}"
)

# A second destination, which nothing goes to.
NO_SHARE = ", weight: 1}, {destination: {host: pool}, weight: 0"

REQUEST = b"""\
PUT / HTTP/1.1\r
Host: a\r
x-env: staging\r
X-DEBUG: 1\r
x-debug: 2\r
via: caller\r
x-kept: 1\r
Content-Length: 2\r
\r
hi"""

ANSWER = b"""\
HTTP/1.1 200 OK\r
Server: origin\r
Cache-Control: max-age=60\r
X-Kept: 1\r
Content-Length: 2\r
\r
ok"""


@pytest.mark.parametrize(
    ("others", "team", "version"),
    [("", "x-team: overruled", "gone"), (NO_SHARE, "x-team: payments", None)],
    ids=["one_destination_edits_after_its_route", "a_route_edits_after_each_of_two_destinations"],
)
def test_edits_come_in_the_order_of_istio_and_bodies_pass(
    others: str, team: str, version: str | None, tmp_path: Path
) -> None:
    bodies = []

    def script(client: Client) -> None:
        while True:
            bodies.append(origin.request(client)[1])
            client.send(ANSWER)

    with (
        Origin(script) as origin,
        pooled([origin], tmp_path, RULES, DESTINATION + others) as (_, port),
        Client(port) as client,
    ):
        for _ in range(2):
            client.send(REQUEST)
            response = client.response()
            assert response.body == b"ok"
    assert bodies == [b"hi", b"hi"]
    for head in origin.heads:
        lines = head.decode().split("\r\n")
        names = [line.split(":")[0].lower() for line in lines]
        for expected in ("X-Env: 100% prod", team, "x-zone: here", "x-kept: 1"):
            assert expected in lines
            assert names.count(expected.split(":")[0].lower()) == 1
        assert [line for line in lines if line.lower().startswith("via")] == [
            "via: caller",
            "Via: edge",
        ]
        assert "x-debug" not in names
        assert lines[1] == "Host: a"
    assert response.header("cache-control") == "no-store"
    assert response.header("server") is None
    assert response.header("x-version") == version
    assert response.header("x-served-by") == "pool"
    assert response.header("x-kept") == "1"
    assert response.header("content-length") == "2"
