"""The import graph of the package, read from its source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = "medmvl"


@cache
def source_files() -> dict[str, Path]:
    """Return dotted module name -> file; a package is named by its `__init__.py`."""
    found = {}
    for file in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_names(file: Path) -> Iterator[str]:
    """Yield every dotted name that a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


@cache
def file_graph() -> nx.DiGraph:
    """Return the graph of modules with an edge from each module to every module of the package that it imports."""
    files = source_files()
    graph = nx.DiGraph()
    graph.add_nodes_from(files)
    for module, file in files.items():
        for name in imported_names(file):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                graph.add_edge(module, target)
    return graph


def package_of(module: str) -> str:
    """Return the first-level package or module below the root package; the root itself for its `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


@cache
def package_graph() -> nx.DiGraph:
    """Return the graph of first-level packages with an edge from each to every other that it imports."""
    graph = nx.DiGraph()
    for module, target in file_graph().edges:
        if package_of(module) != package_of(target):
            graph.add_edge(package_of(module), package_of(target))
    return graph
