"""meshfast.cli.cpu: the CPUs of the affinity, cut by the quotas of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshfast.cli.cpu import cpus

V2 = "0::/a/b\n"
V1 = "7:cpu,cpuacct:/a\n3:memory:/a\n"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(quota: str, group: str = "a/b/") -> dict[str, str]:
    return {"proc/self/cgroup": V2, f"sys/fs/cgroup/{group}cpu.max": quota}


def v1(quota: str) -> dict[str, str]:
    folder = "sys/fs/cgroup/cpu,cpuacct/a"
    return {
        "proc/self/cgroup": V1,
        f"{folder}/cpu.cfs_quota_us": quota,
        f"{folder}/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        (v2("max 100000\n"), 8),
        (v2("200000 100000\n"), 2),
        (v2("150000 100000\n"), 2),
        (v2("10000 100000\n"), 1),
        (v2("1600000 100000\n"), 8),
        (v2("300000 100000\n", group="a/"), 3),
        (v2("300000 100000\n", group=""), 3),
        (v2("damaged\n"), 8),
        (v1("400000\n"), 4),
        (v1("-1\n"), 8),
    ],
)
def test_counts_what_affinity_and_quotas_leave(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert cpus(tree(tmp_path, files)) == expected


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    files = v2("600000 100000") | v2("200000 100000", group="a/")
    assert cpus(tree(tmp_path, files)) == 2


def test_this_machine_has_at_least_one() -> None:
    assert cpus() >= 1
