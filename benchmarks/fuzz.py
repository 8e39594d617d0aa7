"""Damaged files of every format that medmvl reads: how many are read, refused, or bring the process down.

    python benchmarks/fuzz.py [--cases N] [--seed N] [--target TEXT] [--only CASE ...] [--first CASE] [--out FILE.md]

The formats, the damage and the rules for wrong results are in `tests/fuzz`. A case is determined by the seed and its
number, so `--only` repeats it. Failures are foreign exceptions, deaths of the process, hangs of more than 20 seconds, wrong
results without a word, and messages that name no file or show a patient's name. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src"), str(_ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "GOMP_SPINCOUNT": "0"}

PACKAGES = (
    "numpy",
    "pydicom",
    "python-gdcm",
    "pillow",
    "nibabel",
    "SimpleITK",
    "pyarrow",
    "openpyxl",
    "torch",
    "transformers",
)


def main() -> int:
    """Run the cases, print and optionally write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="only formats whose name holds this text")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of single cases")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from fuzz import folders, pixels, records
    from fuzz.runner import Outcome, Summary, run_cases, table

    targets = [t for module in (pixels, records, folders) for t in module.targets() if arguments.target in t.name]
    numbers = arguments.only or range(arguments.first, arguments.first + arguments.cases)
    start, summary = time.monotonic(), Summary()

    def show(outcome: Outcome) -> None:
        summary.add(outcome)
        done = sum(counts.total() for counts in summary.counts.values())
        if done % 5000 == 0:
            print(f"{done} cases after {(time.monotonic() - start) / 60:.0f} minutes", file=sys.stderr, flush=True)
        if arguments.only or outcome.kind not in ("ok", "refused"):
            print(
                f"{outcome.case} {outcome.kind}: {outcome.target}, {outcome.file}, {outcome.mutators}: {outcome.text}",
                flush=True,
            )

    shared_memory = Path("/dev/shm")  # writing to disk would take most of the time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        os.environ["MEDMVL_CACHE"] = os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = folder
        home = Path(folder) / "files"
        home.mkdir()
        with contextlib.suppress(KeyboardInterrupt):  # the table then has the cases so far
            run_cases(targets, arguments.seed, numbers, home, show)
    minutes = (time.monotonic() - start) / 60
    command = f"python benchmarks/fuzz.py --cases {len(numbers)} --seed {arguments.seed}"
    command += f" --first {arguments.first}" * bool(arguments.first) + f" --target '{arguments.target}'" * bool(
        arguments.target
    )
    head = [
        f"# Damaged files, {date.today()}", "", f"`{command}`", "",
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in PACKAGES)}; one process, "
        f"{minutes:.0f} minutes; slowest case {summary.slowest:.1f} s.", "",
    ]  # fmt: skip
    text = "\n".join(head) + table(summary)
    print(text)
    if arguments.out and not arguments.only:
        arguments.out.write_text(text, encoding="utf-8")
    return 1 if summary.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
