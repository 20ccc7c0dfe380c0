"""The HTTP server of the metrics and health socket: small, strict, and never waiting for anybody.

One request per connection: GET or HEAD of a known path, HTTP/1.0 or 1.1. Bodies are made piece by
piece, one piece per turn of the loop and connection, when the client has taken the one before.

Does not do: keep-alive, request bodies, TLS, compression, authentication (the socket is on loopback
unless an operator says otherwise).

Invariants:
1. A connection ends: the head in 5 s, the response in 30 s, the farewell in 1 s.
2. At most 64 connections. A new one takes the place of the oldest that has not sent its head yet,
   so that those who send nothing cannot keep a scraper out.
3. A head is read whole before anything is answered, and is at most 8 KiB.

Tests: tests/agent/test_http.py.
"""

from __future__ import annotations

import re
import socket
import time

from meshfast.agent.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshfast.agent.loop import Loop

    Handler = Callable[["Request"], "Response"]

__all__ = ["Request", "Response", "Server"]

CONNECTIONS_MAX = 64
HEAD_BYTES_MAX = 8192
PIECE_BYTES = 65536
HEAD_S = 5.0
RESPONSE_S = 30.0
FAREWELL_S = 1.0
ACCEPTS_PER_TURN = 16

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           408: "Request Timeout", 431: "Request Header Fields Too Large",
           503: "Service Unavailable", 505: "HTTP Version Not Supported"}  # fmt: skip

# RFC 9112 section 3 and RFC 9110 section 5.6.2 (token). A target is in origin or absolute form.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_ABSOLUTE = re.compile(r"https?://[^/?#]+", re.IGNORECASE)


class Request:
    """What was asked: method, path without query, `accept` ("*/*" when not given)."""

    __slots__ = ("accept", "method", "path", "version_minor")

    def __init__(self, method: str, path: str, accept: str, version_minor: int) -> None:
        """Keep the four."""
        self.method = method
        self.path = path
        self.accept = accept
        self.version_minor = version_minor


