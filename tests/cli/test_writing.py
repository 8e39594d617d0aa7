"""Tests of full disks, of two writers at once, and of kills, for every command that writes."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from forked import start, wait
from processes import run_in_a_clean_process
from writing import (
    clear,
    commands,
    content,
    import_everything,
    kill_and_rerun,
    prepare_in_a_fork,
    small_disk,
    uninterrupted,
)

NAMES = list(commands(Path(), Path()))
#: commands that hold a lock from their start to their end; the others write a new folder, which appears complete
LOCKED = ["predict", "score", "evaluate", "data convert", "data cache", "train", "study"]
DISK = 16 * 1024


def _prepared(folder: Path) -> dict[str, list[str]]:
    import_everything()
    os.environ["MEDMVL_CACHE"] = str(folder / "cache")
    for name in ("inputs", "out"):
        (folder / name).mkdir()
    prepare_in_a_fork(folder / "inputs")
    return commands(folder / "inputs", folder / "out" / "o")


def _write_faults(folder: Path) -> None:
    """Run every command on a full disk and twice at once; write statuses and messages to results.json."""
    out, log, second = folder / "out" / "o", folder / "log", folder / "second"
    results: dict[str, dict[str, Any]] = {}
    for name, words in _prepared(folder).items():
        with small_disk(out.parent, DISK) as before:
            (out.parent / "ballast").write_bytes(b"0" * (4096 if before else DISK - 4096))
            full = wait(start(words, log, before)), log.read_text()
            left = [path.name for path in out.parent.rglob(".*.o.*")]
            readable = out.exists() and name.startswith("checkpoint")
        clear(out)
        pair = [start(words, log), start(words, second)]
        statuses = [wait(process) for process in pair]
        race = [(status, text.read_text()) for status, text in zip(statuses, (log, second), strict=True)]
        found = content(out)
        again = wait(start(words, log)), log.read_text()
        same = content(out) == found
        results[name] = {"full": full, "left": left, "half": readable, "race": race, "again": again, "same": same}
        clear(out)
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("writing")
    run_in_a_clean_process(_write_faults, folder)
    return json.loads((folder / "results.json").read_text())


def _is_one_line(said: str) -> bool:
    return "Traceback" not in said and sum(line.startswith("medmvl: ") for line in said.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_full_disk_is_one_line_and_leaves_nothing_half_written(results, name):
    status, said = results[name]["full"]
    assert status == 2, said
    assert _is_one_line(said), said
    assert re.search("No space left|File too large|cannot be written|disk", said), said
    assert not results[name]["left"]
    assert not results[name]["half"]


@pytest.mark.parametrize("name", NAMES)
def test_two_at_once_give_the_output_of_one(results, name):
    race, again = results[name]["race"], results[name]["again"]
    assert 0 in [status for status, _ in race], race
    for status, said in race:
        assert status in (0, 2), said
        if status:
            assert _is_one_line(said), said
            assert re.search(r"process \(id \d+\)" if name in LOCKED else "exists|process", said), said
    assert again[0] == 0 or "exists" in again[1], again
    assert results[name]["same"]


def _kill(folder: Path, kills: int) -> None:
    rng, out, log = random.Random(0), folder / "out" / "o", folder / "log"
    for words in _prepared(folder).values():
        whole = uninterrupted(words, out, log)
        for _ in range(kills):
            found = kill_and_rerun(words, out, log, rng.random() * whole.seconds, whole.content)
            assert not found.difference, found.difference


@pytest.mark.slow
def test_rerun_after_a_kill_gives_the_same_output(tmp_path):
    run_in_a_clean_process(_kill, tmp_path, 2, seconds=500)
