"""Memory by the roles of a sidecar's processes; what is not the sidecar is left out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from meshfast.cli.demo.memory import pss_kb
from meshfast.cli.demo.stage import descendants, wait_until

ROLES = {"agent", "supervisor", "total", "worker/1", "worker/2"}


def test_every_process_of_the_sidecar_is_counted_under_its_role(tmp_path: Path) -> None:
    sleep, shell = shutil.which("sleep"), shutil.which("sh")
    assert sleep is not None
    assert shell is not None
    for name, program in (("worker", sleep), ("agent", sleep), ("", shell)):
        (tmp_path / f"meshfast-{name}".strip("-")).symlink_to(program)
    script = "./meshfast-worker 60 & ./meshfast-worker 60 & ./meshfast-agent 60 & sleep 60 & wait"
    with subprocess.Popen(["./meshfast", "-c", script], cwd=tmp_path) as supervisor:
        below = [0]
        try:
            wait_until(lambda: set(pss_kb(supervisor.pid)) == ROLES, "all processes", 10)
            found = pss_kb(supervisor.pid)
            below = descendants(supervisor.pid)
        finally:
            for pid in [supervisor.pid, *below]:
                subprocess.run(["kill", str(pid)], check=False)
    assert len(below) == 4
    assert found.pop("total") == sum(found.values())
    assert min(found.values()) > 0
