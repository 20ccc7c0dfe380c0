"""meshfast.resources.gaps: one mistake is one problem, and many are as many, in one round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshfast import _core
from meshfast.control.translate import check
from meshfast.errors import ConfigError, Problem
from meshfast.policy import SlotAllocator, Source, complete
from meshfast.policy.source import build_loaded
from meshfast.resources import load_bytes, load_text, read_bytes, render_yaml
from meshfast.resources.gaps import Gaps

GOLDEN = sorted(Path(__file__).parent.glob("golden/*.yaml"))
TEXTS = [path.read_bytes() for path in GOLDEN]
FILE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web.example.com]
  gateways: [edge]
  http:
    - match:
        - uri: {prefix: /cart}
          method: {exact: GET}
        - headers: {x-user: {regex: a.*}}
      route:
        - destination: {host: payment, subset: v1}
          weight: 90
        - destination: {host: payment, subset: v2, port: {number: 80}}
          weight: 10
          headers: {request: {set: {x-version: "2"}}}
      timeout: 3s
      retries: {attempts: 2, perTryTimeout: 1s}
    - match:
        - uri: {prefix: /slow}
      route:
        - {destination: {host: payment, port: {number: 80}}, weight: 1}
        - {destination: {host: inventory, port: {number: 80}}, weight: 1}
      fault: {delay: {fixedDelay: 1s, percentage: {value: 50}}}
    - name: rest
      route:
        - destination: {host: inventory}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payment}
spec:
  host: payment
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - port: {number: 8080, name: http, protocol: HTTP}
      hosts: ["*.example.com"]
      bind: 127.0.0.1
    - port: {number: 8080, name: http, protocol: HTTP}
      hosts: ["*.example.org"]
      bind: 127.0.0.2
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payment}
spec:
  hosts: [payment]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
    - {address: 10.0.0.1, labels: {version: v1}}
    - {address: 10.0.0.2, labels: {version: v2}, ports: {http: 8080}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inventory}
spec:
  hosts: [inventory]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.1.1}]
"""


class Mistake(NamedTuple):
    """What is written instead; the problem stands at `at`, which is in `wrong`."""

    right: str
    wrong: str
    at: str
    path: str
    says: str


IN_ONE_DOCUMENT = [
    Mistake("gateways: [edge]", "gateways: [egde]", "egde]", "gateways[0]", "there is no Gateway"),
    Mistake("uri: {prefix: /cart}", "uri: /cart", "/cart", "http[0].match[0].uri", "fields, got"),
    Mistake("{exact: GET}", "{exact: GET, prefix: P}", "{exact: GET,", "http[0].match[0].method",
            "only one of exact and prefix"),
    Mistake("regex: a.*", "regex: '('", "'('", "http[0].match[1].headers.x-user.regex",
            "not a regular expression"),
    Mistake("subset: v1}", "subset: v9}", "v9}", "http[0].route[0].destination.subset",
            "has no subset 'v9'"),
    Mistake("subset: v2, port: {number: 80}", "subset: v2, port: {number: 81}", "{number: 81}",
            "http[0].route[1].destination.port", "no port 81"),
    Mistake('x-version: "2"', 'Host: "2"', "Host: ", "http[0].route[1].headers.request.set.Host",
            "belongs to the proxy"),
    Mistake("timeout: 3s", "timeuot: 3s", "timeuot", "http[0].timeuot", "unknown field"),
    Mistake("retries: {attempts: 2,", "retries: {", "{ perTry", "http[0].retries", "is required"),
    Mistake("perTryTimeout: 1s", "perTryTimeout: 1", "1}", "http[0].retries.perTryTimeout",
            "expected a duration"),
    Mistake("match:\n        - uri: {prefix: /slow}\n", "mirror: {host: web}\n      match:\n"
            "        - uri: {prefix: /slow}\n", "mirror:", "http[1].mirror", "not supported"),
    Mistake("host: payment, port: {number: 80}}, weight: 1", "host: paymnt}, weight: 1", "paymnt}",
            "http[1].route[0].destination.host", "no ServiceEntry has the host"),
    Mistake("value: 50}", "value: 0.00001}", "0.00001}", "http[1].fault.delay.percentage.value",
            "less than one request in a million"),
    Mistake("fixedDelay: 1s,", "fixedDelay: 1s, fixedDelay: 2s,", "fixedDelay: 2s", "",
            "occurs twice"),
    Mistake("- destination: {host: inventory}\n", "- destination: {host: [inventory]}\n",
            "[inventory]", "http[2].route[0].destination.host", "expected a string"),
    Mistake("- name: rest", "- name: rest\n      redirect: {}", "redirect", "http[2].redirect",
            "not supported"),
]  # fmt: skip
BETWEEN_DOCUMENTS = [
    Mistake("labels: {version: v2}}\n---", "labels: [v2]}\n---", "[v2]", "subsets[1].labels",
            "expected fields"),
    Mistake("10.0.0.1, labels", "10.0.0.1:80, labels", "10.0.0.1:80", "endpoints[0].address",
            "without a port"),
    Mistake("ports: {http: 8080}", "ports: {htp: 8080}", "8080}", "endpoints[1].ports.htp",
            "no port named 'htp'"),
    Mistake('hosts: ["*.example.org"]', "hosts: []", "[]", "servers[1].hosts", "is empty"),
    Mistake("bind: 127.0.0.1\n", "bind: localhost\n", "localhost", "servers[0].bind",
            "an IPv4 or IPv6 address"),
    Mistake("host: payment\n", "host: payment\n  exportTo: ['*']\n", "exportTo", "exportTo",
            "not supported"),
    Mistake("endpoints: [{address: 10.0.1.1}]", "endpoint: []", "endpoint:", "endpoint",
            "unknown field"),
]  # fmt: skip
SUBSETS_OF = [
    pytest.param(IN_ONE_DOCUMENT, id="one document"),
    pytest.param(IN_ONE_DOCUMENT + BETWEEN_DOCUMENTS, id="five documents"),
]


