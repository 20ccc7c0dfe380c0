"""Bad HTTP/1 input at a whole proxy: the right answer, a close, a counter, nothing forwarded.

The rows are A1 to B20 of the threat list; the codec's own tests (rust/wire/tests) have them too.
Here every input, of a caller or of an origin, is sent whole and cut at every place (cuts.py): the
answer must be the same, the origin must see nothing of a refused request, and a good request on
another connection must be served.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Sized
from functools import partial
from pathlib import Path

import pytest

from tests.dataplane.cuts import AT_ONCE, every_way
from tests.dataplane.harness import Client, Origin, Proxy, echo_origin, forwarding, wait_for

HOST = b"Host: a\r\n"


def get(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines)
    return head + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"

# Row, input, status. Every one is closed after the answer.
REFUSED = [
    ("A1", post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    ("A1", post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    ("A2", post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"), 400),
    ("A3", post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    ("A3", post(b"Content-Length: 5, 5", body=b"hello"), 400),
    *[
        ("A4", post(b"Content-Length: " + value, body=b"hello"), 400)
        for value in (b"+5", b"-0", b"0x5", b"5_0", b"1 2", b"5,6")
    ],
    ("A5", post(b"Content-Length:", body=b"hello"), 400),
    ("A5", post(b"Content-Length:", b"Content-Length: 5", body=b"hello"), 400),
    ("A6", post(b"Content-Length: 0005", body=b"hello"), 400),
    ("A6", post(b"Content-Length: 00"), 400),
    ("A7", post(b"Content-Length: 99999999999999999999"), 400),
    *[
        ("A8", post(b"Transfer-Encoding: " + value), 501)
        for value in (b"gzip", b"xchunked", b"identity")
    ],
    ("A9", post(b"Transfer-Encoding: chunked, gzip"), 400),
    ("A9", post(b"Transfer-Encoding: chunked, chunked"), 400),
    ("A10", post(b"Transfer-Encoding: gzip, chunked"), 501),
    ("A11", post(CHUNKED, CHUNKED), 400),
    *[
        ("A12", post(b"Transfer-Encoding: " + value), 400)
        for value in (b",chunked", b"chunked,", b'"chunked"')
    ],
    *[
        ("A13", post(line), 400)
        for line in (
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding:\tchunked",
            b"Transfer-Encoding: \x0bchunked",
            b"Transfer-Encoding: chunked\xa0",
            b"Transfer-Encoding: \x85chunked",
            b"Transfer-Encoding: \xffchunked",
        )
    ],
    ("A14", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("B1", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("B1", get(b"Host: b"), 400),
    ("B1", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    *[
        ("B2", b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n", 400)
        for value in (b"user@h", b"h/path", b"h, h2", b"h h", b"h\x00")
    ],
    *[("B4", get(line), 400) for line in (b"X : 1", b"no colon", b": 1", b"X\x80: 1")],
    *[("B5", get(line), 400) for line in (b"X: a\x00b", b"X: a\rb", b"X: a\nb")],
    ("B6", get(b"X: a", b" folded"), 400),
    ("B7", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("B8", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ("B8", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
    *[
        ("B9", b"GET / " + version + b"\r\n" + HOST + b"\r\n", status)
        for version, status in (
            (b"HTTP/1.32", 400),
            (b"HTTP/01.1", 400),
            (b"HTTP/2.0", 505),
        )
    ],
    ("B9", b"GET /\r\n" + HOST + b"\r\n", 400),
    ("B10", b"GET? / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("B10", b"junk / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    *[
        ("B11", line + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400)
        for line in (b"GET *", b"GET */x", b"GET admin", b"GET a:80", b"CONNECT a")
    ],
    ("B13", b"GET /#f HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("B14", b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("B14", b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("B17", get(b"content_length: 1"), 400),
    ("B17", get(b"x_forwarded_client_cert: me"), 400),
    ("B18", post(b"Expect: x", b"Content-Length: 0"), 417),
]

# Row, body in chunked coding that is broken somewhere. The head is good and may be forwarded; the
# request must never be complete at the origin.
BROKEN_BODIES = [
    *[
        ("A15", size + b"\r\nhello\r\n0\r\n\r\n")
        for size in (b"0x5", b"+5", b"-5", b"5_0", b" 5", b"")
    ],
    ("A16", b"00000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("A17", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("A17", b"5\r\nhello0\r\n\r\n"),
    ("A18", b"5\nhello\r\n0\r\n\r\n"),
    ("A18", b"5\r\nhello\n0\r\n\r\n"),
    ("A19", b"5;a=\x00\r\nhello\r\n0\r\n\r\n"),
    ("A19", b"5;\r\nhello\r\n0\r\n\r\n"),
    ("A20", b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n"),
]


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Proxy, int, Origin]]:
    with echo_origin() as origin:
        with forwarding(origin, tmp_path_factory.mktemp("rows")) as (proxy, port):
            yield proxy, port, origin


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A port before an origin of its own, which may see heads of requests that are refused."""
    with echo_origin() as origin:
        with forwarding(origin, tmp_path_factory.mktemp("broken")) as (_, port):
            yield port


