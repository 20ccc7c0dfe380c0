"""meshfast.resources.render: what is written loads to equal resources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.resources import kinds, load_bytes, load_text, render_json, render_yaml

FILES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))
RENDERERS = pytest.mark.parametrize("render", [render_yaml, render_json])
Render = Callable[[list[kinds.Resource]], str]


@RENDERERS
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_renders_what_loads_to_the_same_resources(render: Render, file: Path) -> None:
    resources = [item.resource for item in load_bytes(file.read_bytes(), file.name)]
    assert [item.resource for item in load_text(render(resources), "again")] == resources


TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20
) | st.sampled_from(["yes", "null", "~", "1e3", "0x1F", "0o17", "014", "12:30", ".nan", "<<", "="])


@RENDERERS
@given(TEXTS)
def test_renders_any_text_so_that_it_stays_a_string(render: Render, text: str) -> None:
    metadata = kinds.Metadata(name="a", labels={"x": text})
    proxy = kinds.ForwardProxy(
        api_version="meshfast.dev/v1",
        kind="ForwardProxy",
        metadata=metadata,
        spec=kinds.ForwardProxySpec(port=3128),
    )
    (item,) = load_text(render([proxy]), "again")
    assert item.resource == proxy


def test_leaves_defaults_out() -> None:
    (file,) = [file for file in FILES if file.stem == "forward"]
    text = render_yaml(item.resource for item in load_bytes(file.read_bytes(), "f"))
    assert "namespace" not in text
    assert "127.0.0.1" not in text
