"""What `recipes/smollm2-cpu` reaches over several seeds: median and worst of closed accuracy, time and memory.

    python benchmarks/smollm2_seeds.py --quickstarts DIR DIR DIR [--threads 1] [--at-once 2] [--runs runs/smollm2-seeds]

Each folder is a finished quickstart: its seed, patients and encoders are those of a run. The LLM is models/smollm2-135m (`medmvl fetch
smollm2-135m`). The held-out patients' closed questions are answered with their picture, a blank one and another patient's. Runs that
are finished are read, not repeated. Figures: `FIGURES`.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seed_runs import CLOSED, MEASURED, MEMORY, arguments, closed_figures, duration, measure, report

BENCHMARKS = ("phantom-2d", "phantom-ct")
CONTROLS = ("blank", "shuffled")
FIGURES = {**CLOSED, "minutes": duration("training and answering"), "GB": MEMORY}


def commands(quickstart: Path, folder: Path) -> list[list[str]]:
    """Return the commands that train and score one model, with the patients and encoders of a quickstart."""
    settings = {
        "seed": seed_of(quickstart),
        "data_root": quickstart / "data",
        "model.image.encoder.init_from": quickstart / "model",
        "model.volume.encoder.init_from": quickstart / "model",
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    medmvl = [sys.executable, "-m", "medmvl"]
    jobs = [[*medmvl, "train", "smollm2-cpu", "--out", str(folder), *changes]]
    for name in BENCHMARKS:
        controls = [part for control in CONTROLS for part in ("--control", control)]
        options = ["--benchmark", name, "--data-root", str(closed_questions(quickstart, name)), *controls]
        jobs.append(
            [*medmvl, "evaluate", "--model", str(folder / "model"), *options, "--out", str(folder / "scores" / name)]
        )
    return jobs


def seed_of(quickstart: Path) -> int:
    """Return the seed of a quickstart."""
    seed: int = json.loads((quickstart / "settings.json").read_text())["seed"]
    return seed


def closed_questions(quickstart: Path, benchmark: str) -> Path:
    """Write the closed questions of a benchmark beside it, and return the file: the recipe trains no others."""
    source = quickstart / "data" / benchmark / "test.jsonl"
    path = source.with_name("closed.jsonl")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(
        "".join(line for line in lines if json.loads(line).get("answer_type") == "CLOSED"), encoding="utf-8"
    )
    return path


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of one finished run."""
    radiographs, scans = (
        json.loads((folder / "scores" / name / "results.json").read_text())["benchmarks"][name] for name in BENCHMARKS
    )
    measured = json.loads((folder / MEASURED).read_text())
    return {
        **closed_figures(radiographs, scans),
        "minutes": measured["minutes"],
        "GB": measured["peak_bytes"] / 1e9,
    }


def main() -> None:
    """Run the seeds and write the table."""
    parser = arguments(__doc__ or "", Path("runs/smollm2-seeds"), 1)
    parser.add_argument("--quickstarts", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    folders = {quickstart: options.runs / f"seed-{seed_of(quickstart)}" for quickstart in options.quickstarts}
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda job: measure(commands(*job), job[1], options.threads), folders.items()))
    finished = {
        path.parent.name.replace("-", " "): path.parent for path in sorted(options.runs.glob(f"seed-*/{MEASURED}"))
    }
    report("smollm2-seeds", "recipes/smollm2-cpu over seeds", finished, figures, FIGURES, options.out)


if __name__ == "__main__":
    main()
