"""Where the Rust crates may point, and who may name pyo3 and unsafe.

    python → engine, mesh      engine → wire, mesh      wire, mesh → none of ours

Read from ``cargo metadata`` and from the tracked sources; nothing is compiled.
"""

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.repository import ROOT, text, tracked

# crate → (ours it may depend on, whether that is everything it may use besides the listed others)
OURS = {
    "meshfast-engine": {"meshfast-mesh", "meshfast-wire"},
    "meshfast-mesh": set(),
    "meshfast-python": {"meshfast-engine", "meshfast-mesh"},
    "meshfast-wire": set(),
}
# What the pure crates may use at run time: no sockets, clocks, threads, TLS or Python.
PURE = {
    "meshfast-mesh": {"postcard", "regex", "serde", "serde_json"},
    "meshfast-wire": {"httparse", "memchr"},
}
# Outside the operating-system room, with the reason.
UNSAFE_ELSEWHERE = {
    "rust/mesh/tests/allocation.rs": "counts allocations: GlobalAlloc is an unsafe trait",
}
# An unsafe block, function, impl or extern; not the word in prose or in a lint's name.
UNSAFE = re.compile(r"^[^/\"]*\bunsafe\s*(\{|fn|impl|extern|trait)", re.MULTILINE)
CLOCKS = re.compile(r"^(?!\s*//).*\b(Instant|SystemTime)::now\b", re.MULTILINE)
PYO3 = re.compile(r"^(?!\s*//).*\bpyo3\b", re.MULTILINE)


@cache
def dependencies() -> dict[str, set[str]]:
    """Return crate → names of its run-time dependencies."""
    command = ["cargo", "metadata", "--format-version=1", "--no-deps", "--offline", "--locked"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {
        package["name"]: {
            dependency["name"]
            for dependency in package["dependencies"]
            if dependency["kind"] != "dev"
        }
        for package in json.loads(done.stdout)["packages"]
    }


def test_the_workspace_is_the_four_crates() -> None:
    assert set(dependencies()) == set(OURS)


@pytest.mark.parametrize("crate", OURS)
def test_a_crate_depends_only_on_crates_below_it(crate: str) -> None:
    ours = {name for name in dependencies()[crate] if name.startswith("meshfast-")}
    assert ours <= OURS[crate]


@pytest.mark.parametrize("crate", PURE)
def test_a_pure_crate_uses_only_what_is_listed_for_it(crate: str) -> None:
    assert dependencies()[crate] <= PURE[crate]


def test_only_the_binding_depends_on_pyo3() -> None:
    assert {crate for crate, names in dependencies().items() if "pyo3" in names} == {
        "meshfast-python"
    }


def test_only_the_binding_names_pyo3() -> None:
    sources = tracked("rust/*.rs")
    assert sources
    naming = [path for path in sources if PYO3.search(text(path))]
    assert all(path.is_relative_to("rust/python") for path in naming), naming


def test_unsafe_stays_in_the_operating_system_room() -> None:
    found = {
        path.as_posix()
        for path in tracked("rust/*.rs")
        if UNSAFE.search(text(path)) and not path.is_relative_to("rust/engine/src/os")
    }
    assert found == set(UNSAFE_ELSEWHERE)


def test_only_the_clock_reads_the_time() -> None:
    sources = [
        path for path in tracked("rust/*/src/*.rs") if "tests" not in path.with_suffix("").parts
    ]
    reading = [path for path in sources if CLOCKS.search(text(path).partition("#[cfg(test)]")[0])]
    assert [path.as_posix() for path in reading] in ([], ["rust/engine/src/clock.rs"])


@pytest.mark.parametrize("crate", ["wire", "mesh"])
def test_a_pure_crate_forbids_unsafe(crate: str) -> None:
    assert "#![forbid(unsafe_code)]" in text(Path(f"rust/{crate}/src/lib.rs"))


@pytest.mark.parametrize("crate", ["engine", "python"])
def test_a_crate_that_touches_the_system_denies_unsafe_by_default(crate: str) -> None:
    assert "#![deny(unsafe_code)]" in text(Path(f"rust/{crate}/src/lib.rs"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("    unsafe { libc::close(fd) };", True),
        ("pub unsafe fn map(fd: RawFd) {}", True),
        ("unsafe impl Send for Map {}", True),
        ("// an unsafe { block } in prose", False),
        ("#![forbid(unsafe_code)]", False),
    ],
)
def test_the_pattern_finds_unsafe_code_and_not_the_word(line: str, found: bool) -> None:
    assert bool(UNSAFE.search(line)) is found
