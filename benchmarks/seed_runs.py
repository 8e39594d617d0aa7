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
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

#: Written into a run's folder when it is finished: peak_bytes, minutes, commit.
MEASURED = "measured.json"

#: Figures whose worst value is the highest.
LOWER_IS_BETTER = ("closed, blank", "closed, other", "minutes", "GB")


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


def table(found: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[str]:
    """Return a Markdown table: a row per figure, a column per run, and median and worst."""
    lines = [f"| figure | {' | '.join(found)} | median | worst |", "|---|" + "---|" * (len(found) + 2)]
    for name in names:
        values = [run[name] for run in found.values()]
        worst = max(values) if name in LOWER_IS_BETTER else min(values)
        digits = 1 if name in ("minutes", "GB") else 3
        numbers = [*values, statistics.median(values), worst]
        lines.append(f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in numbers)} |")
    return lines


def report(
    stem: str,
    title: str,
    runs: Mapping[str, Path],
    figures: Callable[[Path], Mapping[str, float]],
    explained: Mapping[str, str],
    out: Path,
) -> None:
    """Print the figures of all finished runs and write them to `out`/DATE-`stem`.md.

    Args:
        stem: of the file's name.
        title: of the page.
        runs: column title -> folder of a finished run.
        figures: reads the figures of a folder.
        explained: figure -> what it is, in the table's order.
        out: folder of the page.
    """
    found = {name: figures(folder) for name, folder in runs.items()}
    commits = sorted({json.loads((folder / MEASURED).read_text())["commit"] for folder in runs.values()})
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"# {title}, {today}",
        "",
        f"Measured by `python benchmarks/{Path(sys.argv[0]).name}` at commit {', '.join(commits)}. Python {platform.python_version()}, "
        f"torch {torch.__version__}, {os.cpu_count()} cores.",
        "",
        *table(found, list(explained)),
        "",
        *(f"- {name}: {text}." for name, text in explained.items()),
    ]
    (out / f"{today}-{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
