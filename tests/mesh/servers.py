"""Real servers of tests: Zipkin and Prometheus, each on a free port and ended with its test.

A server that is not installed skips the test; in CI that fails it (conftest.py), and .ci/run
installs both.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.harness import DEADLINE_S, free_port, wait_until

STARTS_WITHIN_S = 90.0  # a Java server on a busy machine
ZIPKIN = "io/zipkin/zipkin-server/*/zipkin-server-*-exec.jar"  # below ~/.m2/repository


class Server:
    """A process that answers HTTP at `address` once it is up."""

    def __init__(self, command: list[str], port: int, health: str, log: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._is_up(health), f"{command[0]} is up", STARTS_WITHIN_S)
        except BaseException:
            self.close()
            raise

    def get(self, path: str, **query: str) -> Any:
        """Ask for JSON."""
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _is_up(self, health: str) -> bool:
        assert self.process.poll() is None, self._log.read_text(errors="replace")
        try:
            with urllib.request.urlopen(f"http://{self.address}{health}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Zipkin(Server):
    """A Zipkin server that keeps spans in memory."""

    def __init__(self, folder: Path) -> None:
        jars = sorted((Path.home() / ".m2" / "repository").glob(ZIPKIN))
        java = shutil.which("java")
        if not jars or java is None:
            pytest.skip(
                "no Zipkin: a Java runtime and "
                "mvn dependency:get -Dartifact=io.zipkin:zipkin-server:3.5.1:jar:exec "
                "-Dtransitive=false"
            )
        port = free_port()
        command = [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar", str(jars[-1])]
        options = [f"--server.port={port}", "--armeria.ports[0].ip=127.0.0.1"]
        options += [f"--armeria.ports[0].port={port}", "--armeria.ports[0].protocols[0]=http"]
        super().__init__([*command, *options], port, "/health", folder / "zipkin.log")

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace that are known by now."""
        try:
            spans: list[dict[str, Any]] = self.get(f"/api/v2/trace/{trace_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return spans


class Prometheus(Server):
    """A Prometheus server that scrapes targets every second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        prometheus = shutil.which("prometheus")
        if prometheus is None:
            pytest.skip("no Prometheus: apt-get install prometheus")
        port = free_port()
        job = {"job_name": "mesh", "static_configs": [{"targets": targets}]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        command = [prometheus, f"--config.file={file}", f"--web.listen-address=127.0.0.1:{port}"]
        command += [f"--storage.tsdb.path={folder / 'prometheus'}"]
        super().__init__(command, port, "/-/ready", folder / "prometheus.log")

    def ask(self, query: str) -> float | None:
        """Return the value of a query that gives one number; None when it gives none."""
        answer = self.get("/api/v1/query", query=query)
        assert answer["status"] == "success", answer
        found = answer["data"]["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None
