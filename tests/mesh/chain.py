"""A chain of services in a mesh: load → order → payment-service → inventory.

The services are ordinary HTTP programs that copy the trace headers of a request to the one they
make, as any application must; `load` is where the test calls from.
"""

from __future__ import annotations

import itertools
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.mesh.harness import DEADLINE_S, Control, Sidecar, free_port, wait_until

# `x-copy` names the headers to copy, by their beginnings. At the end of the chain `/fail` answers
# 500 and `/slow` takes 60 ms; the services before it pass the status on.
SERVICE = """
import http.server, json, sys, time, urllib.error, urllib.request
port, name, following = int(sys.argv[1]), sys.argv[2], sys.argv[3]
class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        copied = self.headers.get("x-copy", "traceparent,tracestate,b3,x-b3-").split(",")
        copied = (*copied, "x-copy", "x-request-id")
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith(copied)}
        status, called = 200, None
        if following:
            request = urllib.request.Request(following + self.path, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    called = json.load(answer)
            except urllib.error.HTTPError as error:
                status, called = error.code, None
        elif self.path == "/fail":
            status = 500
        elif self.path == "/slow":
            time.sleep(0.06)
        seen = {k.lower(): v for k, v in self.headers.items()}
        body = json.dumps({"name": name, "headers": seen, "called": called}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Service).serve_forever()
"""

CHAIN = ("order", "payment-service", "inventory")


class Chain:
    """The mesh with its services, started from the end; `options` are those of every sidecar."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.sidecars: dict[str, Sidecar] = {}
        self.ports = {service: free_port() for service in CHAIN}
        self.control = Control(folder)
        try:
            for service in reversed(CHAIN):
                self._run(folder, service, *options)
            self._run(folder, "load", *options)
            wait_until(lambda: self.call("/")[0] == 200, "the whole chain answers")
        except BaseException:
            self.close()
            raise

    def _run(self, folder: Path, service: str, *options: str) -> None:
        after = dict(itertools.pairwise(CHAIN)).get(service)
        following = "" if after is None else f"http://{after}:{self.ports[after]}"
        port = self.ports.get(service) or free_port()
        command = [sys.executable, "-c", SERVICE, str(port), service, following]
        one = Sidecar(
            folder, self.control, service, *options, command=command, name=service, app_port=port
        )
        self.sidecars[service] = one
        one.until_started()

    def call(self, path: str, **headers: str) -> tuple[int, Any]:
        """Call the chain from `load`; an underscore in a header's name stands for a dash."""
        url = f"http://order:{self.ports['order']}{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        proxy = urllib.request.ProxyHandler({"http": self.sidecars["load"].proxies()["http"]})
        request = urllib.request.Request(url, headers=named)
        try:
            with urllib.request.build_opener(proxy).open(request, timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")

    def metrics_addresses(self) -> list[str]:
        """Where each sidecar is scraped."""
        return [one.address("metrics") for one in self.sidecars.values()]

    def close(self) -> None:
        """End everything."""
        for one in self.sidecars.values():
            one.close()
        self.control.close()
