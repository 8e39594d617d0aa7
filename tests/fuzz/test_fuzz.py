"""The fuzz harness finds no foreign exception, death, hang or wrong result; and it would find them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz.mutators import BINARY, JSON, TEXT, mutate
from fuzz.runner import DEATH, FOREIGN, GARBAGE, HUNG, MESSAGE, OK, REFUSED, run_cases
from fuzz.target import Change, Target
from medmvl.errors import DataError

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


#: seconds that a run may take; 5,000 cases take two minutes on two busy cores
PATIENCE = 570


def fuzz(cases: int, seed: int, first: int = 0) -> None:
    """Run the script; a failure shows its lines."""
    command = [sys.executable, str(SCRIPT), "--cases", str(cases), "--seed", str(seed), "--first", str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_damaged_files_bring_nothing_down():
    fuzz(300, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 20_000, 5_000))
def test_twenty_thousand_damaged_files_bring_nothing_down(first):
    fuzz(5_000, seed=7, first=first)


def _prepare(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("seed")
    return [folder / "a.txt"]


def _target(name, run, **rules):
    return Target(name, _prepare, lambda path: "" if path.read_text(errors="replace") == "seed" else run(path), **rules)


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("run", "rules", "kind"),
    [
        (lambda path: "fine", {}, OK),
        (lambda path: _raise(DataError(f"{path} is damaged.")), {}, REFUSED),
        (lambda path: _raise(DataError("It is damaged.")), {}, MESSAGE),
        (lambda path: _raise(DataError(f"{path}: ZZMARKER^NAME")), {}, MESSAGE),
        (lambda path: _raise(ZeroDivisionError()), {}, FOREIGN),
        (lambda path: os.abort(), {}, DEATH),
        (lambda path: time.sleep(60), {}, HUNG),
        (lambda path: "wrong", {"judge": lambda good, found, change: "it is wrong"}, GARBAGE),
    ],
)
def test_harness_notices_each_class(tmp_path, monkeypatch, run, rules, kind):
    monkeypatch.setattr("fuzz.runner.HANG", 1.0 if kind == HUNG else 60.0)
    names = (lambda rng, data, other: b"other",)
    seen = []
    summary = run_cases([_target("t", run, mutators=names, **rules)], 0, range(2), tmp_path, seen.append)
    assert [outcome.kind for outcome in seen] == [kind, kind]
    assert len(summary.failures) == (0 if kind in (OK, REFUSED) else 2)
    if "seed" in {path.read_text() for path in tmp_path.rglob("a.txt")}:
        assert kind not in (DEATH, HUNG)


def test_case_is_determined_by_seed_and_number():
    data, other = bytes(range(256)) * 4, b'{"a": [1, 2.5, "x"]}'
    for mutators in (BINARY, TEXT, JSON):
        for case in range(200):
            first, second = (mutate(random.Random(f"0:{case}"), data, other, mutators) for _ in range(2))
            assert first == second


def test_every_mutator_changes_files():
    data, other = b'{"a": [1, 2.5, "x"], "b": {"c": "text"}}\n' * 3, b'{"d": null}\n'
    for mutator in {*BINARY, *TEXT, *JSON}:
        changed = [mutator(random.Random(seed), data, other) for seed in range(30)]
        assert any(result != data for result in changed), mutator.__name__


def test_cut_is_recognized():
    assert Change(b"abc", b"ab", []).is_cut
    assert not Change(b"abc", b"abd", []).is_cut
    assert not Change(b"abc", b"abcd", []).is_cut
