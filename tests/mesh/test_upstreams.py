"""`--upstream` listeners carry what is not HTTP: PostgreSQL and Redis with their own clients, and
the shapes of conversation that such protocols have.

Every server runs as a workload of the mesh and every client under a `meshfast run` of its own; one
mesh serves the whole module, because nothing here changes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.harness import Fixture, Job, Sidecar, free_port, scrape, wait_until

IDLE_S = 4  # beyond the 3 s after which an idle pooled connection of HTTP is closed
MEGABYTES = 5_000_000
INSTALLATIONS = Path("/usr/lib/postgresql")

# The two sides of a connection end one after the other, in either order; `folder` has what arrived.
GREETS = """
import hashlib, pathlib, socket, socketserver, sys
class Greets(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"220 ready\\r\\n")
        if sys.argv[2] == "speaks-briefly":
            self.request.shutdown(socket.SHUT_WR)
        digest = hashlib.sha256()
        while data := self.request.recv(65536):
            digest.update(data)
        if sys.argv[2] == "speaks-last":
            self.request.sendall(digest.hexdigest().encode())
        pathlib.Path(sys.argv[3]).write_text(digest.hexdigest())
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Greets).serve_forever()
"""


class Databases:
    """PostgreSQL as service `db` and Redis as service `cache`."""

    def __init__(self, mesh: Fixture, data: Path) -> None:
        self.mesh = mesh
        port, programs = free_port(), postgres_programs()
        self._as_user([str(programs / "initdb"), "--auth=trust", "--username=app", "--no-sync",
                       "--encoding=UTF8", "--locale=C", str(data)])  # fmt: skip
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        command = [*other_user("setpriv"), str(programs / "postgres"), "-D", str(data)]
        command += ["-p", str(port), *(word for one in settings for word in ("-c", one))]
        self.db = mesh.serve("db", "--protocol", "tcp", app_port=port, command=command)
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(mesh.folder)]
        self.cache = mesh.serve("cache", "--protocol", "tcp", app_port=port, command=command)

    def psql(self, name: str, script: str) -> Job:
        """Start psql on a script that stops at its first error."""
        port = free_port()
        command = ["psql", "--no-psqlrc", "-h", "127.0.0.1", "-p", str(port), "-U", "app"]
        command += ["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-qAt", "-f", "-"]
        path = self.mesh.folder / f"{name}.sql"
        path.write_text(script)
        command = ["sh", "-c", 'exec "$@" < "$0"', str(path), *command]
        return self.mesh.job(name, "--upstream", f"db=127.0.0.1:{port}", command=command)

    def redis(self, name: str, script: str) -> Job:
        """Start a shell script that calls `redis` as a user calls redis-cli."""
        port = free_port()
        preamble = f'set -eu; redis() {{ redis-cli -h 127.0.0.1 -p {port} "$@"; }}\n'
        command = ["sh", "-c", preamble + script]
        return self.mesh.job(name, "--upstream", f"cache=127.0.0.1:{port}", command=command)

    def _as_user(self, command: list[str]) -> None:
        done = subprocess.run(
            [*other_user("setpriv"), *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def postgres_programs() -> Path:
    """Where the newest PostgreSQL server is installed; Debian puts it beside PATH."""
    found = sorted(INSTALLATIONS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent


def other_user(program: str) -> list[str]:
    """Words before a command that PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return []
    return [program, "--reuid=postgres", "--regid=postgres", "--init-groups"]


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    if not list(INSTALLATIONS.glob("*/bin/initdb")) or not shutil.which("redis-server"):
        pytest.skip("no PostgreSQL server or no redis-server here")
    mesh = Fixture(tmp_path_factory.mktemp("databases"))
    with tempfile.TemporaryDirectory() as data:  # pytest's own folders are closed to other users
        if os.getuid() == 0:
            shutil.chown(data, "postgres", "postgres")
        try:
            yield Databases(mesh, Path(data))
        finally:
            mesh.close()


