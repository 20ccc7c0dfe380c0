"""meshfast.resources.load: files, documents, lists and the places of their fields."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.errors import ConfigError
from meshfast.resources import load_bytes, load_file, load_text

PROXY = "apiVersion: meshfast.dev/v1\nkind: ForwardProxy\nmetadata: {name: a}\nspec: {port: 1}\n"


def test_loads_every_document_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(PROXY + "---\n" + PROXY.replace("name: a", "name: b"))
    assert [item.resource.metadata.name for item in load_file(file)] == ["a", "b"]


def test_finds_the_place_of_a_field_and_of_the_nearest_one_around_it() -> None:
    (item,) = load_text("# first\n" + PROXY, "f.yaml")
    assert item.origin.place("spec", "port") == "f.yaml:5:14"
    assert item.origin.place("spec", "bind") == "f.yaml:5:7"
    assert item.origin.place("metadata", "name", 0) == "f.yaml:4:18"
    assert item.origin.problem("m", "spec", 2, "x").path == "spec[2].x"


def test_opens_a_list_of_resources_and_keeps_the_way_to_each() -> None:
    items = "\n".join("    " + line for line in PROXY.splitlines())
    text = "apiVersion: v1\nkind: List\nitems:\n  -\n" + items + "\n"
    (item,) = load_text(text, "f.yaml")
    assert str(item.origin.problem("m", "spec", "port")) == "f.yaml:8:18: items[0].spec.port: m"
    with pytest.raises(ConfigError, match=r"f\.yaml:8:12: items\[0\]\.spec\.prt: unknown field"):
        load_text(text.replace("port", "prt"), "f.yaml")


@pytest.mark.parametrize("text", ["", "---\n", "# only a comment\n"])
def test_refuses_a_file_without_a_resource(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml: there is no resource in the file$"):
        load_text(text, "f.yaml")


def test_refuses_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file: No such file or directory"):
        load_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the file: Is a directory"):
        load_file(tmp_path)


def test_refuses_a_file_without_an_end() -> None:
    with pytest.raises(ConfigError, match="at most 8388608 are read"):
        load_file(os.devnull.replace("null", "zero"))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_with_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        load_bytes(data, "f.yaml")


@given(st.data())
def test_any_damage_to_a_good_file_loads_or_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PROXY)))
    length = data.draw(st.integers(0, 10))
    inserted = data.draw(st.binary(max_size=10))
    damaged = PROXY.encode()[:at] + inserted + PROXY.encode()[at + length :]
    with suppress(ConfigError):
        assert load_bytes(damaged, "f.yaml")
