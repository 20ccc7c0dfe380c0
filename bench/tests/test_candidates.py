"""Behaviour of bench.candidates: the table is complete, and its files render."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from bench.candidates import (
    CANDIDATES,
    ORIGIN,
    PEERS,
    Candidate,
    MissingError,
    candidate_named,
    find_binary,
    render,
)
from bench.cases import CASES, Case, body
from bench.measurement import write_launch

VALUES = {
    "binary": "program",
    "body": "abc",
    "body_bytes": "3",
    "listen_port": "1001",
    "upstream_port": "1002",
    "workers": "3",
}
EVERYONE = (ORIGIN, *CANDIDATES)


@pytest.mark.parametrize("candidate", EVERYONE, ids=lambda candidate: candidate.name)
def test_every_launch_renders_without_a_name_left(candidate: Candidate, tmp_path: Path) -> None:
    for launch in chain(*candidate.launches.values()):
        arguments = write_launch(launch, VALUES, tmp_path)
        written = "".join(path.read_text() for path in tmp_path.iterdir())
        assert "@" not in " ".join(arguments)
        assert "1001" in " ".join(arguments) + written
        if candidate is not ORIGIN:
            assert "1002" in " ".join(arguments) + written


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_candidate_says_what_it_does_not_do(candidate: Candidate) -> None:
    assert candidate.setting
    assert candidate.leaves_out
    assert candidate.how_to_get


def test_every_configuration_belongs_to_a_launch() -> None:
    named = {
        launch.config
        for candidate in EVERYONE
        for launch in chain(*candidate.launches.values())
        if launch.config
    }
    assert named == {path.name for path in PEERS.iterdir()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_can_be_run_by_the_subject_the_relay_and_a_peer(case: Case) -> None:
    able = {candidate.name for candidate in CANDIDATES if case.topology in candidate.launches}
    assert {"meshfast", "relay"} < able


def test_a_name_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="@listen_prot@ has no value"):
        render("listen @listen_prot@;", VALUES)


def test_what_is_not_a_name_is_left_alone() -> None:
    assert render('"@type": a@b.example', VALUES) == '"@type": a@b.example'


def test_an_unknown_candidate_is_refused_with_the_known_names() -> None:
    with pytest.raises(MissingError, match=r"no candidate is named ngnix.*nginx"):
        candidate_named("ngnix")


def test_an_absent_program_is_refused_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--meshfast PATH"):
        find_binary(candidate_named("meshfast"), tmp_path / "meshfast")


def test_a_body_has_its_length_and_is_not_constant() -> None:
    assert len(body(128)) == 128
    assert len(set(body(128))) > 20
