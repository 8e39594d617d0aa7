"""Time the same `medmvl` command with two checkouts of the source, in turns.

    git worktree add ../old COMMIT
    python benchmarks/compare_checkouts.py --other ../old [--pairs 5] [--out FILE.md] -- train recipes/tiny.yaml --out OUT

Both checkouts run with this Python and its packages; each takes its recipes from its own folder. `OUT` in the command stands
for a fresh folder per run. Runs alternate, so that whatever else the machine does falls on both alike. The ratio of a pair is
this checkout's time by the other's; the median over pairs counts. CPU time is that of the process and all its children.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

THIS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One finished run: wall-clock and CPU seconds, and peak memory of the largest process in MB."""

    wall: float
    cpu: float
    memory: float


def run(checkout: Path, command: list[str]) -> Run:
    """Run `medmvl command` with the source of a checkout.

    Raises:
        SystemExit: if the command fails; its error output is shown.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        arguments = [word.replace("OUT", f"{folder}/out") for word in command]
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "medmvl", *arguments],
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        if status:
            errors.seek(0)
            raise SystemExit(f"{checkout}: the command failed.\n{errors.read().decode(errors='replace')[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commit(checkout: Path) -> str:
    """Return the short commit of a checkout."""
    return subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def report(pairs: list[tuple[Run, Run]], other: Path, command: list[str]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"# Two checkouts side by side, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`medmvl {' '.join(command)}`",
        "",
        f"- this checkout: {commit(THIS)}; the other one: {commit(other)}; pairs: {len(pairs)}",
        f"- machine: {platform.machine()}, {os.cpu_count()} cores, load at the end {os.getloadavg()[1]:.1f}",
        f"- python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}",
        "",
        "| | this one, median | the other, median | ratio: median | lowest | highest |",
        "|---|---|---|---|---|---|",
    ]
    for name, unit in (("wall", "s"), ("cpu", "s"), ("memory", "MB")):
        ours, theirs = ([getattr(run, name) for run in side] for side in zip(*pairs, strict=True))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"| {name}, {unit} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the pairs and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs):
        order = (THIS, options.other) if number % 2 == 0 else (options.other, THIS)
        runs = {checkout: run(checkout.resolve(), options.command) for checkout in order}
        pairs.append((runs[THIS], runs[options.other]))
        print(f"pair {number + 1}: {pairs[-1]}", file=sys.stderr)
    text = report(pairs, options.other, options.command)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
