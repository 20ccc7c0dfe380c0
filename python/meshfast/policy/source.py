"""Where the configuration of a proxy comes from, and the one way from there to a document.

The CLI (at start, and for `--mode validate`) and the agent (at SIGHUP and when DNS answers change)
both come through here, so that what the validator accepts is what the server runs.

Nothing here resolves names: `resolve` is an argument. The only I/O is reading `config_path`.

Tests: tests/core/test_source.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from meshfast.errors import ConfigError, Problem
from meshfast.policy.blame import locate
from meshfast.policy.compile import compile
from meshfast.policy.document import Document, Tracing, encode_document
from meshfast.policy.forward import forward_proxy, static_forward
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import Loaded, load_file, load_text, render_yaml
from meshfast.resources.kinds import Gateway

__all__ = [
    "Resolve",
    "Source",
    "build_loaded",
    "build_source",
    "compile_source",
    "load_source",
    "without_effect",
]

Resolve = Callable[[str], list[str]]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the resources come from; exactly one of the three forms.

    - `config_path`: a file of resources, read again at every compile.
    - `listen` and `to`: what `proxy --listen A --to B` stands for.
    - `listen` and `forward`: an HTTP forward proxy.

    `access_log` is where lines go; `off` means that workers need not write any. `zipkin_address`,
    `host:port`, is where spans go; without it none are recorded. Of the traces that begin here
    `sampling_parts_per_million` are sampled.
    Unknown keys are skipped, so `msgspec.convert(agent_settings, Source)` takes the settings of the
    agent as they are.
    """

    config_path: str | None = None
    listen: str | None = None
    to: str | None = None
    forward: bool = False
    access_log: str = "/dev/stdout"
    zipkin_address: str | None = None
    sampling_parts_per_million: int = 0

    @property
    def tracing(self) -> Tracing | None:
        """What the document says of it."""
        if self.zipkin_address is None:
            return None
        return Tracing(sampling_parts_per_million=self.sampling_parts_per_million)

    def complete(self, document: Document) -> Document:
        """Add to a document what does not come from resources."""
        return msgspec.structs.replace(
            document, access_log_disabled=self.access_log == "off", tracing=self.tracing
        )


def compile_source(
    source: Source,
    *,
    generation: int,
    allocator: SlotAllocator,
    resolve: Resolve,
) -> bytes:
    """Read the source and compile it to the JSON of a snapshot document.

    `resolve` maps a host name to its IP addresses, in a stable order; an empty list is a name that
    does not resolve now, whose cluster then has no endpoint. It is called once per name.

    Raises ConfigError with every problem found; the allocator is unchanged then.
    """
    document = compile(
        load_source(source), generation=generation, allocator=allocator, resolve=resolve
    )
    return encode_document(source.complete(document))


def build_source(
    source: Source,
    *,
    generation: int,
    allocator: SlotAllocator,
    resolve: Resolve,
    build: Callable[[bytes], bytes],
) -> tuple[bytes, bytes]:
    """Do what `compile_source` does, and build the snapshot: gives the document and the blob.

    `build` is `meshfast._core.Snapshot.build`. What it refuses (regular expressions) is raised as a
    ConfigError with the place in the source; the slots of the refused document stay with their
    endpoints until they are released.
    """
    return build_loaded(
        load_source(source),
        source,
        generation=generation,
        allocator=allocator,
        resolve=resolve,
        build=build,
    )


def build_loaded(
    resources: Sequence[Loaded],
    source: Source,
    *,
    generation: int,
    allocator: SlotAllocator,
    resolve: Resolve,
    build: Callable[[bytes], bytes],
) -> tuple[bytes, bytes]:
    """Do what `build_source` does with resources that are loaded already."""
    document = compile(resources, generation=generation, allocator=allocator, resolve=resolve)
    document = source.complete(document)
    encoded = encode_document(document)
    try:
        return encoded, build(encoded)
    except ConfigError as error:
        raise locate(error, document, resources) from None


def load_source(source: Source) -> list[Loaded]:
    """Load the resources that the source stands for; raises ConfigError."""
    if source.config_path is not None:
        return load_file(source.config_path)
    if source.listen is None or (source.to is None) != source.forward:
        raise ValueError("a source is a config_path, or listen and one of to and forward")
    if source.to is not None:
        return load_text(render_yaml(static_forward(source.listen, source.to)), "--listen --to")
    return load_text(render_yaml(forward_proxy(source.listen)), "--listen --forward")


def without_effect(resources: Sequence[Loaded]) -> list[Problem]:
    """Find what is valid and changes nothing here; an operator may have expected otherwise."""
    return [
        item.origin.problem(
            "the selector has no effect: a proxy serves every Gateway of its file",
            "spec",
            "selector",
        )
        for item in resources
        if isinstance(item.resource, Gateway) and item.resource.spec.selector
    ]
