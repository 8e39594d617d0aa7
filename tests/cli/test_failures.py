"""Tests of the command line's failures: one line on standard error, status 2 or 1, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medmvl.cli import main as command_line
from medmvl.cli.failures import describe
from medmvl.errors import DataError
from medmvl.files import OutputLock


@pytest.fixture
def medmvl(capsys, monkeypatch):
    """Run `medmvl ARGUMENTS` in this process; return status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medmvl", *map(str, arguments)])
        status = 0
        try:
            command_line.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def records(tmp_path) -> Path:
    rows = [{"id": f"q{i}", "conversations": [{"from": "human", "value": "What?"}]} for i in range(3)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("The record is empty."), 2, "The record is empty."),
        (
            OSError(28, "No space left on device", "/data/out.jsonl"),
            2,
            "/data/out.jsonl: No space left on device. Free",
        ),
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied. Check"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate"), 2, "enough memory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "No space left on device. Free"),
        (TypeError("a\nb"), 1, "TypeError: a b. This is a bug in medmvl or in a library it uses. Please report"),
        (KeyError(), 1, "KeyError. This is a bug"),
    ],
)
def test_each_kind_of_error_has_its_status(error, status, message):
    import torch  # noqa: F401 - the memory error of torch is known once torch is loaded

    found = describe(error)
    assert found[0] == status
    assert message in found[1]
    assert "\n" not in found[1]


