"""The demo as a user runs it: the installed command, its JSON, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from meshfast.cli.demo.load import Sample

MESHFAST = Path(sys.executable).with_name("meshfast")


def test_every_act_comes_out_as_expected() -> None:
    command = [str(MESHFAST), "demo", "--duration", "5", "-o", "json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    story = json.loads(run.stdout)
    assert story["requests"] > 500
    assert story["errors"] <= 4
    assert abs(story["v2_share"] - 0.1) < 0.05
    assert story["rollback_share"] == 0
    assert [act["problem"] for act in story["acts"]] == [""] * 5


def test_a_sample_counts_errors_as_requests_and_not_as_answers() -> None:
    sample = Sample(1.0, Counter(v1=8, v2=2), errors=5, latencies_ms=[1.0, 2.0, 3.0, 4.0])
    assert sample.requests == 15
    assert sample.share("v2") == 0.2
    assert (sample.percentile_ms(50), sample.percentile_ms(99)) == (3.0, 4.0)
    assert Sample().share("v2") == 0.0
