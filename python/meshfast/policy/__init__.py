"""Policy: from resources to the snapshot document that workers run.

Pure functions: time, randomness, DNS and slots are arguments. Translation and validation across
resources live here, and nowhere else, so that CLI, agent and control plane agree.

    compile_source(source, *, generation, allocator, resolve) -> bytes
    build_source(…, build) -> (bytes, bytes)    the document, and the snapshot built from it
    sidecar.apply(…)                            the same from what the control plane sends in parts

Does not do: reading DNS, talking to workers, compiling regular expressions (the snapshot compiler
in `meshfast._core` does, and refuses what RE2 refuses; `blame` finds the line).

The names below are imported when they are used: the agent needs `sidecar` and `slots` only, and
YAML and the kinds would cost it megabytes that it promised not to take.

Tests: tests/core/test_golden.py, test_actions.py, test_names.py, test_slots.py, test_source.py,
test_blame.py, test_sidecar.py.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from meshfast.policy.slots import SLOTS_MAX, SlotAllocator
    from meshfast.policy.source import (
        Resolve,
        Source,
        build_loaded,
        build_source,
        compile_source,
        complete,
        load_source,
        warnings_about,
    )

__all__ = [
    "SLOTS_MAX",
    "Resolve",
    "SlotAllocator",
    "Source",
    "build_loaded",
    "build_source",
    "compile_source",
    "complete",
    "load_source",
    "warnings_about",
]

_HOMES = {
    "SLOTS_MAX": "meshfast.policy.slots",
    "SlotAllocator": "meshfast.policy.slots",
    "Resolve": "meshfast.policy.source",
    "Source": "meshfast.policy.source",
    "build_loaded": "meshfast.policy.source",
    "build_source": "meshfast.policy.source",
    "compile_source": "meshfast.policy.source",
    "complete": "meshfast.policy.source",
    "load_source": "meshfast.policy.source",
    "warnings_about": "meshfast.policy.source",
}


def __getattr__(name: str) -> object:
    """Import what is asked for from its home (PEP 562)."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)
