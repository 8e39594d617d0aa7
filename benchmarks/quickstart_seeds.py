"""What the quickstart's model reaches over several seeds: median and worst of each figure, time and memory.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 --threads 2 [--at-once 1] [--runs runs/seeds] [--out benchmarks/results]

Every seed is one `medmvl quickstart --seed S`, as shipped: other patients, weights and order; the LLM that it begins with is the shipped
one. `--threads` sets OMP_NUM_THREADS; with `--at-once 2` two seeds run at the same time, and their times are not those of an idle
machine. Runs that are finished are read, not repeated, and the table holds all of `--runs`, so it can be put together from several
calls. Figures: `FIGURES`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seed_runs import CLOSED, MEASURED, MEMORY, Figure, arguments, closed_figures, duration, measure, report

FIGURES = {
    **CLOSED,
    "nodules": Figure("closed questions about nodules, radiographs and CTs, accuracy"),
    "new wordings": Figure("closed questions in wordings that no training patient was asked in, accuracy"),
    "Chinese": Figure("closed questions in Chinese (radiographs), accuracy"),
    "lobes": Figure(
        "open questions about the lobe of a nodule or consolidation, share of answers that are right to the word"
    ),
    "boxes": Figure("mean IoU"),
    "boxes - usual": Figure("mean IoU above that of `majority`, the usual place of each object"),
    "boxes - other": Figure("mean IoU above that under `shuffled`"),
    "nodule boxes": Figure("mean IoU of the boxes of nodules, the smallest objects"),
    "choices": Figure("four-way choices, accuracy"),
    "report F1": Figure("findings of reports, macro F1, nodules included"),
    "minutes": duration("all of the quickstart"),
    "GB": MEMORY,
}

#: Figure -> grouping and group of results.json whose closed accuracy it is.
GROUPS = {
    "nodules": ("finding", "lung nodule"),
    "new wordings": ("wording", "new wording"),
    "Chinese": ("language", "Chinese"),
}


def run(folder: Path, seed: int, threads: int) -> None:
    """Run one quickstart, unless its folder holds a finished one."""
    command = [sys.executable, "-m", "medmvl", "quickstart", "--out", str(folder), "--seed", str(seed)]
    measure([command], folder, threads)


def accuracy_of_group(benchmarks: Mapping[str, Any], grouping: str, group: str) -> float:
    """Return the closed accuracy of a group of questions, over all benchmarks that have it."""
    found = [entry["groupings"].get(grouping, {}).get(group) for entry in benchmarks.values()]
    scores = [scores["closed_accuracy"] for scores in found if scores is not None]
    return sum(score["value"] * score["n"] for score in scores) / sum(score["n"] for score in scores)


def right_lobes(folder: Path) -> float:
    """Return the share of right answers to the open questions of both benchmarks that ask for a lobe."""
    right = []
    for name in ("phantom-2d", "phantom-ct"):
        for line in (folder / "predictions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if re.fullmatch(r"(left|right) (upper|lower) lobe", row["answer"].lower()):
                right.append(row["prediction"].lower().strip(" .") == row["answer"].lower())
    return sum(right) / len(right)


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of one finished quickstart."""
    benchmarks = json.loads((folder / "results.json").read_text())["benchmarks"]
    if not all("groupings" in entry for entry in benchmarks.values()):
        raise SystemExit(
            f"{folder / 'results.json'} has no scores by finding: an earlier version wrote it. Score it again: medmvl evaluate "
            f"--predictions {folder} --benchmark phantom-2d --benchmark phantom-ct --out {folder}"
        )
    radiographs, scans = benchmarks["phantom-2d"], benchmarks["phantom-ct"]
    boxes = {name: found["miou"]["value"] for name, found in radiographs["controls"].items()}
    box = radiographs["model"]["miou"]["value"]
    return {
        **closed_figures(radiographs, scans),
        **{name: accuracy_of_group(benchmarks, *group) for name, group in GROUPS.items()},
        "lobes": right_lobes(folder),
        "boxes": box,
        "boxes - usual": box - boxes["majority"],
        "boxes - other": box - boxes["shuffled"],
        "nodule boxes": radiographs["groupings"]["object"]["Nodule"]["miou"]["value"],
        "choices": scans["model"]["letter_accuracy"]["value"],
        "report F1": scans["model"]["label_f1_macro"]["value"],
        "minutes": json.loads((folder / "quickstart.json").read_text())["minutes"],
        "GB": json.loads((folder / MEASURED).read_text())["peak_bytes"] / 1e9,
    }


def finished(runs: Path) -> dict[str, Path]:
    """Return column title -> folder of every finished run below `runs`."""
    found = {}
    for path in runs.glob(f"threads-*-seed-*/{MEASURED}"):
        _, threads, _, seed = path.parent.name.split("-")
        found[int(threads), int(seed)] = path.parent
    return {f"seed {seed}, {threads} thread(s)": found[threads, seed] for threads, seed in sorted(found)}


def main() -> None:
    """Run the seeds and write the table."""
    parser = arguments(__doc__ or "", Path("runs/seeds"), os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    options = parser.parse_args()
    folders = {seed: options.runs / f"threads-{options.threads}-seed-{seed}" for seed in options.seeds}
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda seed: run(folders[seed], seed, options.threads), options.seeds))
    report(
        "quickstart-seeds",
        "The quickstart over seeds and thread counts",
        finished(options.runs),
        figures,
        FIGURES,
        options.out,
    )


if __name__ == "__main__":
    main()
