"""Test that nothing in the source opens a folder of a model, or a picture, past the function that makes it safe."""

from __future__ import annotations

import ast
from pathlib import Path

import medmvl

PACKAGE = Path(medmvl.__file__).parent

#: Calls that are safe: their receivers are classes of ours, or read plain data and have no remote code.
READ_DATA_ONLY = {"GenerationConfig"}
LOADERS = {"from_pretrained", "from_config"}
#: `PeftModel.from_pretrained` reads adapters onto a model that is there; its settings are checked before.
PEFT = {"checkpoints/adapters.py": {"PeftModel"}}


def own_classes() -> set[str]:
    """Return the names of all classes that the package defines."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def calls_past_the_helper(file: Path, own: set[str]) -> list[str]:
    """Return the loader calls of a file whose receiver is neither a class of ours nor known to be safe."""
    allowed = own | READ_DATA_ONLY | PEFT.get(file.relative_to(PACKAGE).as_posix(), set())
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Attribute) and node.attr in LOADERS):
            continue
        receiver = node.value
        ours = isinstance(receiver, ast.Name) and receiver.id in allowed
        # `ENCODERS[name].from_pretrained`: a spec of ours; `super()`: checked below.
        ours |= isinstance(receiver, ast.Subscript) and getattr(receiver.value, "id", "") == "ENCODERS"
        ours |= isinstance(receiver, ast.Name) and receiver.id == "cls"
        ours |= isinstance(receiver, ast.Call) and getattr(receiver.func, "id", "") == "super"
        if not ours:
            found.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}")
    return found


def test_every_loader_call_goes_through_the_helper():
    own = own_classes()
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "pretrained.py" or file.parent != PACKAGE]
    assert not [call for file in files for call in calls_past_the_helper(file, own)]


def test_the_search_finds_a_call_past_the_helper(tmp_path, monkeypatch):
    file = tmp_path / "new.py"
    file.write_text("from transformers import AutoTokenizer\ntokenizer = AutoTokenizer.from_pretrained('x')\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert calls_past_the_helper(file, set()) == ["new.py:2 AutoTokenizer.from_pretrained"]


def test_own_classes_that_call_super_turn_remote_code_off():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "super().from_pretrained(" in text:
            assert "NO_REMOTE_CODE" in text, file


def test_nothing_asks_on_standard_input():
    for file in PACKAGE.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "input"], file


def test_pictures_are_opened_with_a_list_of_formats():
    """Pillow opens PostScript files, for which it starts Ghostscript, unless the formats are listed."""
    calls = [
        node
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition("Image.")[2] == "open" and node.args
    ]
    opened = [node for node in calls if "Image" in ast.unparse(node.func)]
    assert opened
    assert all("formats" in {keyword.arg for keyword in node.keywords} for node in opened)
