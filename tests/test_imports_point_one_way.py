"""The rooms stand in an order, and a room imports only from rooms before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medmvl

PACKAGE = Path(medmvl.__file__).parent

#: room -> rooms it may use besides the floor (errors, files, registry).
ALLOWED = {
    "imaging": set(),
    "data": {"imaging"},
    "models": set(),
    "processing": {"imaging", "data", "models"},
    "training": {"imaging", "data", "models", "processing"},
    "inference": {"imaging", "data", "models", "processing"},
    "checkpoints": {"imaging", "data", "models", "processing"},
    "evaluation": {"imaging", "data", "models", "processing", "inference", "checkpoints"},
    "serving": {"imaging", "data", "models", "processing", "inference", "checkpoints"},
}
EVERYTHING = {*ALLOWED, "experiments"}
ALLOWED |= {"experiments": set(ALLOWED), "cli": EVERYTHING}
FLOOR = {"errors", "files", "registry", "__init__"}


def rooms_imported(file: Path) -> set[str]:
    """Return the top-level parts of medmvl that a file imports, also inside functions and for type checking."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medmvl"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("medmvl")}
    parts = {name.split(".")[1] for name in names if name.count(".")}
    return {part for part in parts if (PACKAGE / part).is_dir()}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_rooms_before_it(room):
    wrong = {
        str(file.relative_to(PACKAGE)): extra
        for file in (PACKAGE / room).rglob("*.py")
        if (extra := rooms_imported(file) - ALLOWED[room] - {room})
    }
    assert not wrong


def test_every_room_has_its_place_in_the_order():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(ALLOWED)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__main__"} == FLOOR


def test_the_floor_uses_no_room():
    assert not any(rooms_imported(PACKAGE / f"{name}.py") for name in FLOOR - {"__init__"})