def problems_of(data: bytes) -> list[Problem]:
    try:
        build_loaded(
            complete(read_bytes(data, "f.yaml"), _core.Snapshot.build),
            Source(config_path="f.yaml"),
            generation=1,
            allocator=SlotAllocator(),
            resolve=lambda host: [],
            build=_core.Snapshot.build,
        )
    except ConfigError as error:
        return list(error.problems)
    return []


def test_the_file_is_right_before_mistakes_are_made_in_it() -> None:
    assert problems_of(FILE.encode()) == []


def assert_says_exactly(mistakes: list[Mistake]) -> None:
    text = FILE
    for one in mistakes:
        assert text.count(one.right) == 1, one.right
        text = text.replace(one.right, one.wrong)
    found = problems_of(text.encode())
    lines = text.splitlines()
    for one in mistakes:
        [mine] = [
            problem
            for problem in found
            if one.says in problem.message
            and lines[problem.line - 1][problem.column - 1 :].startswith(one.at.splitlines()[0])
        ]
        assert mine.path == (f"spec.{one.path}" if one.path else "")
        found.remove(mine)
    assert found == []


@pytest.mark.parametrize("all", SUBSETS_OF)
def test_a_file_with_mistakes_of_every_class_says_all_of_them_and_nothing_else(
    all: list[Mistake],
) -> None:
    assert_says_exactly(all)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(IN_ONE_DOCUMENT + BETWEEN_DOCUMENTS), unique=True))
def test_any_of_the_mistakes_together_are_said_and_nothing_else(mistakes: list[Mistake]) -> None:
    assert_says_exactly(mistakes)


@pytest.mark.parametrize("file", [None, *GOLDEN], ids=lambda file: file.stem if file else "FILE")
@pytest.mark.parametrize("kind", ["zz!!zz", "''", "Gatewy", "[Gateway]"])
def test_an_unknown_kind_anywhere_is_one_problem(file: Path | None, kind: str) -> None:
    """It may be any, so nothing that seems to be missing is."""
    text = file.read_text() if file else FILE
    lines = text.splitlines()
    documents = [at for at, line in enumerate(lines) if line.startswith("kind: ")]
    assert documents
    for at in documents:
        if kind == "Gatewy" and lines[at] != "kind: Gateway":
            continue  # it is taken for the kind that it is like
        changed = [*lines[:at], f"kind: {kind}", *lines[at + 1 :]]
        said = [str(problem) for problem in problems_of("\n".join(changed).encode())]
        assert len(said) == 1, said
        assert "kind" in said[0]


@pytest.mark.parametrize("written", ["", "[]", "[mesh]", "[default/egde]"])
def test_gateways_that_are_none_are_one_problem_of_a_tcp_listener_too(written: str) -> None:
    """Its servers have no route for that reason alone."""
    [golden] = (path for path in GOLDEN if path.stem == "endpoints")
    text = golden.read_text()
    assert text.count("gateways: [") == 1
    before, _, after = text.partition("gateways: [")
    after = after.partition("]")[2]
    [problem] = problems_of(f"{before}gateways: {written}{after}".encode())
    assert problem.path.startswith("spec.gateways")


def test_a_tcp_server_that_no_route_was_meant_for_is_said_beside_other_problems() -> None:
    [golden] = (path for path in GOLDEN if path.stem == "endpoints")
    text = golden.read_text()
    [rule] = (one for one in text.split("---\n") if "kind: VirtualService" in one)
    said = [str(problem) for problem in problems_of(text.replace(rule, "").encode())]
    assert len(said) == 2, said
    assert all("no VirtualService has a tcp route for" in one for one in said)


@pytest.mark.parametrize(
    ("right", "wrong", "path"),
    [
        ("match: [{port: 5432}]", "match: [{port: 1}]", "spec.tcp[0].match[0].port"),
        ("host: db.example.com", "host: bd.example.com", "spec.tcp[1].route[0].destination.host"),
    ],
)
def test_what_is_wrong_with_a_tcp_route_leaves_no_server_without_one(
    right: str, wrong: str, path: str
) -> None:
    """The other route would take the connections of both servers."""
    [golden] = (path for path in GOLDEN if path.stem == "endpoints")
    text = golden.read_text()
    assert text.count(right) == 1
    found = problems_of(text.replace(right, wrong).encode())
    assert [problem.path for problem in found] == [path]


