"""Who may import the extension meshfast._core, and which half of it.

The extension is loaded after the fork by those that need it: the worker runs an engine, the agent,
the compiler of policy and the CLI use the offline half, and the agent makes its keys and speaks TLS
to the control plane. import-linter
sees no extension modules, so the imports are read from the syntax trees.
"""

import ast
from pathlib import Path

from tests.repository import text, tracked

ONLINE = frozenset({"run_worker"})
OFFLINE = frozenset({"BUCKETS_MS", "SharedMemory", "Snapshot"})
MESH = frozenset({"TlsClient", "certificate_request", "generate_key"})
ROOMS = {"agent": OFFLINE | MESH, "cli": OFFLINE, "policy": OFFLINE, "worker": ONLINE}


def room(path: Path) -> str:
    """Return the room of a module: ``agent`` for python/meshfast/agent/health.py."""
    parts = path.with_suffix("").parts
    return parts[0] if parts[0] == "control" else parts[2]


def names_taken(tree: ast.Module) -> set[str]:
    """Return what a module takes from the extension; ``*`` for the whole module.

    Imports that exist for the type checker only do not count.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken |= {"*" for alias in node.names if alias.name == "meshfast._core"}
        elif isinstance(node, ast.ImportFrom) and node.module == "meshfast._core":
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "meshfast":
            taken |= _attributes(tree, node)
    return taken


def _attributes(tree: ast.Module, statement: ast.ImportFrom) -> set[str]:
    bound = {alias.asname or alias.name for alias in statement.names if alias.name == "_core"}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in bound
    }


def test_each_room_takes_only_its_half_of_the_extension() -> None:
    modules = tracked("python/meshfast/*.py", "control/*.py")
    taken = {path: names_taken(ast.parse(text(path))) for path in modules}
    strays = {
        str(path): sorted(names - ROOMS.get(room(path), frozenset()))
        for path, names in taken.items()
        if names - ROOMS.get(room(path), frozenset())
    }
    assert strays == {}


def test_every_way_of_importing_is_seen() -> None:
    ways = {
        "import meshfast._core": {"*"},
        "from meshfast._core import run_worker": {"run_worker"},
        "from meshfast import _core\n_core.Snapshot.build(b'')": {"Snapshot"},
        "from meshfast import _core as c\nc.run_worker(b'')": {"run_worker"},
        "if TYPE_CHECKING:\n    from meshfast._core import SharedMemory": set(),
    }
    assert {source: names_taken(ast.parse(source)) for source in ways} == ways
