"""Where the configuration of a proxy comes from, and the one way from there to a document.

The CLI (at start, and for `--mode validate`) and the agent (at SIGHUP and when DNS answers change)
both come through here, so that what the validator accepts is what the server runs.

Nothing here resolves names: `resolve` is an argument. The only I/O is reading `config_path`.

Tests: tests/core/test_source.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from meshfast.errors import ConfigError, Problem, in_file_order
from meshfast.policy.blame import locate
from meshfast.policy.clusters import warn_of_selection
from meshfast.policy.compile import compile, problems_among
from meshfast.policy.destination_rules import warn_of_rules
from meshfast.policy.document import Document, Tracing, encode_document
from meshfast.policy.expressions import check_expressions
from meshfast.policy.forward import forward_proxy, static_forward
from meshfast.policy.index import Index
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import Loaded, Reading, certain, load_text, read_file, render_yaml
from meshfast.resources.kinds import Gateway

__all__ = [
    "Resolve",
    "Source",
    "build_loaded",
    "build_source",
    "compile_source",
    "complete",
    "load_source",
    "warnings_about",
]

Build = Callable[[bytes], bytes]  # `meshfast._core.Snapshot.build`
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
    build: Build,
) -> tuple[bytes, bytes]:
    """Do what `compile_source` does, and build the snapshot: gives the document and the blob.

    `build` is `meshfast._core.Snapshot.build`. What it refuses (regular expressions) is raised as a
    ConfigError with the place in the source; the slots of the refused document stay with their
    endpoints until they are released.
    """
    return build_loaded(
        load_source(source, build),
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
    build: Build,
) -> tuple[bytes, bytes]:
    """Do what `build_source` does with resources that are loaded already."""
    try:
        document = compile(resources, generation=generation, allocator=allocator, resolve=resolve)
    except ConfigError as error:
        found = check_expressions(Index.of(resources).virtual_services, build)
        raise ConfigError(in_file_order([*error.problems, *found])) from None
    document = source.complete(document)
    encoded = encode_document(document)
    try:
        return encoded, build(encoded)
    except ConfigError as error:
        raise locate(error, document, resources) from None


def load_source(source: Source, build: Build | None = None) -> list[Loaded]:
    """Load the resources that the source stands for; raises ConfigError, as `complete` does."""
    if source.config_path is not None:
        return complete(read_file(source.config_path), build)
    if source.listen is None or (source.to is None) != source.forward:
        raise ValueError("a source is a config_path, or listen and one of to and forward")
    if source.to is not None:
        return load_text(render_yaml(static_forward(source.listen, source.to)), "--listen --to")
    return load_text(render_yaml(forward_proxy(source.listen)), "--listen --forward")


def complete(reading: Reading, build: Build | None = None) -> list[Loaded]:
    """Give the resources; raises ConfigError when some could not be read.

    What is wrong with what could be read, and between the resources, is then raised with it, so
    that a file takes one round, and what `build` says of their regular expressions.
    """
    if reading.problems:
        problems = [*reading.problems, *problems_among(reading.resources, reading.unread)]
        if build is not None:
            rules = Index.of(reading.resources).virtual_services
            problems += certain(check_expressions(rules, build))
        raise ConfigError(in_file_order(problems))
    return reading.resources


def warnings_about(resources: Sequence[Loaded]) -> list[Problem]:
    """Find what is valid and changes nothing here; an operator may have expected otherwise."""
    index = Index.of(resources)
    problems = [problem for item in resources for problem in item.warnings]
    problems += [*warn_of_rules(index), *warn_of_selection(index.entries, index.workloads)]
    for item in resources:
        if isinstance(item.resource, Gateway) and item.resource.spec.selector:
            message = "the selector has no effect: a proxy serves every Gateway of its file"
            problems.append(item.origin.problem(message, "spec", "selector"))
    return in_file_order(problems)
