"""The direction of the house: a room imports only rooms above it, and no files import each other in a circle.

Imports inside functions and those for type checking alone count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "biomedclip_ray"
ROOMS = """schema config store run images jats sources pmc clip figures corpus train evaluate search serve cost report
    sample""".split()  # data walks down this list
LOOSE = {"__init__.py", "schema.py"}
# `from biomedclip_ray import Encoder` is looked up when it is asked for, from wherever it lies
LAZY = "biomedclip_ray/__init__.py"


@cache
def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _names() -> frozenset[str]:
    return frozenset(map(_name, _files()))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything of the package that a file imports."""
    known = _names()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("biomedclip_ray"):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield node.lineno, inside if inside in known else node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("biomedclip_ray"))


def test_nothing_lies_loose_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == LOOSE
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS) - {
        "schema"
    }


def test_no_room_imports_from_a_room_below_it() -> None:
    backwards = []
    for path in _files():
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for line, module in _imports(path):
            there = module.split(".")[1]
            if ROOMS.index(there) > ROOMS.index(here):
                backwards.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports {module}")
    assert backwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {
        _name(path): {module for _, module in _imports(path)} for path in _files() if path != PACKAGE.parent / LAZY
    }
    while leaves := [name for name, ahead in arrows.items() if not ahead & arrows.keys() - {name}]:
        for name in leaves:
            del arrows[name]
    assert sorted(arrows) == []


def test_every_room_says_what_it_is_for() -> None:
    for room in set(ROOMS) - {"schema"}:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())), room


def test_no_mock_stands_in_product_workflows_or_benchmarks() -> None:
    files = [*_files(), *(PACKAGE.parent / "benchmarks").glob("*.py"), *(PACKAGE.parent / "workflows").glob("*.py")]
    assert [path.name for path in files if "unittest" in path.read_text()] == []
