"""Summary of a comparison: scores pooled over seeds, paired tests between variants, cost, and the report page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from medmvl.evaluation import BENCHMARKS, expand_benchmarks
from medmvl.evaluation.items import read_items
from medmvl.evaluation.report import environment
from medmvl.evaluation.results import results_of
from medmvl.evaluation.scoring import Answers, compare_answers, score_columns
from medmvl.evaluation.tasks import Benchmark
from medmvl.experiments.compare.matrix import Matrix, Run
from medmvl.experiments.compare.plot import quality_against_cost
from medmvl.experiments.compare.tables import markdown, shown_metrics
from medmvl.files import iter_jsonl, read_json, write_json, write_text

Found = dict[str, dict[int, Answers]]
"""variant -> seed -> its answers."""


def write_summary(matrix: Matrix, runs: Sequence[Run], root: Path, failed: Sequence[str]) -> dict[str, Any]:
    """Collect the results of the runs in `root`, write compare.json, table.md and report.html, and return the first."""
    summary: dict[str, Any] = {
        "matrix": matrix.name,
        "description": matrix.description,
        "axes": {axis: list(choices) for axis, choices in matrix.axes.items()},
        "seeds": matrix.seeds,
        "benchmarks": {},
        "cost": cost_of_variants(runs, root),
        "failed": list(failed),
        "software": results_of({})["software"],
    }
    for name in expand_benchmarks(matrix.evaluate.benchmarks):
        found = read_answers(BENCHMARKS[name], runs, root)
        if found:
            answered = next(iter(next(iter(found.values())).values()))
            benchmark = BENCHMARKS[name].with_headline_for(answered.items)
            summary["benchmarks"][name] = compare_variants(benchmark, found, matrix, runs, root)
    plot = quality_against_cost(summary)
    write_json(root / "compare.json", summary)
    write_text(root / "table.md", markdown(summary))
    page = environment().get_template("compare.html.j2").render(summary=summary, plot=plot, shown=shown_metrics)
    write_text(root / "report.html", page)
    return summary


def read_answers(benchmark: Benchmark, runs: Sequence[Run], root: Path) -> Found:
    """Return the answers of every run that was evaluated."""
    found: Found = {}
    for run in runs:
        path = root / "runs" / run.name / "predictions" / f"{benchmark.name}.jsonl"
        if path.is_file():
            items = [item for item in read_items(path)[0] if benchmark.belongs(item)]
            found.setdefault(run.variant, {})[run.seed] = Answers(items)
    return found


def compare_variants(
    benchmark: Benchmark, found: Found, matrix: Matrix, runs: Sequence[Run], root: Path
) -> dict[str, Any]:
    """Return scores per variant (seeds pooled, patients resampled), per seed and per control, and the paired tests."""
    variants = {}
    for variant, seeds in found.items():
        per_seed = {
            str(seed): {key: score.value for key, score in score_columns(benchmark, answers).items()}
            for seed, answers in seeds.items()
        }
        scores = score_columns(benchmark, pooled(seeds))
        variants[variant] = {
            "metrics": {key: score.to_dict() for key, score in scores.items() if score.value == score.value},
            "per_seed": per_seed,
            "controls": _controls(benchmark, [run for run in runs if run.variant == variant], root),
        }
    return {
        "title": benchmark.title,
        "about": benchmark.about,
        "synthetic": benchmark.synthetic,
        "headline": benchmark.headline,
        "reference": matrix.reference or next(iter(found)),
        "variants": variants,
        "pairs": paired_tests(benchmark, found),
    }


def pooled(seeds: dict[int, Answers]) -> Answers:
    """Return the answers of all seeds together; a patient stays one cluster, so seeds add no false certainty."""
    items = [replace(item, id=f"seed {seed}: {item.id}") for seed, answers in seeds.items() for item in answers.items]
    return Answers(items)


def paired_tests(benchmark: Benchmark, found: Found) -> list[dict[str, Any]]:
    """Test the headline between all pairs of variants on the seeds both have; p-values also adjusted by Holm (1979)."""
    column = benchmark.column(benchmark.headline)
    pairs: list[dict[str, Any]] = []
    for first, second in itertools.combinations(found, 2):
        both = found[first].keys() & found[second].keys()
        mine, theirs = (pooled({seed: found[name][seed] for seed in sorted(both)}) for name in (first, second))
        test = compare_answers(column, mine, theirs) if both else None
        if test is not None:
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "metric": benchmark.headline,
                    "difference": test.difference,
                    "ci95": None if test.ci95 is None else list(test.ci95),
                    "p_value": test.p_value,
                    "n": test.n,
                }
            )
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = adjusted
    return pairs


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values; None stays None."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def _controls(benchmark: Benchmark, runs: Sequence[Run], root: Path) -> dict[str, float]:
    """Return the mean headline of a variant's controls over its seeds."""
    values: dict[str, list[float]] = {}
    for run in runs:
        path = root / "runs" / run.name / "results.json"
        if not path.is_file():
            continue
        entry = read_json(path)["benchmarks"].get(benchmark.name, {"controls": {}})
        for name, scores in entry["controls"].items():
            if benchmark.headline in scores:
                values.setdefault(name, []).append(scores[benchmark.headline]["value"])
    return {name: sum(found) / len(found) for name, found in values.items()}


