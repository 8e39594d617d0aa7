"""What the quickstart's model reaches over several seeds: median and worst of each figure, time and memory.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 5 6 7 [--threads 2] [--at-once 1] [--runs runs/seeds] [--out benchmarks/results]

Every seed is one `medmvl quickstart --seed S`, as shipped: other patients, weights and order. `--threads` sets OMP_NUM_THREADS; with
`--at-once 2` two seeds run beside each other, and their times are not those of an idle machine. Runs that are finished are read,
not repeated, so a table can be put together from several calls. Figures: `FIGURES`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch

FIGURES = {
    "closed 2D": "closed questions about radiographs, accuracy",
    "closed CT": "closed questions about CTs, accuracy",
    "boxes": "mean IoU",
    "boxes - usual": "mean IoU above that of the usual place of each object (majority)",
    "boxes - other": "mean IoU above that with another patient's picture",
    "choices": "four-way choices, accuracy",
    "report F1": "findings of reports, macro F1, nodules included",
    "minutes": "all of the quickstart, by the clock",
    "GB": "peak memory of the largest process",
}


def run(folder: Path, seed: int, threads: int) -> None:
    """Run one quickstart, unless its folder holds a finished one."""
    if (folder / "quickstart.json").is_file():
        return
    code = (
        "import resource, sys; from pathlib import Path; from medmvl.openmp import wait_as_fits; wait_as_fits();"
        "from medmvl.experiments.quickstart import quickstart; quickstart(sys.argv[1], int(sys.argv[2]));"
        "kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN));"
        "Path(sys.argv[1], 'peak.txt').write_text(str(kib))"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-c", code, str(folder), str(seed)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of one finished quickstart."""
    benchmarks = json.loads((folder / "results.json").read_text())["benchmarks"]
    radiographs, scans = benchmarks["phantom-2d"], benchmarks["phantom-ct"]
    boxes = {name: found["miou"]["value"] for name, found in radiographs["controls"].items()}
    box = radiographs["model"]["miou"]["value"]
    return {
        "closed 2D": radiographs["model"]["closed_accuracy"]["value"],
        "closed CT": scans["model"]["closed_accuracy"]["value"],
        "boxes": box,
        "boxes - usual": box - boxes["majority"],
        "boxes - other": box - boxes["shuffled"],
        "choices": scans["model"]["letter_accuracy"]["value"],
        "report F1": scans["model"]["label_f1_macro"]["value"],
        "minutes": json.loads((folder / "quickstart.json").read_text())["minutes"],
        "GB": int((folder / "peak.txt").read_text()) * 1024 / 1e9,
    }


def table(found: dict[int, dict[str, float]]) -> list[str]:
    """Return a Markdown table: a row per figure, a column per seed, and median and worst."""
    seeds = sorted(found)
    lines = [
        f"| figure | {' | '.join(f'seed {seed}' for seed in seeds)} | median | worst |",
        "|---|" + "---|" * (len(seeds) + 2),
    ]
    for name in FIGURES:
        values = [found[seed][name] for seed in seeds]
        worst = max(values) if name in ("minutes", "GB") else min(values)
        digits = 1 if name in ("minutes", "GB") else 3
        numbers = [*values, statistics.median(values), worst]
        lines.append(f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in numbers)} |")
    return lines


def main() -> None:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    folders = {seed: options.runs / f"threads-{options.threads}-seed-{seed}" for seed in options.seeds}
    load = os.getloadavg()[0]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda seed: run(folders[seed], seed, options.threads), options.seeds))
    lines = [
        f"# The quickstart over seeds, {options.threads} thread(s), {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python benchmarks/quickstart_seeds.py --seeds {' '.join(map(str, options.seeds))} --threads {options.threads} "
        f"--at-once {options.at_once}`, Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores; "
        f"load at the start {load:.1f}.",
        "",
        *table({seed: figures(folder) for seed, folder in folders.items()}),
        "",
        *(f"- {name}: {text}." for name, text in FIGURES.items()),
    ]
    path = options.out / f"{datetime.now(UTC):%Y-%m-%d}-quickstart-seeds-{options.threads}-threads.md"
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
