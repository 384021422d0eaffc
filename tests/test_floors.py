"""The floors of the house: a room imports only from below itself, and nothing goes in circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cachekit

ROOT = Path(cachekit.__file__).parent
MOST_LINES = 400

# Rooms from the ground up; those on one floor may import each other, never in a circle.
FLOORS = [
    {"errors", "signals", "version"},
    {"core"},
    {"protocols", "settings"},
    {"runtime", "ticker", "observe", "codecs"},
    {"backends", "logs", "sinks", "sources"},
    {"packing"},
    {"guard", "tiers"},
    {"pending"},
    {"invalidation"},
    {"coherence", "events", "pending_reads"},
    {"strategies"},
    {"feeds", "schedules"},
    {"functions", "typing_shapes", "decorators", "repository", "direct", "intents"},
    {"statistics", "wiring"},
    {"aio", "cache", "__init__"},
    {"dax"},
    {"testing"},
    {"bench", "commands", "cli", "__main__"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(module: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of this package that one imports, and whether when it is itself imported."""
    tree = ast.parse(path.read_text())
    only_for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module == "__init__":
        here = []
    for node in ast.walk(tree):
        if id(node) in only_for_types:
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            start = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                names.append(".".join([*start, alias.name]))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cachekit"):
            start = (node.module or "").split(".")[1:]
            names += [".".join([*start, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [a.name.partition(".")[2] for a in node.names if a.name.startswith("cachekit")]
        for name in names:
            target = name
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            yield target or "__init__", id(node) not in late


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_room_imports_only_from_below_itself(module: str) -> None:
    room = room_of(module)
    assert room in HEIGHT, f"{room} stands on no floor"
    for target, _ in imports(module, MODULES[module]):
        below = room_of(target)
        assert HEIGHT[below] <= HEIGHT[room], f"{module} reaches up to {target}"


def test_no_imports_go_in_a_circle() -> None:
    graph = {
        module: {t for t, at_import in imports(module, path) if at_import and t != module}
        for module, path in MODULES.items()
    }
    # A package's own __init__ gathers its modules; they import each other directly.
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, f"circle: {' -> '.join([*trail, module])}"
        if module in done:
            return
        for target in sorted(graph[module]):
            if target in packages and module.startswith(target + "."):
                continue
            visit(target, [*trail, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in MODULES.values()
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_third_parties_are_imported_only_where_the_house_style_allows() -> None:
    allowed = {"backends", "codecs", "dax", "bench", "cli", "sources", "testing"}
    drivers = {
        "redis",
        "pymemcache",
        "msgspec",
        "zstandard",
        "cryptography",
        "rich",
        "typer",
        "psycopg",
        "hiredis",
        "boto3",
        "botocore",
        "pytest",
        "fakeredis",
    }
    for module, path in MODULES.items():
        if room_of(module) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name.partition(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [(node.module or "").partition(".")[0]]
            assert not drivers & set(names), f"{module} imports {drivers & set(names)}"


def test_the_core_touches_no_clock_no_randomness_and_no_input_or_output() -> None:
    forbidden = {"time", "random", "secrets", "os", "socket", "asyncio", "select", "subprocess"}
    for module, path in MODULES.items():
        if room_of(module) != "core":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name.partition(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [(node.module or "").partition(".")[0]]
            assert not forbidden & set(names), f"{module} imports {forbidden & set(names)}"
            assert not isinstance(node, ast.Await), f"{module} awaits"
