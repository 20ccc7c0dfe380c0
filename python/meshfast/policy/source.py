"""Where the configuration of a proxy comes from, and the one way from there to a document.

The CLI (at start, and for `--mode validate`) and the agent (at SIGHUP and when DNS answers change)
both come through here, so that what the validator accepts is what the server runs.

Nothing here resolves names: `resolve` is an argument. The only I/O is reading `config_path`.

Tests: tests/core/test_source.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from meshfast.errors import ConfigError
from meshfast.policy.blame import locate
from meshfast.policy.compile import compile
from meshfast.policy.document import Document, encode_document
from meshfast.policy.forward import forward_proxy, static_forward
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import Loaded, load_file, load_text, render_yaml

__all__ = ["Resolve", "Source", "build_source", "compile_source", "load_source"]

Resolve = Callable[[str], list[str]]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the resources come from; exactly one of the three forms.

    - `config_path`: a file of resources, read again at every compile.
    - `listen` and `to`: what `proxy --listen A --to B` stands for.
    - `listen` and `forward`: an HTTP forward proxy.

    `access_log` is where lines go; `off` means that workers need not write any.
    Unknown keys are skipped, so `msgspec.convert(agent_settings, Source)` takes the settings of the
    agent as they are.
    """

    config_path: str | None = None
    listen: str | None = None
    to: str | None = None
    forward: bool = False
    access_log: str = "/dev/stdout"


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
    _, document = _compile(source, generation, allocator, resolve)
    return encode_document(document)


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
    resources, document = _compile(source, generation, allocator, resolve)
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


def _compile(
    source: Source, generation: int, allocator: SlotAllocator, resolve: Resolve
) -> tuple[list[Loaded], Document]:
    resources = load_source(source)
    document = compile(resources, generation=generation, allocator=allocator, resolve=resolve)
    disabled = source.access_log == "off"
    return resources, msgspec.structs.replace(document, access_log_disabled=disabled)
