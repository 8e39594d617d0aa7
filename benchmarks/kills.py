"""Commands that are killed at random moments and run again: does the output equal that of an uninterrupted run?

    python benchmarks/kills.py [--kills N] [--seed N] [--only TEXT] [--out FILE.md]

Every command that writes (`tests/writing.py`) is killed by SIGKILL at a random time of its run, with its child processes, and
then run again to its end. A run that ends before its kill is counted and drawn again. The second run may refuse only an
output that is complete. Files and keys that hold times and random identifiers are left out; that the rest is the same in two
uninterrupted runs is checked first. Temporary files that are still there after the second run are counted. The exit
status is 1 if there is a difference.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src"), str(_ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

#: of the time of the faster uninterrupted run, the part in which the kill comes
LATEST = 0.9
COLUMNS = ("killed", "ended before the kill", "complete at the second run", "temporary files left", "differences")


def main() -> int:
    """Kill, run again, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=330, help="runs that are killed, shared by the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only commands whose name holds this text")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from writing import commands, import_everything, prepare_in_a_fork

    import_everything()
    shared = Path("/dev/shm")
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        os.environ["MEDMVL_CACHE"] = str(folder / "cache")
        inputs, out = folder / "inputs", folder / "out" / "o"
        for path in (inputs, out.parent):
            path.mkdir()
        prepare_in_a_fork(inputs)
        todo = {key: words for key, words in commands(inputs, out).items() if arguments.only in key}
        run(todo, out, arguments.kills, random.Random(arguments.seed), counts)
    text = (
        f"# Kills, {date.today()}\n\n`python benchmarks/kills.py --kills {arguments.kills} --seed {arguments.seed}`\n\n"
    )
    text += f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}, "
    text += f"{os.cpu_count()} cores.\n\n{table(list(todo), counts)}"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 1 if any(count for (_, what), count in counts.items() if what == "differences") else 0


def run(
    todo: dict[str, list[str]], out: Path, kills: int, rng: random.Random, counts: Counter[tuple[str, str]]
) -> None:
    """Kill each command in turn until there are enough kills, or until SIGTERM; prints every difference."""
    from writing import kill_and_rerun, uninterrupted

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    log = out.parent.with_name("log")
    whole = {key: uninterrupted(words, out, log) for key, words in todo.items()}
    start, done = time.monotonic(), 0
    while done < kills and not stopped:
        for key, words in todo.items():
            found = kill_and_rerun(words, out, log, rng.random() * LATEST * whole[key].seconds, whole[key].content)
            done += not found.finished
            counts[key, "ended before the kill" if found.finished else "killed"] += 1
            counts[key, "complete at the second run"] += found.refused
            counts[key, "temporary files left"] += len(found.left)
            if found.difference:
                counts[key, "differences"] += 1
                print(f"{key}, kill {done}: {found.difference}", flush=True)
        print(f"{done} kills after {(time.monotonic() - start) / 60:.0f} minutes", file=sys.stderr, flush=True)


def table(names: list[str], counts: Counter[tuple[str, str]]) -> str:
    """Return the counts as a Markdown table."""
    lines = ["| command | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for key in [*names, "all"]:
        cells = (
            sum(count for (name, what), count in counts.items() if key in (name, "all") and what == column)
            for column in COLUMNS
        )
        lines.append(f"| {key} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
