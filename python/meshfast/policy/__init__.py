"""Policy: from resources to the snapshot document that workers run.

Pure functions: time, randomness, DNS and slots are arguments. Translation and validation across
resources live here, and nowhere else, so that CLI, agent and control plane agree.

    compile_source(source, *, generation, allocator, resolve) -> bytes
    build_source(…, build) -> (bytes, bytes)    the document, and the snapshot built from it

Does not do: reading DNS, talking to workers, compiling regular expressions (the snapshot compiler
in `meshfast._core` does, and refuses what RE2 refuses; `blame` finds the line).

Tests: tests/core/test_golden.py, test_names.py, test_slots.py, test_source.py, test_blame.py.
"""

from meshfast.policy.slots import SLOTS_MAX, SlotAllocator
from meshfast.policy.source import (
    Resolve,
    Source,
    build_loaded,
    build_source,
    compile_source,
    load_source,
    without_effect,
)

__all__ = [
    "SLOTS_MAX",
    "Resolve",
    "SlotAllocator",
    "Source",
    "build_loaded",
    "build_source",
    "compile_source",
    "load_source",
    "without_effect",
]
