"""meshfast.policy.source: files and flags end in the same documents, by one path."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator, Source, compile_source, load_source
from meshfast.policy.document import Document, decode_document
from meshfast.resources import render_json, render_yaml

FLAGS = [
    Source(listen=":8080", to="localhost:9000"),
    Source(listen="127.0.0.1:8080", to="10.0.0.1:80"),
    Source(listen="[::1]:8080", to="[2001:db8::1]:80"),
    Source(listen=":3128", forward=True),
]


def compiled(source: Source, allocator: SlotAllocator | None = None) -> Document:
    document = compile_source(
        source,
        generation=3,
        allocator=allocator or SlotAllocator(),
        resolve=lambda host: ["192.0.2.7"] if host == "localhost" else [],
    )
    return decode_document(document)


@pytest.mark.parametrize("source", FLAGS, ids=str)
@pytest.mark.parametrize("render", [render_yaml, render_json])
def test_what_flags_print_compiles_to_the_same_document(
    source: Source, render: object, tmp_path: Path
) -> None:
    assert callable(render)
    file = tmp_path / "printed"
    file.write_text(render(item.resource for item in load_source(source)))
    assert compiled(Source(config_path=str(file))) == compiled(source)


@pytest.mark.parametrize(
    ("source", "listener", "endpoints"),
    [
        (Source(listen=":1", to="10.0.0.1:65535"), "gateway/0.0.0.0:1", ["10.0.0.1:65535"]),
        (FLAGS[0], "gateway/0.0.0.0:8080", ["192.0.2.7:9000"]),
        (FLAGS[1], "gateway/127.0.0.1:8080", ["10.0.0.1:80"]),
        (FLAGS[2], "gateway/[::1]:8080", ["[2001:db8::1]:80"]),
        (FLAGS[3], "outbound/127.0.0.1:3128", []),
    ],
)
def test_flags_stand_for_a_listener_and_an_upstream(
    source: Source, listener: str, endpoints: list[str]
) -> None:
    document = compiled(source)
    assert document.generation == 3
    assert [found.name for found in document.listeners] == [listener]
    addresses = [end.address for cluster in document.clusters for end in cluster.endpoints]
    assert addresses == endpoints


@pytest.mark.parametrize(
    "listen", ["8080", ":0", ":65536", "example.com:80", "::1:80", "[x]:80", ""]
)
def test_refuses_an_address_that_cannot_be_listened_on(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"^--listen: expected \[IP\]:PORT"):
        compiled(Source(listen=listen, to="a:1"))


@pytest.mark.parametrize("to", ["a", ":80", "a:0", "a b:80", "*:80", "[a]:80", "::1:80"])
def test_refuses_an_upstream_that_is_no_host_and_port(to: str) -> None:
    with pytest.raises(ConfigError, match=r"^--to: expected HOST:PORT"):
        compiled(Source(listen=":80", to=to))


@pytest.mark.parametrize(
    "source", [Source(), Source(listen=":80"), Source(listen=":80", to="a:1", forward=True)]
)
def test_a_source_has_exactly_one_form(source: Source) -> None:
    with pytest.raises(ValueError, match="a source is a config_path, or listen and one of"):
        load_source(source)


def test_settings_of_the_agent_are_a_source() -> None:
    settings = {"listen": ":80", "to": "a:1", "access_log": "off", "dns_refresh_s": 5}
    assert msgspec.convert(settings, Source) == Source(listen=":80", to="a:1", access_log="off")


def test_workers_write_no_log_that_nobody_reads() -> None:
    for access_log, disabled in (("off", True), ("/dev/stdout", False)):
        source = Source(listen=":80", to="127.0.0.1:1", access_log=access_log)
        assert compiled(source, SlotAllocator()).access_log_disabled is disabled


def test_a_refused_source_leaves_the_allocator_as_it_was(tmp_path: Path) -> None:
    allocator = SlotAllocator()
    compiled(FLAGS[0], allocator)
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: Gateway\n")
    with pytest.raises(ConfigError):
        compiled(Source(config_path=str(broken)), allocator)
    again = compiled(FLAGS[0], allocator)
    assert [end.slot for cluster in again.clusters for end in cluster.endpoints] == [0]


def test_each_name_is_resolved_once(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(render_yaml(item.resource for item in load_source(FLAGS[0])))
    text = file.read_text().replace("address: localhost", "address: localhost\n      weight: 2")
    extra = "  endpoints:\n    - address: localhost\n      ports: {http: 9001}\n"
    file.write_text(text.replace("  endpoints:\n", extra))
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["192.0.2.7"]

    source = Source(config_path=str(file))
    data = compile_source(source, generation=1, allocator=SlotAllocator(), resolve=resolve)
    (cluster,) = decode_document(data).clusters
    assert [end.address for end in cluster.endpoints] == ["192.0.2.7:9001", "192.0.2.7:9000"]
    assert asked == ["localhost"]
