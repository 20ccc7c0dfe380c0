"""The memory of one sidecar by process, as PSS: a page that several processes map counts in parts.

The other sidecars of the demo map the same interpreter and libraries, so that these numbers are
smaller than those of a sidecar alone on a machine; `make bench` measures that one.

Tests: tests/demo/test_memory.py.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from meshfast.cli.demo.stage import descendants

__all__ = ["pss_kb"]

PSS = re.compile(r"^Pss: +(\d+) kB", re.MULTILINE)
#: The name of a process (comm) and its role; the application has a name of its own.
ROLES = {"meshfast": "supervisor", "meshfast-agent": "agent", "meshfast-worker": "worker"}


def pss_kb(supervisor: int) -> dict[str, int]:
    """Give kB by role (`worker/1`, `worker/2`, …) and their `total`; what is gone is left out."""
    sizes: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for pid in sorted([supervisor, *descendants(supervisor)]):
        try:
            role = ROLES.get(Path(f"/proc/{pid}/comm").read_text().strip(), "")
            found = PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue
        if role and found:
            counts[role] += 1
            name = f"{role}/{counts[role]}" if role == "worker" else role
            sizes[name] = int(found[1])
    return {**sizes, "total": sum(sizes.values())}