def tcp_connections(sidecar: Sidecar) -> dict[tuple[str, str], float]:
    """What the callee's sidecar counted: (security policy, caller) → connections."""
    found: dict[tuple[str, str], float] = {}
    for line in scrape(sidecar).splitlines():
        if line.startswith("istio_tcp_connections_opened_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["reporter"] == "destination":
                key = labels["connection_security_policy"], labels["source_principal"]
                found[key] = found.get(key, 0) + float(line.rpartition(" ")[2])
    return found


def assert_mutual_tls_only(sidecar: Sidecar) -> None:
    counted = tcp_connections(sidecar)
    assert counted.keys() == {("mutual_tls", "spiffe://cluster.local/ns/default/sa/app")}


def test_psql_queries_copies_and_rolls_back(databases: Databases, tmp_path: Path) -> None:
    rows, back = tmp_path / "rows.tsv", tmp_path / "back.tsv"
    rows.write_text("".join(f"{at}\t{'y' * 90}\n" for at in range(30_000)))
    job = databases.psql(
        "queries",
        f"""
SELECT sum(n) FROM generate_series(1, 1000) AS n;
SELECT repeat('x', {MEGABYTES});
CREATE TABLE copied (id int PRIMARY KEY, filler text);
\\copy copied FROM '{rows}'
\\copy (SELECT * FROM copied ORDER BY id) TO '{back}'
BEGIN;
DELETE FROM copied;
SELECT count(*) FROM copied;
ROLLBACK;
SELECT count(*) FROM copied;
""",
    )
    assert job.succeeded().splitlines() == ["500500", "x" * MEGABYTES, "0", "30000"]
    assert back.read_bytes() == rows.read_bytes()
    assert_mutual_tls_only(databases.db)


def test_a_failed_statement_keeps_its_message_and_its_code(databases: Databases) -> None:
    job = databases.psql("fails", "SELECT 1;\nSELECT nothing FROM nowhere;\n")
    assert job.process.wait(30) == 3  # psql: an error in a script
    assert 'relation "nowhere" does not exist' in job.text
    assert job.output == "1\n"


def test_a_notification_reaches_a_session_that_only_listens(
    databases: Databases, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    listener = databases.psql(
        "listens",
        "LISTEN news;\n\\echo listening\n"
        f"\\! while [ ! -e {gate} ]; do sleep 0.05; done\nSELECT 'over';\n",
    )
    wait_until(lambda: "listening" in listener.output, "it listens")
    databases.psql("notifies", f"SELECT pg_sleep({IDLE_S});\nNOTIFY news, 'hello';\n").succeeded()
    gate.touch()
    lines = listener.succeeded().splitlines()
    assert lines[:2] == ["listening", "over"]
    assert lines[2].startswith('Asynchronous notification "news" with payload "hello" received')


def test_a_statement_is_cancelled_by_a_second_connection(databases: Databases) -> None:
    canceller = databases.psql(
        "cancelled",
        # The statement has begun long before: an interrupt that comes earlier ends psql by itself.
        "\\! (sleep 2; while kill -INT $PPID 2> /dev/null; do sleep 2; done) &\n"
        "SELECT pg_sleep(60);\n",
    )
    assert canceller.process.wait(30) == 3
    assert "canceling statement due to user request" in canceller.text


def test_redis_pipelines_and_carries_large_values(databases: Databases) -> None:
    job = databases.redis(
        "pipelines",
        f"""
awk 'BEGIN {{ for (at = 0; at < 20000; at++) printf "SET key:%d %d\\r\\n", at, at }}' |
    redis --pipe
redis DBSIZE
head -c {MEGABYTES} /dev/zero | tr '\\0' z | redis -x SET large
redis --raw GET large | tr -d '\\n' | sha256sum
printf 'MULTI\\nINCR turns\\nINCR turns\\nEXEC\\n' | redis
""",
    )
    lines = job.succeeded().splitlines()
    assert "errors: 0, replies: 20000" in lines
    digest = hashlib.sha256(b"z" * MEGABYTES).hexdigest()
    assert lines[-8:] == ["20000", "OK", f"{digest}  -", "OK", "QUEUED", "QUEUED", "1", "2"]
    assert_mutual_tls_only(databases.cache)


def test_a_blocking_command_waits_through_an_idle_connection(databases: Databases) -> None:
    waiting = databases.redis("pops", "echo waiting; redis BLPOP queue 60")
    wait_until(lambda: "waiting" in waiting.output, "it waits")
    databases.redis("pushes", f"sleep {IDLE_S}; redis RPUSH queue work").succeeded()
    assert waiting.succeeded().splitlines() == ["waiting", "queue", "work"]


def test_a_subscriber_hears_what_is_published(databases: Databases) -> None:
    subscriber = databases.redis("subscribes", "redis SUBSCRIBE news")
    wait_until(lambda: subscriber.output.split() == ["subscribe", "news", "1"], "it is subscribed")
    published = databases.redis("publishes", f"sleep {IDLE_S}; redis PUBLISH news hello")
    assert published.succeeded() == "1\n"
    wait_until(lambda: subscriber.output.split()[3:] == ["message", "news", "hello"], "it hears")
    assert subscriber.stop() == 143


def greeting_service(mesh: Fixture, service: str, manner: str) -> tuple[int, Path]:
    """Start a server that speaks first; return the local port of a client's upstream to it."""
    port, local, arrived = free_port(), free_port(), mesh.folder / f"{service}.arrived"
    command = [sys.executable, "-c", GREETS, str(port), manner, str(arrived)]
    mesh.serve(service, "--protocol", "tcp", app_port=port, command=command)
    mesh.run("app", "--upstream", f"{service}=127.0.0.1:{local}", name=f"app-of-{service}")
    return local, arrived


@pytest.mark.parametrize("manner", ["speaks-last", "speaks-briefly"])
def test_a_side_that_has_ended_still_gets_what_the_other_side_sends(
    databases: Databases, manner: str
) -> None:
    local, arrived = greeting_service(databases.mesh, manner, manner)
    body = b"m" * MEGABYTES
    digest = hashlib.sha256(body).hexdigest()
    with socket.create_connection(("127.0.0.1", local), 20) as client:
        lines = client.makefile("rb")
        assert lines.readline() == b"220 ready\r\n"  # before the client has said anything
        if manner == "speaks-briefly":
            assert lines.read() == b""  # the server's side is over, ours is not
        client.sendall(body)
        client.shutdown(socket.SHUT_WR)
        assert lines.read().decode() == (digest if manner == "speaks-last" else "")
    wait_until(lambda: arrived.exists() and arrived.read_text() == digest, "all of it arrived")
