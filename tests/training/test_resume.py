"""A run that is killed, at any moment, ends with the very bits of one that was not."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmvl.errors import CheckpointError
from medmvl.files import write_text
from medmvl.training.engine.callbacks import drop_lines_after
from medmvl.training.engine.checkpoints import (
    checkpoints,
    link_or_copy,
    newest_whole,
    rotate,
    seal,
    sealed_directory,
    tidy,
    verify,
    whole_files,
)
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import TrainingInterruptedError, train
from medmvl.training.run_folder import read_log
from processes import BeforeStep, TrainingProcess, in_two_processes, killed_before_step

from .conftest import CONNECTORS

#: Dropout draws random numbers in every step, so these runs also show that generators are restored.
LORA = {"train": {"llm": {"mode": "lora", "lora": {"r": 2, "dropout": 0.2}}, **CONNECTORS}}
STAGES = ({"max_steps": 7, "save_every": 2}, LORA | {"max_steps": 5, "save_every": 2, "micro_batch_size": 2})


def lr_lambda(folder: Path) -> list[tuple]:
    """What must be equal to the bit: everything in the log but the seconds."""
    return [tuple((k, v) for k, v in row.items() if k != "seconds") for row in read_log(folder / "log.jsonl")]


def assert_same_run(one: Path, other: Path) -> None:
    assert lr_lambda(one) == lr_lambda(other)
    for stage in ("s0", "s1", "model"):
        first, second = (load_file(run / stage / "model.safetensors") for run in (one, other))
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def settings(data_folder):
    """The recipe of all runs here; a module's fixture cannot use the function's `recipe`."""
    import copy

    from .conftest import EVERYTHING, MODEL

    stages = [
        {"name": f"s{i}", "train": EVERYTHING, "lr": 1e-2, "batch_size": 6} | stage for i, stage in enumerate(STAGES)
    ]
    return {
        "name": "kill",
        "seed": 3,
        "data_root": str(data_folder),
        "model": copy.deepcopy(MODEL),
        "data": {"d": {"path": "d.jsonl"}},
        "stages": stages,
        "run": {"progress": False, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(settings, folder)
    return folder


@pytest.mark.parametrize(("stage", "step"), [("s0", 4), ("s1", 3)])
def test_an_interrupted_run_resumes_exactly(settings, uninterrupted, tmp_path, stage, step):
    with killed_before_step(step, stage) as callbacks:
        train(settings, tmp_path / "run", callbacks=callbacks)
    train(settings, tmp_path / "run", resume=True)
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_finished_run_resumes_to_nothing(settings, uninterrupted):
    before = (uninterrupted / "log.jsonl").read_bytes()
    again = BeforeStep(0, lambda loop: pytest.fail("trained again"))
    assert train(settings, uninterrupted, resume=True, callbacks=[again]) == uninterrupted / "model"
    assert (uninterrupted / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("left", [None, "s0"])
def test_run_killed_before_its_model_was_in_place_gets_it(settings, uninterrupted, tmp_path, left):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "model")
    if left is not None:
        link_or_copy(run / left, run / "model")
    train(settings, run, resume=True)
    assert_same_run(uninterrupted, run)


def test_loader_processes_do_not_change_the_course(settings, uninterrupted, tmp_path):
    train(settings | {"run": {"progress": False, "device": "cpu", "workers": 2}}, tmp_path / "run")
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(settings, uninterrupted, tmp_path, caplog):
    with killed_before_step(5) as callbacks:
        train(settings, tmp_path / "run", callbacks=callbacks)
    folder = tmp_path / "run" / "s0" / "checkpoints"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    optimizer = folder / "checkpoint-4" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-7])
    train(settings, tmp_path / "run", resume=True)
    assert "optimizer.safetensors has changed" in caplog.text
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_stop_request_saves_and_ends(settings, uninterrupted, tmp_path):
    ask = BeforeStep(2, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="after step 4 of 7"):
        train(settings, tmp_path / "run", callbacks=[ask])
    assert signal.getsignal(signal.SIGTERM) is handler
    assert newest_whole(tmp_path / "run" / "s0" / "checkpoints").name == "checkpoint-4"
    train(settings, tmp_path / "run", resume=True)
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_checkpoint_of_another_stage_is_refused(settings, tmp_path):
    first = load_recipe(settings, ["stages.s0.max_steps=3"])
    with killed_before_step(2) as callbacks:
        train(first, tmp_path / "run", callbacks=callbacks)
    other = load_recipe(first, ["stages.s0.train={llm: full}"])
    write_text(tmp_path / "run" / "recipe.yaml", dump_recipe(other))
    with pytest.raises(CheckpointError, match="trains other weights"):
        train(other, tmp_path / "run", resume=True)


# --- real kills ---------------------------------------------------------------------------------------------------


def start_command(recipe: Path, out: Path, steps: int | None = None) -> subprocess.Popen:
    """Run the real command, which waits for no kill, whatever `steps` says."""
    program = "from medmvl.cli.main import main; main()"
    arguments = [sys.executable, "-c", program, "train", str(recipe), "--out", str(out), "--resume"]
    return subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run_with_kills(start, recipe: Path, out: Path, delays: list[float]) -> int:
    """Start a run again and again, killing it after each delay, counted from its first step; return the kills.

    Args:
        start: starts the run, which goes to its end, or no further than a number of steps.
    """
    kills = 0
    for delay in delays:
        lines, process = _lines(out), start(recipe, out, 3)  # so that some steps are left after the last kill
        while process.poll() is None and _lines(out) <= lines:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert start(recipe, out).wait() == 0
    return kills


def _lines(out: Path) -> int:
    """Number of steps that all runs into `out` have logged; it shrinks when a resumed run drops some."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _saving_every_step(recipe, folder: Path) -> Path:
    """Write the recipe so that about half of a run's time goes into writing checkpoints."""
    write_text(
        folder / "recipe.yaml", dump_recipe(load_recipe(recipe, ["stages.s0.save_every=1", "stages.s1.save_every=1"]))
    )
    return folder / "recipe.yaml"


