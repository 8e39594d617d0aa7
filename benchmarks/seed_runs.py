"""One job with several seeds: run each once, note its memory and commit, and put the figures of all into one table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

#: Written into a run's folder when it is finished: peak_bytes, minutes, commit.
MEASURED = "measured.json"


@dataclass(frozen=True)
class Figure:
    """A figure that every run has.

    Attributes:
        about: what it is.
        lower_is_better: whether its worst value is the highest.
        digits: behind the point.
    """

    about: str
    lower_is_better: bool = False
    digits: int = 3


#: Closed accuracy and its controls.
CLOSED = {
    "closed 2D": Figure("closed questions about radiographs, accuracy"),
    "closed CT": Figure("closed questions about CTs, accuracy"),
    "closed, blank": Figure(
        "closed accuracy with a blank picture, the higher of radiographs and CTs", lower_is_better=True
    ),
    "closed, other": Figure(
        "closed accuracy under `shuffled`, with another patient's picture, the higher of radiographs and CTs",
        lower_is_better=True,
    ),
}
MEMORY = Figure("peak memory of all processes together, looked at every second", lower_is_better=True, digits=1)


def duration(about: str) -> Figure:
    """Return the figure of a run's minutes by the clock."""
    return Figure(f"{about}, by the clock", lower_is_better=True, digits=1)


def closed_figures(radiographs: Mapping[str, Any], scans: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of `CLOSED` from the entries of two benchmarks in results.json."""

    def control(name: str) -> float:
        return max(float(found["controls"][name]["closed_accuracy"]["value"]) for found in (radiographs, scans))

    return {
        "closed 2D": radiographs["model"]["closed_accuracy"]["value"],
        "closed CT": scans["model"]["closed_accuracy"]["value"],
        "closed, blank": control("blank"),
        "closed, other": control("shuffled"),
    }


def arguments(description: str, runs: Path, threads: int) -> argparse.ArgumentParser:
    """Return a parser of what all scripts over seeds take.

    Args:
        description: the script's docstring, whose first line is shown.
        runs: default folder of the runs.
        threads: default OMP_NUM_THREADS of a run.
    """
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=runs)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def measure(commands: Sequence[Sequence[str]], folder: Path, threads: int) -> None:
    """Run commands that write `folder` one after the other, unless it holds a finished run, and note what they took.

    Args:
        commands: the programs with their arguments; what they print goes into a file beside the folder.
        folder: removed first, for the time is that of a whole run.
        threads: OMP_NUM_THREADS of the commands.
    """
    if (folder / MEASURED).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    peak, begun = 0, time.monotonic()
    with Path(f"{folder}.log").open("w") as log:
        for command in commands:
            process = psutil.Popen(list(command), env=environment, stdout=log, stderr=log)
            while process.poll() is None:
                peak = max(peak, memory(process))
                time.sleep(1)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} failed, see {log.name}.")
    minutes = (time.monotonic() - begun) / 60
    facts = {"peak_bytes": peak, "minutes": round(minutes, 2), "commit": commit()}
    (folder / MEASURED).write_text(json.dumps(facts))


def memory(process: psutil.Process) -> int:
    """Return the bytes that a process and its children occupy; pages that they share count once (PSS)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += one.memory_full_info().pss
    return total


def commit() -> str:
    """Return the short hash of the checkout that this script stands in; "+" is added if its code was changed since."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    short = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "recipes"]).returncode
    return short.strip() + ("+" if changed else "")


def table(found: Mapping[str, Mapping[str, float]], figures: Mapping[str, Figure]) -> list[str]:
    """Return a Markdown table: a row per figure, a column per run, and median and worst."""
    lines = [f"| figure | {' | '.join(found)} | median | worst |", "|---|" + "---|" * (len(found) + 2)]
    for name, figure in figures.items():
        values = [run[name] for run in found.values()]
        worst = max(values) if figure.lower_is_better else min(values)
        numbers = [*values, statistics.median(values), worst]
        lines.append(f"| {name} | {' | '.join(f'{value:.{figure.digits}f}' for value in numbers)} |")
    return lines


def report(
    stem: str,
    title: str,
    runs: Mapping[str, Path],
    read: Callable[[Path], Mapping[str, float]],
    figures: Mapping[str, Figure],
    out: Path,
) -> None:
    """Print the figures of all finished runs and write them to `out`/DATE-`stem`.md.

    Args:
        stem: of the file's name.
        title: of the page.
        runs: column title -> folder of a finished run.
        read: reads the figures of a folder.
        figures: by name, in the table's order.
        out: folder of the page.
    """
    found = {name: read(folder) for name, folder in runs.items()}
    commits = sorted({json.loads((folder / MEASURED).read_text())["commit"] for folder in runs.values()})
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"# {title}, {today}",
        "",
        f"Measured by `python benchmarks/{Path(sys.argv[0]).name}` at commit {', '.join(commits)}. Python {platform.python_version()}, "
        f"torch {torch.__version__}, {os.cpu_count()} cores.",
        "",
        *table(found, figures),
        "",
        *(f"- {name}: {figure.about}." for name, figure in figures.items()),
    ]
    (out / f"{today}-{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
