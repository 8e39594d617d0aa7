"""Hostile model folders, files, recipes and servers: what each command does with them.

    python benchmarks/attacks.py [--only TEXT] [--out FILE.md]

The attacks are those of `tests/attacks.py`, each run by the command line in a process of its own, with its CPU time and the memory
that it took. The exit status is 1 if one ends otherwise than in one line, takes 30 seconds of CPU or 2 GiB, or does what
it was made for.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src"), str(_ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def main() -> int:
    """Run the attacks, print and optionally write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only attacks whose command or text holds this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from attacks import ATTACKS, Place, fault, run
    from writing import import_everything, prepare_in_a_fork

    import_everything()
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs"
        inputs.mkdir()
        prepare_in_a_fork(inputs)
        for number, attack in enumerate(ATTACKS):
            if arguments.only not in f"{attack.door} {attack.text}":
                continue
            outcome = run(attack, Place(inputs, Path(name) / str(number)))
            wrong = fault(attack, outcome)
            failed += bool(wrong)
            ended = "refused" if outcome.status == 2 else "harmless"
            memory = f"{max(outcome.memory, 0) / 2**20:.0f}"
            rows.append(f"| {attack.door} | {attack.text} | {wrong or ended} | {outcome.seconds:.1f} | {memory} |")
            print(rows[-1], flush=True)
    head = [
        f"# Attacks, {date.today()}", "", f"`python benchmarks/attacks.py`: {len(rows)} attacks, {failed} not withstood.", "",
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}, "
        f"pillow {version('pillow')}, pydicom {version('pydicom')}. Time and memory include the writing of the hostile input.", "",
        "| command | attack | outcome | CPU s | MiB |", "|---|---|---|---:|---:|",
    ]  # fmt: skip
    if arguments.out:
        arguments.out.write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