def test_killed_three_times(settings, uninterrupted, tmp_path):
    recipe = _saving_every_step(settings, tmp_path)
    assert run_with_kills(TrainingProcess, recipe, tmp_path / "run", [0.0, 0.02, 0.01]) == 3
    assert_same_run(uninterrupted, tmp_path / "run")


def test_killed_while_it_looks_at_held_out_data(settings, tmp_path):
    # A look takes many times as long as a step, so most kills, counted from a step's line in the log, fall into the next.
    look = "{data: [held], every: 1, samples: 18, generate: 6, max_new_tokens: 12}"
    changes = [f"stages.{stage}.{change}" for stage in ("s0", "s1") for change in (f"evaluate={look}", "data=[d]")]
    watched = load_recipe(settings, ["data.held={path: d.jsonl}", *changes])
    train(watched, tmp_path / "whole")
    recipe = _saving_every_step(watched, tmp_path)
    assert run_with_kills(TrainingProcess, recipe, tmp_path / "run", [0.02, 0.05, 0.1]) == 3
    for name in ("evaluation.jsonl", "samples.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(settings, tmp_path):
    long = load_recipe(settings, ["stages.s0.max_steps=60", "stages.s1.max_steps=40"])
    train(long, tmp_path / "whole")
    dice = random.Random(0)
    delays = [dice.uniform(0, 0.15) for _ in range(24)]
    recipe = _saving_every_step(long, tmp_path)
    assert run_with_kills(TrainingProcess, recipe, tmp_path / "run", delays) >= 20
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_killed_through_the_command_line(settings, uninterrupted, tmp_path):
    recipe = _saving_every_step(settings, tmp_path)
    assert run_with_kills(start_command, recipe, tmp_path / "run", [0.0, 0.03, 0.01]) == 3
    assert_same_run(uninterrupted, tmp_path / "run")


# --- whole folders ------------------------------------------------------------------------------------------------


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "checkpoint-5"
    with pytest.raises(IsADirectoryError), sealed_directory(target) as aside:
        aside.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    for content in (b"one", b"two"):
        with sealed_directory(target) as aside:
            (aside / "a.bin").write_bytes(content)
        verify(target)
        assert (target / "a.bin").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"y"), "a.bin has changed"),
        (lambda f: (f / "a.bin").unlink(), "a.bin is missing"),
        (lambda f: (f / "checksums.json").unlink(), "has no checksums.json"),
        (lambda f: (f / "checksums.json").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_seen(tmp_path, damage, words):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"x")
    seal(folder)
    verify(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        verify(folder)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".checkpoint-11.writing").mkdir()
    rotate(tmp_path, keep=2, best=tmp_path / "checkpoint-1")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-9", "checkpoint-10"]
    tidy(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert newest_whole(tmp_path) is None


def test_seal_is_moved_last(tmp_path):
    stage = tmp_path / "stage"
    (stage / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with whole_files(stage) as aside:
        (aside / "config.json").write_text("{}")
    verify(stage)
    link_or_copy(stage, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "checksums.json"}
    assert (tmp_path / "model" / "config.json").stat().st_ino == (stage / "config.json").stat().st_ino
    shutil.rmtree(stage)
    verify(tmp_path / "model")


def test_weights_of_interrupted_attempt_are_removed(tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "evaluation.txt"):
        (tmp_path / name).write_text("stale")
    with whole_files(tmp_path) as aside:
        (aside / "model.safetensors").write_text("new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checksums.json", "evaluation.txt", "model.safetensors"]


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"stage": "a", "step": 1}\n{"stage": "b", "step": 1}\n{"stage": "b", "step": 2}\n{"stage": "b", "st'
    )
    drop_lines_after(log, "b", 1)
    assert log.read_text() == '{"stage": "a", "step": 1}\n{"stage": "b", "step": 1}\n'


# --- checkpoints by time ------------------------------------------------------------------------------------------


def test_checkpoint_is_written_when_minutes_have_passed(settings, uninterrupted, tmp_path, capsys):
    by_time = load_recipe(settings, ["stages.s0.save_every=1000", "stages.s0.save_minutes=1e-9"])
    with killed_before_step(4) as callbacks:
        train(by_time, tmp_path / "run", callbacks=callbacks)
    assert newest_whole(tmp_path / "run" / "s0" / "checkpoints").name in ("checkpoint-3", "checkpoint-4")
    capsys.readouterr()
    train(by_time, tmp_path / "run", resume=True)
    assert re.search(r"Stage s0 continues after step [34] of 7, from .*checkpoint-[34]", capsys.readouterr().err)
    assert_same_run(uninterrupted, tmp_path / "run")


def test_no_checkpoint_before_the_minutes_have_passed(settings, tmp_path):
    rarely = load_recipe(settings, ["stages.s0.save_every=1000"])
    with killed_before_step(6) as callbacks:
        train(rarely, tmp_path / "run", callbacks=callbacks)
    assert newest_whole(tmp_path / "run" / "s0" / "checkpoints") is None


def test_processes_agree_on_a_checkpoint_by_time(settings, tmp_path):
    by_time = load_recipe(
        settings, ["stages.s0.save_every=1000", "stages.s0.save_minutes=1e-9", "stages.s0.max_steps=3"]
    )
    in_two_processes(train, by_time, tmp_path / "run", stage="s0")
    checkpoint = newest_whole(tmp_path / "run" / "s0" / "checkpoints")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