def good_request(port: int) -> None:
    with Client(port) as client:
        client.send(b"GET /good HTTP/1.1\r\n" + HOST + b"\r\n")
        assert client.response().status == 200


def answers_and_closes(client: Client, status: int, what: str) -> None:
    response = client.response()
    assert response.status == status, what
    assert response.header("connection") == "close", what
    client.socket.settimeout(5)
    assert client.is_closed()


@pytest.mark.parametrize(
    ("row", "data", "status"), REFUSED, ids=[f"{n}-{row[0]}" for n, row in enumerate(REFUSED)]
)
def test_refused(guarded: tuple[Proxy, int, Origin], row: str, data: bytes, status: int) -> None:
    _, port, origin = guarded
    seen = len(origin.heads)
    for how, client in every_way(port, data):
        answers_and_closes(client, status, f"{row} {how}")
    assert len(origin.heads) == seen, "nothing of it is forwarded"
    good_request(port)


@pytest.mark.parametrize(
    ("row", "body"), BROKEN_BODIES, ids=[f"{n}-{row[0]}" for n, row in enumerate(BROKEN_BODIES)]
)
def test_broken_body(broken_off: int, row: str, body: bytes) -> None:
    for how, client in every_way(broken_off, post(CHUNKED, body=body)):
        assert client.response().status == 400, f"{row} {how}"
        client.socket.settimeout(5)
        assert client.is_closed()
    good_request(broken_off)