# --- cost -------------------------------------------------------------------------------------------------------


def cost_of_variants(runs: Sequence[Run], root: Path) -> dict[str, dict[str, Any]]:
    """Return per variant the mean cost of a run: seconds, tokens, peak memory, parameters.

    A stage that several runs share is counted in full for each of them: it is what the variant costs on its own. What
    was really spent is under `spent_seconds`.
    """
    stage_costs = _stage_costs(runs, root)
    costs: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        found = [_run_cost(run, root, stage_costs) for run in runs if run.variant == variant]
        own = [cost for cost in found if cost is not None]
        if own:
            costs[variant] = {key: sum(cost[key] for cost in own) / len(own) for key in own[0]}
    return costs


def _stage_costs(runs: Sequence[Run], root: Path) -> dict[str, dict[str, float]]:
    """Return {stage key: cost} of every stage from the folder of the run that trained it."""
    costs: dict[str, dict[str, float]] = {}
    for run in runs:
        folder = root / "runs" / run.name
        rows = list(iter_jsonl(folder / "cost.jsonl")) if (folder / "cost.jsonl").is_file() else []
        for index, stage in enumerate(run.recipe.stages):
            spent = [row for row in rows if row["job"] == f"stage {stage.name}"]
            if spent:
                costs[run.stage_key(index)] = {
                    "train_seconds": sum(row["seconds"] for row in spent),
                    "peak_memory_bytes": max(row["peak_memory_bytes"] for row in spent),
                }
    return costs


def _run_cost(run: Run, root: Path, stage_costs: dict[str, dict[str, float]]) -> dict[str, float] | None:
    folder = root / "runs" / run.name
    if not (folder / "results.json").is_file():
        return None
    stages = [stage_costs.get(run.stage_key(index), {}) for index in range(len(run.recipe.stages))]
    spent = list(iter_jsonl(folder / "cost.jsonl")) if (folder / "cost.jsonl").is_file() else []
    log = list(iter_jsonl(folder / "log.jsonl"))
    return {
        "train_seconds": sum(stage.get("train_seconds", 0.0) for stage in stages),
        "evaluate_seconds": sum(row["seconds"] for row in spent if row["job"] == "evaluate"),
        "spent_seconds": sum(row["seconds"] for row in spent),
        "peak_memory_bytes": max((stage.get("peak_memory_bytes", 0.0) for stage in stages), default=0.0),
        "train_tokens": sum(row.get("tokens") or 0 for row in log),
        "steps": len(log),
        "parameters": count_parameters(folder / "model"),
    }


def count_parameters(folder: Path) -> int:
    """Return the number of weights in a checkpoint's safetensors files, read from their headers."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                size = 1
                for side in tensors.get_slice(name).get_shape():
                    size *= side
                total += size
    return total
