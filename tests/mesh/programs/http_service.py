"""An HTTP application for the clients of tests/mesh/test_clients.py: `http_service.py PORT`.

GET /bytes?n=N sends N times `x`, with `&chunked` in chunks; GET on anything else names the caller
that the sidecar verified. POST answers with length and SHA-256 of the body, chunked or not.
"""

import hashlib
import http.server
import json
import sys
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

PIECE = 64 * 1024


class Service(http.server.BaseHTTPRequestHandler):
    """One connection of a sidecar."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send what was asked for."""
        url = urlsplit(self.path)
        if url.path != "/bytes":
            caller = self.headers.get("x-forwarded-client-cert", "")
            return self.answer(json.dumps({"caller": caller}).encode())
        asked = parse_qs(url.query, keep_blank_values=True)
        body = b"x" * int(asked["n"][0])
        if "chunked" not in asked:
            return self.answer(body)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), PIECE):
            piece = body[at : at + PIECE]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def do_POST(self) -> None:
        """Digest the body."""
        digest, length = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            length += len(piece)
        self.answer(json.dumps({"length": length, "sha256": digest.hexdigest()}).encode())

    def body(self) -> Iterator[bytes]:
        """Read the body as it is framed."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, body: bytes) -> None:
        """Send a body of known length."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