@pytest.mark.parametrize(
    ("row", "data", "status"),
    [
        ("B10", b"M" * 1_000_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        ("B15", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        ("B16", get(*[b"X-%d: 1" % number for number in range(101)]), 431),
        ("B16", get(b"X: " + b"a" * 33_000), 431),
        ("B16", get(*[b"X-%d: " % number + b"a" * 20_000 for number in range(4)]), 431),
    ],
    ids=["long-method", "long-target", "many-fields", "long-field", "long-head"],
)
def test_too_large(guarded: tuple[Proxy, int, Origin], row: str, data: bytes, status: int) -> None:
    _, port, origin = guarded
    seen = len(origin.heads)
    for how, client in every_way(port, data):
        assert client.response().status == status, f"{row} {how}"
    assert len(origin.heads) == seen
    good_request(port)


@pytest.mark.parametrize(
    ("row", "data", "status"),
    [
        ("B20", b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        ("B20", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"Max-Forwards: 0\r\n\r\n", 200),
        ("B12", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
    ],
    ids=["trace", "options", "connect"],
)
def test_answered_here(
    guarded: tuple[Proxy, int, Origin], row: str, data: bytes, status: int
) -> None:
    _, port, origin = guarded
    seen = len(origin.heads)
    for how, client in every_way(port, data):
        assert client.response().status == status, f"{row} {how}"
    assert len(origin.heads) == seen


def test_every_refusal_has_a_record_and_a_counter(guarded: tuple[Proxy, int, Origin]) -> None:
    proxy, port, _ = guarded
    before = proxy.rejected("http1.content_length_duplicate")
    records = len(proxy.records(1))
    with Client(port) as client:
        client.send(post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"))
        answers_and_closes(client, 400, "A2")
    assert proxy.rejected("http1.content_length_duplicate") == before + 1
    record = proxy.records(records + 1)[-1]
    assert record["response_flags"] == "DPE"
    assert record["response_code_details"] == "http1.content_length_duplicate"


def test_b3_an_absolute_target_wins_over_host(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, _ = guarded
    for how, client in every_way(port, b"GET http://target/x HTTP/1.1\r\nHost: other\r\n\r\n"):
        body = client.response().body
        assert b"GET /x HTTP/1.1\r\n" in body, how
        assert b"Host: target\r\n" in body, how
        assert b"other" not in body, how


def test_a21_forbidden_trailers_are_dropped(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, origin = guarded
    seen = len(origin.trailers)
    trailers = b"0\r\nContent-Length: 9\r\nHost: evil\r\nAuthorization: evil\r\nX-Sum: 1\r\n\r\n"
    for how, client in every_way(port, post(CHUNKED, body=trailers)):
        assert client.response().status == 200, how
    assert {tuple(lines) for lines in origin.trailers[seen:]} == {(b"X-Sum: 1",)}


def test_a21_trailers_beyond_the_limits_of_a_head_are_refused(broken_off: int) -> None:
    trailers = b"".join(b"X-%d: 1\r\n" % number for number in range(101))
    for how, client in every_way(broken_off, post(CHUNKED, body=b"0\r\n" + trailers + b"\r\n")):
        answers_and_closes(client, 431, how)


def test_a23_a_get_with_a_body_does_not_hide_a_request(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, origin = guarded
    seen = len(origin.heads)
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    both = get(b"Content-Length: %d" % len(hidden)) + hidden + get()
    for how, client in every_way(port, both):
        assert b"GET / HTTP" in client.response().body, how
        assert b"GET / HTTP" in client.response().body, how
    heads = origin.heads[seen:]
    assert len(heads) == 2 * (len(both) + 1), "two of each way"
    assert not [head for head in heads if head.startswith(b"GET /hidden")]


def test_a24_nothing_behind_a_close_is_read(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, origin = guarded
    seen = len(origin.heads)
    data = get(b"Connection: close") + b"garbage GET /x HTTP/1.1\r\n\r\n"
    for how, client in every_way(port, data):
        response = client.response()
        assert response.status == 200, how
        assert response.header("connection") == "close", how
        assert client.is_closed(), how
    assert len(origin.heads) == seen + len(data) + 1, "one of each way"


def test_b14_an_overlong_form_is_passed_on_unchanged(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, _ = guarded
    for how, client in every_way(port, b"GET /%c0%ae HTTP/1.1\r\n" + HOST + b"\r\n"):
        assert b"GET /%c0%ae HTTP/1.1\r\n" in client.response().body, how


def test_b18_what_is_expected_leaves_the_framing_alone(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, _ = guarded
    data = post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello") + get()
    for how, client in every_way(port, data):
        while (first := client.response()).status == 100:
            pass
        assert first.body.endswith(b"hello"), how
        assert b"GET / HTTP" in client.response().body, how


def test_b19_connection_cannot_name_a_protected_header(
    guarded: tuple[Proxy, int, Origin],
) -> None:
    _, port, _ = guarded
    named = get(b"Connection: authorization, x-gone", b"Authorization: Basic x", b"X-Gone: 1")
    for how, client in every_way(port, named):
        body = client.response().body
        assert b"Authorization: Basic x" in body, how
        assert b"X-Gone" not in body, how


def test_c9_identity_headers_of_callers_are_stripped(guarded: tuple[Proxy, int, Origin]) -> None:
    _, port, _ = guarded
    claims = get(b"X-Forwarded-Client-Cert: URI=me", b"x-meshfast-port: 1", b"X-Kept: 1")
    for how, client in every_way(port, claims):
        body = client.response().body.lower()
        assert b"client-cert" not in body, how
        assert b"x-meshfast" not in body, how
        assert b"x-kept" in body, how


@pytest.mark.parametrize(
    "data",
    [post(b"Content-Length: 5", body=b"hello"), post(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
def test_a22_a_body_that_ends_early_is_complete_for_nobody(tmp_path: Path, data: bytes) -> None:
    outcomes: list[bool] = []

    def script(client: Client) -> None:
        try:
            origin.request(client)
            outcomes.append(True)
        except ConnectionError:
            outcomes.append(False)

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        head = data.index(b"\r\n\r\n") + 4
        for place in range(1, len(data)):
            with Client(port) as client:
                client.send(data[:place])
                if place >= head:
                    heads = place - head + 1
                    wait_for("its head to be passed on", partial(reaches, origin.heads, heads))
        wait_for("the origin to be told", partial(reaches, outcomes, len(data) - head))
        assert not any(outcomes)


def reaches(counted: Sized, count: int) -> bool:
    """Whether there are so many by now."""
    return len(counted) >= count


INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class CuttingOrigin(Origin):
    """Answers a request for `/N` with its bytes, cut at place N, and keeps the connection."""

    def __init__(self, answer: bytes) -> None:
        """Listen."""
        super().__init__(self._answer)
        self._bytes = answer
        self.left: list[None] = []

    def _answer(self, client: Client) -> None:
        try:
            while True:
                head = client.read_until(b"\r\n\r\n")
                # The proxy has read the first part by then, or this is the uncut answer once more.
                client.send_split(self._bytes, int(head.split(b" ")[1][1:]))
        finally:
            self.left.append(None)


def ask_at(places: Sequence[int], port: int) -> Iterator[tuple[int, Client]]:
    """Ask for an answer cut at each place, on many connections at once; yield place and caller."""
    for start in range(0, len(places), AT_ONCE):
        with contextlib.ExitStack() as stack:
            batch = places[start : start + AT_ONCE]
            callers = [(place, stack.enter_context(Client(port))) for place in batch]
            for place, caller in callers:
                ask(caller, place)
            yield from callers


def ask(caller: Client, place: int) -> None:
    """Ask for the answer cut at a place."""
    caller.send(b"GET /%d HTTP/1.1\r\n" % place + HOST + b"\r\n")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ("A25", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok"),
        ("A25", b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
        ("A25", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
        ("A27", INTERIM * 11 + GOOD),
        ("A27", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        ("B8", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ("B5", b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok"),
        ("B9", b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("B4", b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nok"),
    ],
    ids=["both", "plus", "two", "interim", "unasked", "lf", "nul", "version", "colon"],
)
def test_a_bad_response_is_a_502(tmp_path: Path, row: str, answer: bytes) -> None:
    with CuttingOrigin(answer) as origin, forwarding(origin, tmp_path) as (proxy, port):
        for place, caller in ask_at(range(len(answer)), port):
            response = caller.response()
            while response.status == 103:
                response = caller.response()
            assert response.status == 502, f"{row} cut at {place}"
        assert {one["response_flags"] for one in proxy.records(len(answer))} == {"UPE"}
        assert origin.accepted == len(answer), "none of these connections is used again"


@pytest.mark.parametrize("extra", [b"x", GOOD], ids=["bytes", "response"])
def test_a26_what_comes_behind_a_response_is_nobody_s(tmp_path: Path, extra: bytes) -> None:
    answer, between = GOOD + extra, len(GOOD)
    with CuttingOrigin(answer) as origin, forwarding(origin, tmp_path) as (_, port):
        # Cut between the two, the rest comes to an idle connection, and any request that has taken
        # it by then would get it for its answer: this place is the last, when nobody else asks.
        for place, caller in ask_at([one for one in range(len(answer)) if one != between], port):
            assert_ok(caller, place)
            ask(caller, place)
            assert_ok(caller, place)
        with Client(port) as caller:
            for _ in range(2):
                ask(caller, between)
                assert_ok(caller, between)
                wait_for("its end", lambda: reaches(origin.left, origin.accepted))
        assert origin.accepted == 2 * len(answer), "no connection is used again"


def assert_ok(caller: Client, place: int) -> None:
    """The good response comes, and not what follows it."""
    response = caller.response()
    assert (response.status, response.body) == (200, b"ok"), f"cut at {place}"
