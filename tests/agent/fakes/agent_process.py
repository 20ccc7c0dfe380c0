"""A real agent on a recorded source: `agent_process FAKES_DIR SETTINGS_FD RING_FD COMPILER`.

FAKES_DIR holds `state.json` (the recording) and `names.json` (what host names resolve to: a list
of addresses, `"fail"` or `"hang"`). A snapshot is the document itself; building it refuses regular
expressions that Python does not take, as the snapshot compiler refuses those of RE2.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshfast.agent.process import Agent
from meshfast.agent.settings import Settings
from meshfast.errors import ConfigError
from tests.agent.fakes.recorded import RecordedSource

if TYPE_CHECKING:
    from meshfast.agent.mesh import Keys


def main() -> None:
    directory = Path(sys.argv[1])
    settings_fd, ring_fd = int(sys.argv[2]), int(sys.argv[3])
    os.set_blocking(ring_fd, False)

    def lookup(host: str) -> list[str]:
        answer = json.loads((directory / "names.json").read_text()).get(host, "fail")
        if answer == "hang":
            time.sleep(60)
        if not isinstance(answer, list):
            raise OSError(2, "Name or service not known")
        return answer

    settings = Settings(os.pread(settings_fd, os.fstat(settings_fd).st_size, 0))
    Agent(
        settings,
        RecordedSource(directory / "state.json", ring_fd),
        bytes.decode,
        build,
        keys=keys() if settings.mesh else None,
        compiler=(sys.executable, sys.argv[4], str(directory)),
        lookup=lookup,
    ).run()
    sys.stderr.flush()
    os._exit(0)


def keys() -> Keys:
    from meshfast.agent.mesh import Keys
    from tests.agent.fakes.authority import certificate_request, generate_key

    return Keys(generate_key, certificate_request)


def build(document: bytes) -> bytes:
    """Give the document back, or raise what the snapshot compiler would."""
    read = json.loads(document)
    clusters = {cluster["name"] for cluster in read["clusters"]}
    for at, listener in enumerate(read["listeners"]):
        for number, host in enumerate(listener["virtual_hosts"]):
            for route in host["routes"]:
                path = f"listeners[{at}].virtual_hosts[{number}]"
                for match in route["matches"]:
                    check(path, (match["uri"] or {}).get("regex", ""))
                for destination in route["destinations"]:
                    if destination["cluster"] not in clusters:
                        raise ConfigError(f"{path}: no cluster {destination['cluster']}")
    return document


def check(path: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{path}: {error}") from None


if __name__ == "__main__":
    main()
