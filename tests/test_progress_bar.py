"""Progress bars: the time left, and silence where nobody looks."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from import_graph import SOURCE
from medmvl import progress_bar
from medmvl.data.formats import count_records, write_records
from medmvl.progress_bar import Bar, describe, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    return clock


def test_time_left_follows_the_speed(clock):
    bar = Bar("rows", 100)
    bar.update(0)
    assert describe(bar) == "0/100"
    clock.now += 10
    bar.update(20)
    assert describe(bar) == "20/100  0:00:40 left"
    clock.now += 5
    assert describe(bar) == "20/100  0:00:35 left"


def test_items_of_an_earlier_run_took_no_time(clock):
    bar = Bar("rows")
    bar.update(900, 1000)
    clock.now += 60
    bar.update(910, 1000)
    assert bar.seconds_left == pytest.approx(540)


def test_new_round_starts_its_own_estimate(clock):
    bar = Bar("rows", 10)
    for done in (0, 10, 1):
        clock.now += 1
        bar.update(done)
    assert bar.seconds_left is None
    clock.now += 2
    bar.update(2)
    assert bar.seconds_left == pytest.approx(16)


def test_only_the_last_minutes_count(clock):
    bar = Bar("rows", 10_000)
    bar.update(0)
    clock.now += 1
    bar.update(1000)  # kept from before
    for _ in range(100):
        clock.now += 10
        bar.advance()
    assert bar.seconds_left == pytest.approx((10_000 - 1100) * 10)


def test_waiting_shows_the_time_on_a_terminal(monkeypatch):
    drawn = []
    monkeypatch.setattr(progress_bar, "DELAY", 0.01)
    monkeypatch.setattr(progress_bar._DISPLAY, "add", lambda bar: drawn.append((bar.title, describe(bar))) or 1)
    monkeypatch.setattr(progress_bar._DISPLAY, "remove", drawn.append)
    for shown in (False, True):
        monkeypatch.setattr(progress_bar, "is_shown", lambda: shown)  # noqa: B023
        with progress_bar.waiting("loading"):
            time.sleep(0.1)
    assert drawn == [("loading", "0:00:00 so far"), 1]


def test_unknown_total_shows_the_time_that_has_passed(clock):
    bar = Bar("records")
    clock.now += 75
    bar.update(1234, facts="loss 0.5")
    assert describe(bar) == "1,234  0:01:15 so far  loss 0.5"


def test_track_yields_every_item_and_counts_to_the_end():
    assert list(track([3, 1, 2], "numbers")) == [3, 1, 2]
    assert list(track(iter("ab"), "letters")) == ["a", "b"]


_WORK = """
import time
from medmvl import progress_bar
progress_bar.DELAY = 0
for _ in progress_bar.track(range(6), "outer"):
    for _ in progress_bar.track(range(3), "inner"):
        time.sleep(0.05)
"""


def on_terminal(code: str, **environment: str) -> str:
    """Return what Python prints on a terminal as its error stream."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 65536):
            said += block
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    assert process.wait() == 0
    return said.decode()


def test_bars_of_nested_work_share_a_terminal():
    said = on_terminal(_WORK)
    assert "outer" in said
    assert "inner" in said
    assert re.search(r"\d/6  \d:\d\d:\d\d left", said)


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"TERM": "dumb"}])
def test_other_ranks_and_dumb_terminals_draw_nothing(environment):
    assert on_terminal(_WORK, **environment) == ""


def test_log_gets_nothing():
    done = subprocess.run(
        [sys.executable, "-c", _WORK], capture_output=True, check=True, env={**os.environ, "FORCE_COLOR": "1"}
    )
    assert done.stdout == done.stderr == b""


def test_no_other_module_makes_bars():
    makers = [
        file for file in SOURCE.rglob("*.py") if re.search(r"rich\.progress|import tqdm|\.status\(", file.read_text())
    ]
    assert [file.name for file in makers] == ["progress_bar.py"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_records_are_counted_without_reading_them(tmp_path: Path, suffix):
    path = tmp_path / f"data{suffix}"
    write_records(path, [{"id": str(number)} for number in range(3)])
    if suffix == ".jsonl":
        path.write_text(path.read_text() + "\n")
    assert count_records(path) == 3


def test_count_of_a_damaged_file_is_unknown(tmp_path: Path):
    (tmp_path / "data.json").write_text("[1, 2")
    assert count_records(tmp_path / "data.json") is None
    assert count_records(tmp_path / "missing.json") is None
