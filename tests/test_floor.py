"""Tests of the base modules: errors, registry, files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from medmvl.errors import BusyError, DataError, MissingExtraError, OutputError, RecipeError, require
from medmvl.files import (
    OutputLock,
    atomic,
    atomic_directory,
    iter_jsonl,
    read_json,
    resolve_under,
    write_json,
    write_text,
)
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


def _write_two_at_once(target):
    with atomic_directory(target) as first:
        (first / "config.json").write_text("1")
        with atomic_directory(target) as second:
            (second / "config.json").write_text("2")
        (first / "weights").write_text("1")


def test_two_writers_never_mix_a_folder(tmp_path):
    with pytest.raises(OutputError, match="exists and is not empty"):
        _write_two_at_once(tmp_path / "model")
    assert {file.name: file.read_text() for file in (tmp_path / "model").iterdir()} == {"config.json": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_folder_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_folder_is_replaced_on_request_only(tmp_path):
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "model", replace=True) as folder:
            (folder / text).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/new"]
    with pytest.raises(OutputError, match="not empty"), atomic_directory(tmp_path / "model"):
        pass


def test_temporary_folder_of_a_killed_writer_is_removed(tmp_path):
    code = (
        "import sys, os, signal; from medmvl.files import atomic_directory\n"
        "with atomic_directory(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_directory(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("folder", [False, True])
def test_second_writer_of_an_output_is_refused(tmp_path, folder):
    output = tmp_path / "out"
    with OutputLock(output, folder=folder), pytest.raises(BusyError, match=rf"id {os.getpid()}\) is writing to .*out"):
        OutputLock(output, folder=folder)
    with OutputLock(output, folder=folder):  # released
        pass
    assert not list(tmp_path.rglob(".*"))


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import sys, os, signal; from medmvl.files import OutputLock\n"
        "lock = OutputLock(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert (tmp_path / ".out.lock").exists()
    with OutputLock(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [False, True])
def test_temporary_file_of_a_killed_writer_is_removed_by_the_next(tmp_path, folder):
    output = tmp_path / "out"
    file = output / "rows.jsonl" if folder else output
    code = (
        "import sys, os, signal; from medmvl.files import OutputLock, atomic\n"
        "lock = OutputLock(sys.argv[1], folder=sys.argv[2] == 'True')\n"
        "with atomic(sys.argv[3]) as temporary: temporary.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(output), str(folder), str(file)], check=False)
    with atomic(tmp_path / "other") as alive:  # of a process that runs
        alive.touch()
        assert len(list(tmp_path.rglob(".*"))) == 3
        with OutputLock(output, folder=folder):
            pass
        assert list(tmp_path.rglob(".*")) == [alive]


def test_forked_child_does_not_keep_the_lock(tmp_path):
    lock = OutputLock(tmp_path / "out")
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    lock.release()
    try:
        with OutputLock(tmp_path / "out"):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()
