"""The agent: everything of a sidecar that is not traffic and not process care. One child process.

    process     assembly, signals, life from start to stop
    loop        one thread, one selector, timers
    channel     JSON messages and descriptors over SOCK_SEQPACKET
    http        the metrics and health socket
    access_log  shared memory -> stdout, stderr or a file
    resolver    host names for workers and for the configuration
    publisher   reload: compile, bind, publish; DNS answers that changed
    compilation one run of the compiler
    compiler    a short-lived process that compiles, so that its memory is not kept
    log         the agent's own log lines

and in a sidecar of a mesh, loaded only there:

    mesh            assembly: readiness, registration, what is kept on disk
    link, stream    the line to the control plane; TLS and frames
    identity        key, certificate, renewal; certificate reads what is needed of X.509
    mesh_publisher  fragments of configuration to snapshots
    state           whole files or none
    health          whether the application's port accepts

Workers never wait for the agent. What it refuses: requests on the metrics socket that are not GET
or HEAD of a known path, and configurations that do not compile, whole.

Memory is a promise (8 MB private), so imports are chosen by weight: no `typing`, `logging`,
`threading`, `dataclasses`, `msgspec` or prometheus-client in this process. A sidecar's agent needs
messages on top, but neither `ssl` and `hashlib`, which load OpenSSL (TLS is the extension's), nor
YAML: measured on Python 3.11, 5.1 MB private without a mesh and 8.3 MB (10.0 MB of proportional
share) in one.

Tests: tests/agent, tests/mesh/test_memory.py.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["check", "main"]


def main(settings_json: bytes) -> NoReturn:
    """Be the agent until the supervisor says `stop` or is gone; never return.

    `settings_json` is the JSON of `meshfast.agent.settings`. The exit code is 0; an exception
    leaves `main`, and whoever called it ends the process and starts another agent.
    """
    from meshfast.agent.process import main

    main(settings_json)


def check(shared_memory_fd: int, snapshot_fd: int) -> None:
    """Raise when an agent and workers of this version could not read what others share now.

    That is another layout of the shared memory or of the snapshot. For a process that ends
    afterwards.
    """
    import os

    from meshfast._core import SharedMemory, Snapshot

    SharedMemory.open(shared_memory_fd)
    Snapshot.describe(os.pread(snapshot_fd, os.fstat(snapshot_fd).st_size, 0))
