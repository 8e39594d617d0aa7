"""Run the phantom version of the paper's Table 2 and keep its table: `python benchmarks/phantom_ct_strategies.py`.

Writes `benchmarks/results/DATE-phantom-ct-strategies.md`: the table of `medmvl compare`, with the command, the date, the
versions, the machine and the minutes. The run continues where an earlier one stopped; minutes are then those of this call.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from pathlib import Path

from medmvl.experiments.compare import compare
from medmvl.files import write_text

ROOT = Path(__file__).resolve().parent
MATRIX = ROOT.parent / "compare" / "phantom-ct-strategies.yaml"


def main() -> None:
    """Run the comparison and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrix", type=Path, default=MATRIX)
    parser.add_argument("--out", type=Path, default=Path("runs/phantom-ct-strategies"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    begun = time.monotonic()
    summary = compare(
        arguments.matrix, arguments.out, jobs=arguments.jobs, announce=lambda text: print(text, flush=True)
    )
    minutes = (time.monotonic() - begun) / 60
    today = datetime.date.today().isoformat()
    versions = ", ".join(f"{name} {number}" for name, number in summary["software"].items())
    lines = [
        f"<!-- {today}: medmvl compare compare/{arguments.matrix.name} --out {arguments.out} --jobs {arguments.jobs} -->",
        f"<!-- {minutes:.1f} minutes on {os.cpu_count()} cores ({platform.machine()}); {versions} -->",
        "",
        (arguments.out / "table.md").read_text(encoding="utf-8"),
    ]
    target = arguments.results / f"{today}-phantom-ct-strategies.md"
    write_text(target, "\n".join(lines))
    print(f"{minutes:.1f} minutes; the table is in {target}")


if __name__ == "__main__":
    main()