class Response:
    """Status, type and body; `body` is bytes, or pieces of unknown number that come as needed."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes | Iterator[bytes],
        content_type: str = "text/plain; charset=utf-8",
        headers: str = "",
    ) -> None:
        """`headers` are further field lines, each with its CRLF."""
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Refused(Exception):
    """A request that gets an error status."""

    def __init__(self, status: int, why: str) -> None:
        """`why` becomes the body."""
        super().__init__(why)
        self.status = status


class Server:
    """Serves `handlers`, by path, on a listening socket."""

    def __init__(self, loop: Loop, fd: int, handlers: dict[str, Handler]) -> None:
        """Own `fd` and begin to accept."""
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._handlers = handlers
        self._connections: dict[_Connection, None] = {}  # oldest first
        loop.watch(fd, READ, self._accept)

    def respond(self, head: bytes) -> tuple[Request | None, Response]:
        """Answer a whole head; None instead of the request when it could not be read."""
        try:
            request = parse(head)
        except Refused as refused:
            return None, _error(refused.status, str(refused))
        handler = self._handlers.get(request.path)
        if handler is None:
            return request, _error(404, "no such path")
        if request.method not in ("GET", "HEAD"):
            return request, _error(405, "GET and HEAD only", "Allow: GET, HEAD\r\n")
        return request, handler(request)

    def ended(self, connection: _Connection) -> None:
        """Forget a connection; called by itself."""
        del self._connections[connection]

    def _accept(self, _ready: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors left: the next turn may find some
                self._loop.watch(self._socket.fileno(), 0, self._accept)
                self._loop.call_later(0.1, self._accept_again)
                return
            if len(self._connections) >= CONNECTIONS_MAX and not self._make_room():
                accepted.close()
                continue
            self._connections[_Connection(self._loop, self, accepted)] = None

    def _accept_again(self) -> None:
        self._loop.watch(self._socket.fileno(), READ, self._accept)

    def _make_room(self) -> bool:
        for connection in self._connections:
            if not connection.answering:
                connection.close()
                return True
        return False


class _Connection:
    """Reads a head, writes a response, waits for the client's end so that it can read it all."""

    def __init__(self, loop: Loop, server: Server, accepted: socket.socket) -> None:
        self._loop = loop
        self._server = server
        self._socket = accepted
        self._socket.setblocking(False)
        self._head = bytearray()
        self._pieces: Iterator[bytes] = iter(())
        self._unsent = memoryview(b"")
        self.answering = False
        self._deadline = loop.call_later(HEAD_S, self._head_is_late)
        self._watch(READ, self._on_head)

    def close(self) -> None:
        self._deadline.cancel()
        self._watch(0, self._on_head)
        self._socket.close()
        self._pieces = iter(())  # whatever the body held is free now
        self._server.ended(self)

    def _watch(self, events: int, call: Callable[[int], None]) -> None:
        self._loop.watch(self._socket.fileno(), events, call)

    def _expire_in(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self.close)

    def _on_head(self, _ready: int) -> None:
        data = self._receive()
        if data is None:
            return
        if not data:
            return self.close()
        searched = max(0, len(self._head) - 3)
        self._head += data
        end = self._head.find(b"\r\n\r\n", searched)
        if end < 0 and len(self._head) <= HEAD_BYTES_MAX:
            return
        if end < 0 or end > HEAD_BYTES_MAX:
            self._answer(None, _error(431, f"a head has at most {HEAD_BYTES_MAX} bytes"))
        else:
            self._answer(*self._server.respond(bytes(self._head[:end])))

    def _head_is_late(self) -> None:
        if self._head:
            self._answer(None, _error(408, f"a head must arrive within {HEAD_S:.0f} s"))
        else:
            self.close()

    def _receive(self) -> bytes | None:
        """Bytes, none at the end of the stream, None when there is nothing now."""
        try:
            return self._socket.recv(4096)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _answer(self, request: Request | None, response: Response) -> None:
        self.answering = True
        self._head.clear()
        self._pieces = encode(request, response)
        self._expire_in(RESPONSE_S)
        self._watch(WRITE, self._on_writable)
        self._on_writable(WRITE)

    def _on_writable(self, _ready: int) -> None:
        if not self._unsent:
            piece = next(self._pieces, b"")
            if not piece:
                return self._farewell()
            self._unsent = memoryview(piece)
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _farewell(self) -> None:
        """Close our half and read what may still come: a reset would take the response with it."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close()
        self._expire_in(FAREWELL_S)
        self._watch(READ, self._on_rest)

    def _on_rest(self, _ready: int) -> None:
        if self._receive() == b"":
            self.close()


def parse(head: bytes) -> Request:
    """Read a head without its last two CRLFs. Raises Refused."""
    request_line, *lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if not match:
        raise Refused(400, "no request line")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1" or minor not in "01":
        raise Refused(505, "HTTP/1.0 and HTTP/1.1 only")
    fields = _fields(lines)
    hosts = fields.get(b"host", [])
    if len(hosts) > 1 or (minor == "1" and not hosts):
        raise Refused(400, "one Host, as RFC 9112 section 3.2 says")
    path = _ABSOLUTE.sub("", target, count=1).partition("?")[0] or "/"
    accept = b",".join(fields.get(b"accept", [b"*/*"])).decode("latin-1")
    return Request(method, path, accept, int(minor))


def _fields(lines: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if not match:
            raise Refused(400, "no header field")
        fields.setdefault(match[1].lower(), []).append(match[2])
    return fields


def encode(request: Request | None, response: Response) -> Iterator[bytes]:
    """The response as pieces of about `PIECE_BYTES`; HTTP/1.0 has no chunks and ends by closing."""
    body = response.body
    chunked = not isinstance(body, bytes) and request is not None and request.version_minor == 1
    framing = ""
    if isinstance(body, bytes):
        framing = f"Content-Length: {len(body)}\r\n"
    elif chunked:
        framing = "Transfer-Encoding: chunked\r\n"
    head = (
        f"HTTP/1.1 {response.status} {REASONS[response.status]}\r\n"
        f"Date: {_date()}\r\nContent-Type: {response.content_type}\r\n{framing}"
        f"{response.headers}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()
    if request is not None and request.method == "HEAD":
        yield head
    elif isinstance(body, bytes):
        yield head + body
    else:
        yield head
        for piece in _gathered(body):
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
        if chunked:
            yield b"0\r\n\r\n"


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Fewer and larger pieces, none of them empty."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    if size:
        yield b"".join(gathered)


def _error(status: int, why: str, headers: str = "") -> Response:
    return Response(status, f"{why}\n".encode(), headers=headers)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _date() -> str:
    """IMF-fixdate (RFC 9110 section 5.6.7), whatever the locale."""
    now = time.gmtime()
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02d} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
        f"{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d} GMT"
    )
