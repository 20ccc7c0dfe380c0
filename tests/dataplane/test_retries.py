"""Retries at a whole proxy, from the file: what is sent again, how often, and what never is."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.dataplane.harness import Client, Origin, Response, pooled

SERVICE_S = 0.05
OFFERED = 1200

RESET = "retries: {attempts: 2, retryOn: 'reset,503', backoff: 1ms}"


def request(method: str, path: str = "/", body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ask(port: int, method: str = "GET", path: str = "/", body: bytes = b"") -> Response:
    with Client(port) as client:
        client.send(request(method, path, body))
        return client.response(method)


def answer(status: int, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def scripted(*statuses: int) -> Origin:
    """An origin whose answers have these statuses in turn, the last for ever, and echo the body."""
    turns = itertools.chain(statuses, itertools.repeat(statuses[-1]))

    def script(client: Client) -> None:
        while True:
            _, body = origin.request(client)
            client.send(answer(next(turns), body))

    origin = Origin(script)
    return origin


def test_gets_are_answered_and_posts_read_once_while_origins_die(tmp_path: Path) -> None:
    """Safety F1 at CI size: every tenth connection dies, at one of four moments, as if killed."""
    read: Counter[str] = Counter()
    deaths = itertools.count()
    died: Counter[str] = Counter()
    lock = threading.Lock()

    def script(client: Client) -> None:
        while True:
            head = client.read_until(b"\r\n\r\n")
            method, path, _ = head.decode().split(" ", 2)
            with lock:
                number = next(deaths)
                moment = number // 10 % 4 if number % 10 == 0 else None
                died[method] += moment is not None
                read[path] += 1
            if moment == 0:
                return
            body = client.read_exactly(4)
            if moment == 1:
                return
            if moment is not None:
                client.send(b"HTTP/1.1 200 OK\r\nContent-Le"[: 9 * moment])
                return
            client.send(answer(200, body))

    def load(worker: int) -> Counter[tuple[str, int]]:
        seen: Counter[tuple[str, int]] = Counter()
        for number in range(120):
            method = ("GET", "POST", "PUT")[number % 3]
            response = ask(port, method, f"/{method}-{worker}-{number}", b"body")
            assert response.status != 200 or response.body == b"body"
            seen[method, response.status] += 1
        return seen

    origins = [Origin(script) for _ in range(3)]
    rules = ["retries: {attempts: 5, retryOn: reset, backoff: 1ms}"]
    with origins[0], origins[1], origins[2], pooled(origins, tmp_path, rules) as (_, port):
        with ThreadPoolExecutor(4) as threads:
            seen = sum(threads.map(load, range(4)), Counter())
    assert seen["GET", 200] == seen["PUT", 200] == 160, seen
    posts = {path: count for path, count in read.items() if path.startswith("/POST")}
    assert set(posts.values()) == {1}, "no POST is read twice"
    assert seen["POST", 503] == died["POST"] > 0, (seen, died)
    assert seen["POST", 200] + seen["POST", 503] == 160


def test_an_answer_the_route_does_not_want_is_asked_for_again(tmp_path: Path) -> None:
    with scripted(503, 503, 200) as origin, pooled([origin], tmp_path, [RESET]) as (proxy, port):
        response = ask(port, "PUT", "/x", b"hello")
        assert (response.status, response.body) == (200, b"hello")
        assert origin.accepted == 3
        [record] = proxy.records(1)
    assert record["response_flags"] == "-"
    assert record["response_code"] == 200
    assert record["bytes_received"] == 5


def test_tries_that_are_used_up_show_in_log_and_metrics(tmp_path: Path) -> None:
    with scripted(503) as origin, pooled([origin], tmp_path, [RESET]) as (proxy, port):
        assert ask(port).status == 503
        assert len(origin.heads) == 3
        [record] = proxy.records(1)
        samples = proxy.metrics()["istio_requests_total"]
    assert record["response_flags"] == "URX"
    assert record["response_code_details"] == "via_upstream"
    assert [(labels["response_flags"], value) for labels, value in samples] == [("URX", 1)]


@pytest.mark.parametrize(
    ("rule", "method", "tries"),
    [
        ("retries: {attempts: 0}", "GET", 1),
        ("retries: {attempts: 4, retryOn: '5xx', backoff: 1ms}", "GET", 5),
        ("retries: {attempts: 4, retryOn: '5xx', backoff: 1ms}", "POST", 1),
        ("retries: {attempts: 4, retryOn: connect-failure}", "GET", 1),
        ("timeout: 10s", "GET", 1),
    ],
)
def test_there_are_as_many_tries_as_the_route_says(
    rule: str, method: str, tries: int, tmp_path: Path
) -> None:
    with scripted(503) as origin, pooled([origin], tmp_path, [rule]) as (_, port):
        assert ask(port, method).status == 503
        assert len(origin.heads) == tries


def test_each_try_has_its_own_time(tmp_path: Path) -> None:
    turns = itertools.count()
    over = threading.Event()

    def script(client: Client) -> None:
        origin.request(client)
        if next(turns) == 0:
            over.wait(20)
        else:
            client.send(answer(200))

    rule = "retries: {attempts: 1, retryOn: reset, perTryTimeout: 100ms}"
    with Origin(script) as origin, pooled([origin], tmp_path, [rule]) as (_, port):
        assert ask(port).status == 200
        assert origin.accepted == 2
        over.set()


def test_the_time_of_a_try_begins_when_the_caller_has_sent_everything(tmp_path: Path) -> None:
    rule = "retries: {attempts: 1, retryOn: reset, perTryTimeout: 150ms}"
    with scripted(200) as origin, pooled([origin], tmp_path, [rule]) as (_, port):
        with Client(port) as client:
            whole = request("PUT", body=b"slow")
            client.send(whole[:-2])
            time.sleep(0.4)  # longer than a try may take
            client.send(whole[-2:])
            assert client.response("PUT").status == 200
        assert origin.accepted == 1


@pytest.mark.parametrize(
    ("rule", "is_mended"),
    [
        ("timeout: 10s", True),
        ("retries: {attempts: 1, retryOn: connect-failure}", True),
        ("retries: {attempts: 0}", False),
        ("fault: {abort: {httpStatus: 400}}", False),
    ],
)
def test_a_stale_connection_costs_a_get_one_of_its_attempts(
    rule: str, is_mended: bool, tmp_path: Path
) -> None:
    def script(client: Client) -> None:
        """Answer the first request, and close at the second, as a server whose patience ends."""
        origin.request(client)
        client.send(answer(200))
        origin.request(client)

    statuses = []
    with Origin(script) as origin, pooled([origin], tmp_path, [rule]) as (proxy, port):
        with Client(port) as client:
            for _ in range(6):
                client.send(request("GET"))
                statuses.append(client.response().status)
        flags = Counter(record["response_flags"] for record in proxy.records(6))
        read = len(origin.heads)
    if is_mended:
        assert statuses == [200] * 6
        assert (flags, read) == ({"-": 6}, 11), "all but the first cost a second try"
    else:
        assert statuses == [200, 503] * 3
        assert (flags, read) == ({"-": 3, "UC": 3}, 6), "each is sent once"


def test_connections_that_die_at_work_are_repeated_within_the_budget(tmp_path: Path) -> None:
    """An origin that is killed while all its reused connections have a request at work."""
    count = 30
    warm = threading.Barrier(count, timeout=20)
    at_work = threading.Barrier(count, timeout=20)
    failed = threading.Semaphore(0)

    def script(client: Client) -> None:
        head, _ = origin.request(client)
        if b"/warm" in head:
            warm.wait()
            client.send(answer(200))
            origin.request(client)
            at_work.wait()
            return
        # A repeat. It is at work until most of the callers have their answer.
        assert failed.acquire(timeout=20)
        client.send(answer(200))

    def load(_: int) -> None:
        with Client(port) as client:
            client.send(request("GET", "/warm"))
            assert client.response().status == 200
            client.send(request("GET", "/work"))
            if client.response().status == 503:
                failed.release()

    with Origin(script) as origin, pooled([origin], tmp_path, ["timeout: 20s"]) as (proxy, port):
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(load, range(count)))
        records = [one for one in proxy.records(2 * count) if one["path"] == "/work"]
        flags = Counter(record["response_flags"] for record in records)
        repeats = sum(b"/work" in head for head in origin.heads) - count
    assert flags == {"-": repeats, "UC,UO": count - repeats}
    # Two workers may both see room for the last one.
    assert 3 <= repeats <= count // 5 + 2


def test_failing_origins_get_at_most_a_fifth_more_than_they_are_offered(tmp_path: Path) -> None:
    """Safety F9: no retry storm. Each answer takes a while, so that most callers are active."""

    def script(client: Client) -> None:
        while True:
            origin.request(client)
            time.sleep(SERVICE_S)
            client.send(answer(503))

    # All callers end together: few that are left would have three tries in flight for themselves.
    numbers = iter(range(OFFERED))

    def load(_: int) -> None:
        with Client(port) as client:
            for _ in numbers:
                client.send(request("GET"))
                assert client.response().status == 503

    rule = "retries: {attempts: 10, retryOn: '5xx'}"
    with Origin(script) as origin, pooled([origin], tmp_path, [rule]) as (proxy, port):
        with ThreadPoolExecutor(40) as threads:
            list(threads.map(load, range(40)))
        flags = Counter(record["response_flags"] for record in proxy.records(OFFERED))
        assert OFFERED < len(origin.heads) <= OFFERED * 1.2
    assert flags["UO"] >= OFFERED * 0.9, "the budget ends it long before the attempts do"
