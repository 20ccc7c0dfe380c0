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

Workers never wait for the agent. What it refuses: requests on the metrics socket that are not GET
or HEAD of a known path, and configurations that do not compile, whole.

Memory is a promise (8 MB private), so imports are chosen by weight: no `typing`, `logging`,
`threading`, `dataclasses`, `msgspec` or prometheus-client in this process.

Tests: tests/agent.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]


def main(settings_json: bytes) -> NoReturn:
    """Be the agent until the supervisor says `stop` or is gone; never return.

    `settings_json` is the JSON of `meshfast.agent.settings`. The exit code is 0; an exception
    leaves `main`, and whoever called it ends the process and starts another agent.
    """
    from meshfast.agent.process import main

    main(settings_json)
