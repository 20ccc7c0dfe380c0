"""A real agent on a recorded source: `agent_process FAKES_DIR SETTINGS_FD RING_FD COMPILER`.

FAKES_DIR holds `state.json` (the recording) and `names.json` (what host names resolve to: a list
of addresses, `"fail"` or `"hang"`).
"""

import json
import os
import sys
import time
from pathlib import Path

from meshfast.agent.process import Agent
from meshfast.agent.settings import Settings
from tests.agent.fakes.recorded import RecordedSource


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
        compiler=(sys.executable, sys.argv[4], str(directory)),
        lookup=lookup,
    ).run()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