def steps(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the way to every value in a document, but not to the document."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for step, inner in items:
        yield (*path, step)
        yield from steps(inner, (*path, step))


def written(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def documents_of(text: bytes) -> list[Any]:
    return [msgspec.to_builtins(item.resource) for item in load_bytes(text, "f.yaml")]


def broken(documents: list[Any], at: int, path: tuple[str | int, ...]) -> bytes:
    """Write the documents with a list in a list in the place of one value; that fits nowhere."""
    copy = msgspec.json.decode(msgspec.json.encode(documents))
    place = copy[at]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = [[]]
    return b"\n---\n".join(msgspec.json.encode(one) for one in copy)


def free(path: tuple[str | int, ...]) -> bool:
    """Leave out what decides which schema counts, and text that no schema looks into."""
    return path != ("kind",)


@pytest.mark.parametrize("file", [None, *GOLDEN], ids=lambda file: file.stem if file else "FILE")
def test_one_wrong_value_anywhere_is_one_problem_in_its_place(file: Path | None) -> None:
    documents = documents_of(file.read_bytes() if file else FILE.encode())
    for at, document in enumerate(documents):
        for path in filter(free, steps(document)):
            found = problems_of(broken(documents, at, path))
            said = [str(problem) for problem in found]
            assert len(found) == 1, (at, written(path), said)
            assert found[0].path.startswith(written(path)[:40]), said
            assert found[0].line == 2 * at + 1


@settings(max_examples=300)
@given(st.data())
def test_any_wrong_values_are_said_and_no_consequence_of_them(data: st.DataObject) -> None:
    documents = documents_of(data.draw(st.sampled_from([FILE.encode(), *TEXTS])))
    places = [(at, path) for at, one in enumerate(documents) for path in steps(one) if free(path)]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6, unique=True))
    outermost = [
        (at, path)
        for at, path in chosen
        if not any(at == other and path[: len(way)] == way != path for other, way in chosen)
    ]
    for at, path in outermost:
        place = documents[at]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = [[]]
    text = b"\n---\n".join(msgspec.json.encode(one) for one in documents)
    found = [(problem.line, problem.path) for problem in problems_of(text)]
    for line, way in found:
        assert any(
            line == 2 * at + 1 and way.startswith(written(path)[:40]) for at, path in outermost
        ), (line, way)
    assert len(found) == len(outermost)


@pytest.mark.parametrize("subset", ["v1", "v3"])
def test_a_second_rule_of_a_host_is_one_problem_wherever_the_subset_is(subset: str) -> None:
    [rule] = (text for text in FILE.split("---\n") if "kind: DestinationRule" in text)
    second = rule.replace("name: payment", "name: again").replace("v2", "v3")
    text = FILE.replace("subset: v1}", f"subset: {subset}}}") + "---\n" + second
    [problem] = problems_of(text.encode())
    assert problem.message.startswith("payment.default has two DestinationRules")
    assert problem.path == "spec.host"


def test_one_wrong_value_anywhere_is_one_problem_for_the_control_plane_too() -> None:
    text = FILE.replace("  gateways: [edge]\n", "")
    resources = [item.resource for item in load_text(text, "f.yaml")]
    stored = load_text(render_yaml(one for one in resources if one.kind != "Gateway"), "stored")
    documents = [msgspec.to_builtins(item.resource) for item in stored]
    for at, document in enumerate(documents):
        for path in filter(free, steps(document)):
            reading = read_bytes(broken(documents, at, path), "f.yaml")
            new = {(item.resource.kind, item.resource.metadata.name) for item in reading.resources}
            kept = [
                item
                for item in stored
                if (item.resource.kind, item.resource.metadata.name) not in new
            ]
            with pytest.raises(ConfigError) as refused:
                check(
                    reading.resources,
                    kept,
                    {},
                    _core.Snapshot.build,
                    refused=reading.problems,
                    unread=reading.unread,
                )
            said = [str(problem) for problem in refused.value.problems]
            assert len(said) == 1, (at, written(path), said)


def test_a_gap_hides_what_is_in_it_and_touches_what_is_around_it() -> None:
    gaps = Gaps.at(["spec.http[1].route"])
    for path, is_hidden, is_touched in (
        ("spec.http[1].route", True, True),
        ("spec.http[1].route[0].weight", True, True),
        ("spec.http[1]", False, True),
        ("spec", False, True),
        ("", False, True),
        ("spec.http[1].routes", False, False),
        ("spec.http[10]", False, False),
        ("metadata", False, False),
    ):
        assert (gaps.hide(path), gaps.touch(path)) == (is_hidden, is_touched), path
    assert Gaps.at([""]).hide("spec")
    assert not Gaps().touch("")