def test_bug_is_one_line_and_shown_whole_with_debug(medmvl, monkeypatch):
    def broken(folder: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("medmvl.checkpoints.inspect_folder", broken)
    status, _, err = medmvl("checkpoint", "inspect", "x")
    assert status == 1
    assert len(err.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        medmvl("--debug", "checkpoint", "inspect", "x")


@pytest.mark.parametrize("out", ["file/x", "/proc/x", "n" * 250, "folder"])
def test_output_that_cannot_be_written_is_one_line(medmvl, model_folder, records, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    status, _, err = medmvl("predict", "--model", model_folder, "--data", records, "--out", out)
    assert status == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--device", "gpu9"),
        ("--device", "meta"),
        ("--device", "cuda:99"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--temperature", "1e-46"),
        ("--num-beams", "0"),
        ("--batch-size", "0"),
        ("--batch-size", "1" + "0" * 30),
        ("--max-new-tokens", "1" + "0" * 30),
    ],
)
def test_impossible_option_values_are_refused(medmvl, model_folder, records, tmp_path, option, value):
    arguments = ["predict", "--model", model_folder, "--data", records, "--out", tmp_path / "o"]
    status, _, err = medmvl(*arguments, option, value)
    assert status == 2
    assert "Traceback" not in err


def test_question_that_is_no_unicode_is_refused(medmvl, model_folder):
    status, _, err = medmvl("ask", "--model", model_folder, "\udcff?")
    assert status == 2
    assert "not valid Unicode" in err


def test_output_survives_an_ascii_terminal(model_folder, records, tmp_path):
    folder = tmp_path / "病人"
    folder.mkdir()
    command = [sys.executable, "-m", "medmvl", "predict", "--model", model_folder, "--data", records]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    options = ["--out", folder / "o.jsonl", "--max-new-tokens", "1"]
    done = subprocess.run([*command, *options], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"o.jsonl" in done.stdout
    assert (folder / "o.jsonl").is_file()


def test_second_writer_of_predictions_is_refused_with_the_owners_id(medmvl, model_folder, records, tmp_path):
    out = tmp_path / "o.jsonl"
    with OutputLock(out):
        for command in ("predict", "score"):
            status, _, err = medmvl(command, "--model", model_folder, "--data", records, "--out", out)
            assert status == 2
            assert f"id {os.getpid()}" in err
    assert not out.exists()
    status, _, _ = medmvl("predict", "--model", model_folder, "--data", records, "--out", out, "--max-new-tokens", 2)
    assert status == 0


def test_second_run_and_second_evaluation_are_refused(medmvl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "conversations": [{"from": "human", "value": "What?"}], "answer": "yes", "prediction": "no"}
    Path("p.jsonl").write_text(json.dumps(row) + "\n")
    commands = (
        ["train", "tiny"],
        ["train", "tiny", "--resume"],
        ["evaluate", "--predictions", "p.jsonl", "--benchmark", "own"],
    )
    with OutputLock("out", folder=True):
        for command in commands:
            status, _, err = medmvl(*command, "--out", "out")
            assert status == 2
            assert f"id {os.getpid()}" in err
    assert medmvl("evaluate", "--predictions", "p.jsonl", "--benchmark", "own", "--out", "out")[0] == 0
    assert not Path("out/.lock").exists()


def test_rerun_after_a_kill_gives_each_row_once(medmvl, model_folder, records, tmp_path):
    out = tmp_path / "o.jsonl"
    arguments = [
        "predict",
        "--model",
        str(model_folder),
        "--data",
        str(records),
        "--out",
        str(out),
        "--batch-size",
        "1",
    ]
    command = [sys.executable, "-m", "medmvl", *arguments, "--max-new-tokens", "200"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (out.exists() and out.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    status, _, err = medmvl(*arguments, "--max-new-tokens", "200")
    assert status == 0, err
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    "line", [b"\0" * 64 + b"\n", b"{}\n", b"3\n", b'{"id": "q', b'{"id": "other"}\n', b'{"id": "q0"}\n']
)
def test_foreign_line_in_predictions_is_named(medmvl, model_folder, records, tmp_path, line):
    out = tmp_path / "o.jsonl"
    arguments = ["predict", "--model", model_folder, "--data", records, "--out", out, "--max-new-tokens", 2]
    medmvl(*arguments)
    first, *rest = out.read_bytes().splitlines(keepends=True)
    if line.endswith(b"\n"):
        out.write_bytes(first + line + b"".join(rest))
        status, _, err = medmvl(*arguments)
        assert status == 2
        assert "o.jsonl, line 2" in err
    else:  # an incomplete last line is what a killed process leaves: the row is made again
        out.write_bytes(first + line)
        assert medmvl(*arguments)[0] == 0
        assert out.read_bytes() == first + b"".join(rest)


def test_note_that_is_no_object_is_named(medmvl, model_folder, records, tmp_path):
    out = tmp_path / "o.jsonl"
    arguments = ["predict", "--model", model_folder, "--data", records, "--out", out, "--max-new-tokens", 2]
    medmvl(*arguments)
    Path(f"{out}.run.json").write_text("[]")
    status, _, err = medmvl(*arguments)
    assert status == 2
    assert "o.jsonl.run.json" in err


def _writing(model: Path, records: Path, out: Path) -> dict[str, list[object]]:
    """Return the arguments of commands that load a model and write to `out`."""
    known = ["--model", model, "--data", records, "--out", out]
    return {
        "predict": ["predict", *known],
        "score": ["score", *known],
        "ask": ["ask", "--model", model, "--out", out, "What?"],
        "explain": ["explain", "--model", model, "--image", records, "--out", out, "What?"],
        "convert": ["checkpoint", "convert", model, out],
        "merge": ["checkpoint", "merge", model, out, "--base", model],
        "export": ["checkpoint", "export", model, out, "--format", "llava-hf"],
        "evaluate": ["evaluate", "--model", model, "--data-root", records, "--benchmark", "own", "--out", out],
        "train": ["train", "tiny", "--out", out],
        "study": ["study", "--in", records.parent, "--out", out, "--model", model],
    }


@pytest.mark.parametrize("out", ["file/x", "/proc/x", "n" * 260, "other-kind", "pipe", "loop", "/dev/full"])
@pytest.mark.parametrize("command", list(_writing(Path(), Path(), Path())))
def test_output_is_checked_before_a_model_is_loaded(medmvl, records, tmp_path, monkeypatch, command, out):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    if command in ("predict", "score", "ask"):
        Path("other-kind").mkdir()
    else:
        Path("other-kind").touch()
    # The model does not exist: a complaint about it would show that it was opened first.
    status, _, err = medmvl(*_writing(Path("no-model"), records, Path(out))[command])
    assert status == 2
    assert "no-model" not in err
    assert Path(out).name in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["predict", "score", "evaluate", "train", "study"])
def test_output_in_use_is_refused_before_a_model_is_loaded(medmvl, records, tmp_path, command):
    out = tmp_path / "out"
    with OutputLock(out, folder=command not in ("predict", "score")):
        status, _, err = medmvl(*_writing(Path("no-model"), records, out)[command])
    assert status == 2
    assert f"id {os.getpid()}" in err


def test_second_conversion_is_refused(medmvl, tmp_path):
    (tmp_path / "table.csv").write_text("image,question,answer\n")
    with OutputLock(tmp_path / "out", folder=True):
        status, _, err = medmvl("data", "convert", "folder", tmp_path, "--out", tmp_path / "out", "--image", "image")
    assert status == 2
    assert f"id {os.getpid()}" in err
