"""meshfast.policy.blame: what the snapshot compiler refuses is found in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshfast import _core
from meshfast.errors import ConfigError, Problem
from meshfast.policy import SlotAllocator, Source, build_source
from meshfast.policy.blame import locate
from meshfast.policy.document import Document, Workload

MATCHES = Path(__file__).parent / "golden/matches.yaml"


def built(source: Source) -> tuple[bytes, bytes]:
    return build_source(
        source,
        generation=1,
        allocator=SlotAllocator(),
        resolve=lambda host: [],
        build=_core.Snapshot.build,
    )


@pytest.mark.parametrize(
    ("good", "bad", "place"),
    [
        ("uri: {exact: /cart}", "uri: {regex: '('}", "spec.http[0].match[0].uri.regex"),
        ("method: {exact: GET}", "method: {regex: '('}", "spec.http[0].match[0].method.regex"),
        ('regex: "a.*"', "regex: '('", "spec.http[0].match[0].headers.x-user.regex"),
        ("x-scanner: {}", "x-a: {regex: '('}", "spec.http[0].match[0].withoutHeaders.x-a.regex"),
        ('regex: ".+"', "regex: '('", "spec.http[0].match[0].queryParams.debug.regex"),
        ("prefix: /basket/", "regex: '('", "spec.http[0].match[1].uri.regex"),
        ("{prefix: /admin}", "{regex: '('}", "spec.http[1].match[0].uri.regex"),
    ],
)
def test_finds_a_regular_expression_in_the_file(
    good: str, bad: str, place: str, tmp_path: Path
) -> None:
    # A Gateway of the same name is not to blame.
    text = MATCHES.read_text().replace("{name: edge,", "{name: shop,").replace("[edge]", "[shop]")
    text = text.replace(good, bad)
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        built(Source(config_path=str(file)))
    for problem in refused.value.problems:
        assert (problem.file, problem.path) == (str(file), place)
        line = text.splitlines()[problem.line - 1]
        assert line[problem.column - 1 :].startswith("'('")
        assert "regular expression" in problem.message


def test_skips_conditions_on_other_ports_when_it_counts(tmp_path: Path) -> None:
    other = "        - {port: 8081, uri: {exact: /first}}\n        - uri: {prefix: /basket/}"
    text = MATCHES.read_text().replace("        - uri: {prefix: /basket/}", other)
    file = tmp_path / "f.yaml"
    file.write_text(text.replace("prefix: /basket/", "regex: '('"))
    with pytest.raises(ConfigError) as refused:
        built(Source(config_path=str(file)))
    assert {problem.path for problem in refused.value.problems} == {
        "spec.http[0].match[2].uri.regex"
    }


def test_gives_the_document_and_the_snapshot_of_it() -> None:
    document, blob = built(Source(config_path=str(MATCHES)))
    assert _core.Snapshot.build(document) == blob


def test_passes_on_what_no_line_is_to_blame_for() -> None:
    workload = Workload(name="", namespace="", app="", revision="")
    document = Document(generation=1, workload=workload, listeners=(), clusters=())
    error = ConfigError("clusters[0].endpoints[0].slot: another endpoint has this slot")
    assert locate(error, document, []).problems == (Problem(str(error)),)
