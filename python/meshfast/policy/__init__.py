"""Policy: from resources to the snapshot document that workers run.

Pure functions: time, randomness, DNS and slots are arguments. Translation and validation across
resources live here, and nowhere else, so that CLI, agent and control plane agree.

    compile_source(source, *, generation, allocator, resolve) -> bytes

Does not do: reading DNS, talking to workers, compiling regular expressions (the snapshot compiler
in `meshfast._core` does, and refuses what RE2 refuses).

Tests: tests/core/test_compile.py, test_checks.py, test_slots.py, test_source.py.
"""

from meshfast.policy.slots import SLOTS_MAX, SlotAllocator
from meshfast.policy.source import Resolve, Source, compile_source, load_and_compile, load_source

__all__ = [
    "SLOTS_MAX",
    "Resolve",
    "SlotAllocator",
    "Source",
    "compile_source",
    "load_and_compile",
    "load_source",
]
