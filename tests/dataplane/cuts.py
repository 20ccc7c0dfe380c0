"""Every way in which TCP may cut what a caller sends, played against a proxy with one worker.

A cut is real only if the proxy reads between the two parts. Where parts are sent on many
connections at once, a request on another connection is answered in between: a loop that has come
round to that has read everything that was there before it. Only single bytes may run together.

Tests: tests/dataplane/test_rows.py is its user.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tests.dataplane.harness import Client

AT_ONCE = 64  # connections
EVERY_PLACE_MAX = 1_000  # bytes; what is longer is cut into pieces, at every place by one of them

#: Answered by the proxy itself, so that an origin sees nothing of it.
QUESTION = b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"


def every_way(port: int, data: bytes) -> Iterator[tuple[str, Client]]:
    """Send *data* in each way on a connection of its own; yield how, and the connection.

    Ways are: whole, in single bytes, and cut at every place: in two, or when it is long into pieces
    of `AT_ONCE` bytes that begin at every place. A proxy may answer and close before the end.
    """
    yield from _sent(port, ["whole"], [[data]])
    yield from _sent(port, ["in single bytes"], [[data[at : at + 1] for at in range(len(data))]])
    if len(data) <= EVERY_PLACE_MAX:
        parts = [[data[:place], data[place:]] for place in range(1, len(data))]
        names = [f"cut at {place}" for place in range(1, len(data))]
    else:
        starts = range(1, AT_ONCE + 1)
        parts = [_pieces(data, start) for start in starts]
        names = [f"cut at {start} and every {AT_ONCE} from there" for start in starts]
    for at in range(0, len(parts), AT_ONCE):
        yield from _sent(port, names[at : at + AT_ONCE], parts[at : at + AT_ONCE])


def _pieces(data: bytes, start: int) -> list[bytes]:
    rest = range(start, len(data), AT_ONCE)
    return [data[:start], *(data[at : at + AT_ONCE] for at in rest)]


def _sent(
    port: int, names: Sequence[str], parts: Sequence[Sequence[bytes]]
) -> Iterator[tuple[str, Client]]:
    """Send all connections' first parts, then all their second ones, and so on."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in parts]
        between = stack.enter_context(Client(port))
        sending = dict(zip(clients, parts, strict=True))
        for turn in range(max(map(len, parts))):
            for client, of_client in list(sending.items()):
                try:
                    client.send(b"".join(of_client[turn : turn + 1]))
                except ConnectionError:
                    del sending[client]
            if not sending:
                break
            if len(parts) > 1:
                between.send(QUESTION)
                assert between.response("OPTIONS").status == 200
        yield from zip(names, clients, strict=True)
