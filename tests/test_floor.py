"""Errors, registry and files: the floor all rooms stand on."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError, MissingExtraError, RecipeError, require
from medmvl.files import atomic, iter_jsonl, read_json, resolve_under, write_json, write_text
from medmvl.registry import Registry


def test_an_unknown_name_is_answered_with_the_closest():
    registry: Registry[int] = Registry("projector")
    registry.add("mlp", 1)
    registry.add("linear", 2)
    with pytest.raises(RecipeError, match="Unknown projector 'mpl'. Did you mean 'mlp'\\? Known: linear, mlp."):
        registry["mpl"]


def test_a_name_is_registered_once():
    registry: Registry[int] = Registry("projector")
    registry.add("mlp", 1)
    with pytest.raises(ValueError, match="twice"):
        registry.register("mlp")(2)
    assert registry["mlp"] == 1


def test_names_match_exactly():
    registry: Registry[int] = Registry("projector")
    registry.add("mof_mlp", 1)
    assert "mlp" not in registry


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret"])
def test_paths_stay_below_their_root(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").touch()
    with pytest.raises(DataError, match="leaves the root"):
        resolve_under(root, path)


def test_a_link_out_of_the_root_is_not_followed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leaves the root"):
        resolve_under(root, "link")


def test_broken_json_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3"):
        list(iter_jsonl(path))
    with pytest.raises(DataError, match="not a valid UTF-8 JSON"):
        read_json(path)


def test_json_is_written_readably(tmp_path):
    write_json(tmp_path / "a.json", {"wörd": "影像"})
    assert "影像" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"wörd": "影像"}


def test_a_missing_extra_names_the_command_to_type():
    with pytest.raises(MissingExtraError, match=r"pip install 'medmvl\[demo\]'"):
        require("no_such_module_of_anybody", "demo")
