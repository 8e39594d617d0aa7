"""The shape of the source: short functions, documented arrays, pictures that match the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import draw_architecture
import draw_guide
from import_graph import PACKAGE, ROOT, SOURCE

MAX_LINES, MAX_PARAMETERS = 60, 10
ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray|FloatArray|BoolArray|Floats)\b")
#: "(B, T)", "(n,)", or a statement in words.
SHAPE = re.compile(r"\((?:[^()]|\([^()]*\))*,(?:[^()]|\([^()]*\))*\)|shape|scalar", re.IGNORECASE)

FILES = sorted((SOURCE / PACKAGE).rglob("*.py"))


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Return a function's parameters without `self`, `cls`, `*args` and `**kwargs`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Yield the public functions of a module and the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def handles_arrays(function: ast.FunctionDef) -> bool:
    """Whether a parameter or the result is annotated as an array or tensor."""
    annotations = [*(argument.annotation for argument in parameters(function)), function.returns]
    return any(ARRAY.search(ast.unparse(annotation)) for annotation in annotations if annotation is not None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_functions_are_short(file):
    long = {f.name for f in functions(file) if f.end_lineno is not None and f.end_lineno - f.lineno >= MAX_LINES}
    wide = {f.name for f in functions(file) if len(parameters(f)) > MAX_PARAMETERS}
    if file.parent.name != "cli":  # a command has a parameter for each of its options
        assert not long | wide


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_public_array_functions_state_shapes(file):
    body = ast.parse(file.read_text(encoding="utf-8")).body
    silent = [
        f.name for f in public_functions(body) if handles_arrays(f) and not SHAPE.search(ast.get_docstring(f) or "")
    ]
    assert not silent


@pytest.mark.parametrize("name", ["architecture", "sample"])
def test_committed_figure_matches_the_source(name):
    committed = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert committed == getattr(draw_architecture, name)(), "run: python tools/draw_architecture.py"


@pytest.mark.parametrize("name", list(draw_guide.FIGURES_OF_THE_GUIDE))
def test_committed_figure_of_the_guide_matches_the_code(name):
    committed = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert committed == draw_guide.FIGURES_OF_THE_GUIDE[name](), "run: python tools/draw_guide.py"
